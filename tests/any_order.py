"""Disturbances of a search in any order, drawn by hypothesis, and what must be true after each of them.

Simulated workers speak, fail, die and hang; their events are received early or late; the coordinator is killed between
any two SQL statements, interrupted, started again for another N; another program locks the SQLite file; a second
coordinator tries to begin. Coordinator, storage and file are the real ones.
"""

import secrets
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import optuna
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from search_invariants import ENDED, best_row, check_settled, find_problems, read_rows
from simulated_search import Command, Fuse, Killed, Lock

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import SearchError, StorageError
from fbsearch.messages import Event, FailureKind, WorkerDied, WorkerLost
from fbsearch.study.database import open_storage
from fbsearch.study.locks import claim_study
from fbsearch.study.queries import best_trial, count_trials
from fbsearch.study.retrying_storage import RetryingStorage

WIDE = {"train.learning_rate": {"low": 0.003, "high": 0.05, "log": True}, "model.base_channels": {"choices": [8, 16]}}
FEW = {"train.learning_rate": {"choices": [0.01, 0.02, 0.03]}, "model.base_channels": {"choices": [8, 16]}}
WORKER_NUMBERS = st.integers(0, 2)
ACCURACIES = st.integers(1, 9).map(lambda tenths: tenths / 10)
NUMS_TRIALS = st.integers(1, 6)
MOST_ROUNDS = 400
Opened = tuple[RetryingStorage, optuna.storages.RDBStorage, Fuse, sqlite3.Connection]


class SearchInAnyOrder(RuleBasedStateMachine):
    """One study of at most 6 trials with up to 3 workers."""

    folder: ClassVar[Path]  # of the SQLite file, which all sequences share
    counts: ClassVar[Counter[str]] = Counter()
    _opened: ClassVar[dict[Path, "Opened"]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.name = secrets.token_hex(8)
        self.storage, self.storage_of_second, self.fuse, self.reader = self._open(self.folder)
        self.command: Command | None = None
        self.lock: Lock | None = None
        self.most_trials, self.num_before = 0, 0
        self.received: dict[int, list[Event]] = {}
        self.ended: dict[int, Any] = {}
        self.left: set[int] = set()  # the trials that the last command could not put back
        self.is_whole = False  # the last command ended well

    @classmethod
    def _open(cls, folder: Path) -> "Opened":
        """Open the file once: Optuna takes 40 ms for it, and half a second to make it."""
        if folder not in cls._opened:
            storage = open_storage(f"sqlite:///{folder}/any_order.db", create=True, retries=True)
            assert isinstance(storage, RetryingStorage)
            storage.max_pause_seconds = 0.0
            reader = sqlite3.connect(folder / "any_order.db", isolation_level=None)
            second = open_storage(f"sqlite:///{folder}/any_order.db")
            cls._opened[folder] = storage, second, Fuse(storage.engine), reader
        return cls._opened[folder]

    @classmethod
    def close(cls) -> None:
        for storage, second, _, reader in cls._opened.values():
            storage.engine.dispose()
            second.engine.dispose()
            reader.close()
        cls._opened.clear()

    # The searcher's side.

    @initialize(
        sampler=st.sampled_from(["random", "random", "tpe", "grid"]),
        pruner=st.sampled_from(["none", "successive_halving"]),
        is_wide=st.sampled_from([True, True, False]),
        has_limit=st.booleans(),
        num_workers=st.integers(1, 3),
        num_trials=NUMS_TRIALS,
    )
    def begin(
        self, sampler: str, pruner: str, is_wide: bool, has_limit: bool, num_workers: int, num_trials: int
    ) -> None:
        limits = {"parameters": 12_000} if has_limit else {}
        self.is_wide = is_wide and sampler != "grid"
        self.config = StudyConfig.model_validate(
            {
                "name": self.name,
                "train": {"epochs": 3},
                "space": WIDE if self.is_wide else FEW,
                "search": {"sampler": sampler, "pruner": pruner, "limits": limits},
            }
        )
        self.num_workers = num_workers
        self._start(num_trials)

    def _start(self, num_trials: int) -> None:
        self.fuse.statements = None
        self.num_before = sum(row.is_counted for row in self._rows())
        self.most_trials = max(self.most_trials, num_trials)
        self.command = Command(self.storage, self.config, num_workers=self.num_workers, num_trials=num_trials)
        self._check_put_back()
        self._note_end(was_away=False)

    def _check_put_back(self) -> None:
        """Check that a command puts back, before all else, every trial that the one before it has left running."""
        found = {row.number: row for row in self._rows() if row.number in self.left}
        still = [number for number in self.left if number not in found or found[number].state != "FAIL"]
        assert not still, f"the trials {still} were left running, and are not put back"
        self.left = set()

    @precondition(lambda self: self.command is None and self.lock is None)
    @rule(num_trials=NUMS_TRIALS)
    def resume(self, num_trials: int) -> None:
        """Give the same command again, with another --trials."""
        self.counts["command given again"] += 1
        self._start(num_trials)

    @precondition(lambda self: self.command is not None)
    @rule(statements=st.one_of(st.just(0), st.integers(0, 40)))
    def kill_coordinator(self, statements: int) -> None:
        """Kill the coordinator now, or between two SQL statements later."""
        self.fuse.statements = statements
        if statements == 0:
            self._step(Killed())

    @precondition(lambda self: self.command is not None)
    @rule(is_twice=st.booleans())
    def interrupt(self, is_twice: bool) -> None:
        """Press Ctrl-C, once or twice: the coordinator puts its trials back and ends."""
        assert self.command is not None and self.command.coordinator is not None
        self.counts["interrupted twice" if is_twice else "interrupted"] += 1
        self.command.coordinator._stop_criterion.is_interrupted = True  # only a main thread receives signals
        self._step(KeyboardInterrupt() if is_twice else [])

    @precondition(lambda self: self.command is not None)
    @rule()
    def claim_a_second_time(self) -> None:
        """Start a second coordinator: it is sent away, and has changed nothing."""
        self.counts["second coordinator"] += 1
        try:
            with claim_study(self.storage_of_second, self.name):
                raise AssertionError("two coordinators have the study")
        except StorageError:
            pass

    @precondition(lambda self: self.command is not None and self.lock is None)
    @rule()
    def lock_database(self) -> None:
        self.counts["database locked"] += 1
        self.lock = Lock(str(self.folder / "any_order.db"))

    @precondition(lambda self: self.lock is not None)
    @rule()
    def unlock_database(self) -> None:
        assert self.lock is not None
        self.lock.release()
        self.lock = None
        if self.command is not None and self.command.stands == "away":
            self._step([])

    @precondition(lambda self: self.command is not None and self.command.stands == "away")
    @rule()
    def wait_too_long_for_the_database(self) -> None:
        """End the coordinator's patience."""
        self.counts["database locked for too long"] += 1
        patience, self.storage.timeout_seconds = self.storage.timeout_seconds, 0.0
        self._step([])
        self.storage.timeout_seconds = patience

    # The workers' side.

    @precondition(lambda self: self.command is not None)
    @rule(numbers=st.lists(WORKER_NUMBERS, min_size=1, max_size=8), accuracy=ACCURACIES)
    def say(self, numbers: list[int], accuracy: float) -> None:
        """Let workers say what comes next in their lives; nobody has heard it yet."""
        for number in numbers:
            self._worker(number).say_next(accuracy)

    @precondition(lambda self: self.command is not None)
    @rule(numbers=st.lists(WORKER_NUMBERS, min_size=1, max_size=8))
    def receive(self, numbers: list[int]) -> None:
        """Let the coordinator hear the next thing that each of these workers has said."""
        self._receive(numbers)

    @precondition(lambda self: self.command is not None)
    @rule(num_rounds=st.integers(1, 8), accuracies=st.lists(ACCURACIES, min_size=1, max_size=3))
    def work(self, num_rounds: int, accuracies: list[float]) -> None:
        """Let all workers go on, and the coordinator hear all of it."""
        for number in range(num_rounds):
            self._work(accuracies[number % len(accuracies)])

    @precondition(lambda self: self.command is not None)
    @rule(
        number=WORKER_NUMBERS,
        kind=st.sampled_from(["error", "out_of_memory", "non_finite_loss", "invalid_configuration"]),
        message=st.sampled_from(["a", "b"]),
    )
    def fail(self, number: int, kind: str, message: str) -> None:
        if self._is_training(number):
            self.counts[f"trial failed: {kind}"] += 1
            self._worker(number).fail(FailureKind(kind), message)

    @precondition(lambda self: self.command is not None)
    @rule(number=WORKER_NUMBERS, kind=st.sampled_from([FailureKind.WORKER_DIED, FailureKind.NODE_LOST]))
    def die(self, number: int, kind: FailureKind) -> None:
        worker = self._worker(number)
        if worker.stage in ("starting", "idle", "training"):
            self.counts["worker died" if kind == FailureKind.WORKER_DIED else "node lost"] += 1
            worker.die(WorkerDied(worker.number, "was killed", kind))

    @precondition(lambda self: self.command is not None)
    @rule(number=WORKER_NUMBERS, is_lost=st.booleans())
    def cannot_start(self, number: int, is_lost: bool) -> None:
        worker = self._worker(number)
        if worker.stage == "starting" and not worker.said:
            self.counts["worker lost" if is_lost else "worker could not start"] += 1
            if is_lost:
                worker.die(WorkerLost(worker.number, "was not ready"))
            else:
                worker.cannot_start()

    @precondition(lambda self: self.command is not None and self.command.stands == "waits")
    @rule(number=WORKER_NUMBERS)
    def hang(self, number: int) -> None:
        """Let one worker be silent for longer than it may, while the others give signs of life."""
        if not self._is_training(number):
            return
        self.counts["worker hung"] += 1
        for _ in range(3):
            if self.command is None or self._worker(number).stage != "training":
                return
            for worker in self.command.workers.workers:
                if worker is not self._worker(number) and worker.stage in ("starting", "idle", "training"):
                    worker.breathe()
            self.command.clock += 5.0
            self._receive(range(self.num_workers))

    # What the rules are made of.

    def _worker(self, number: int) -> Any:
        assert self.command is not None
        return self.command.workers.workers[number % self.num_workers]

    def _is_training(self, number: int) -> bool:
        """Let all work until this worker trains; False if it does not come to that."""
        for _ in range(4):
            if self.command is None or self._worker(number).can_fail:
                break
            self._work(0.3)
        return self.command is not None and self._worker(number).can_fail

    def _work(self, accuracy: float) -> None:
        if self.command is not None:
            for worker in self.command.workers.workers:
                worker.say_next(accuracy)
            self._receive([n for n, worker in enumerate(self.command.workers.workers) for _ in worker.said])

    def _receive(self, numbers: Any) -> None:
        assert self.command is not None
        waiting = [number % self.num_workers for number in numbers]
        workers = self.command.workers
        self._step([workers.take(number) for number in waiting if workers.workers[number].said])

    def _step(self, item: list[Event] | BaseException) -> None:
        assert self.command is not None
        was_away = self.command.stands == "away"
        self.command.step(item)
        self._note_end(was_away=was_away)

    def _note_end(self, *, was_away: bool) -> None:
        """Forget a coordinator that has ended, and check that it ended as it should.

        It may leave trials running if it was killed, or if it failed while it waited for the database (`was_away`): it
        waited too long, or was interrupted there. The next command puts them back.
        """
        command = self.command
        assert command is not None
        self.received |= command.workers.received
        if command.stands != "ended":
            return
        command.join()
        self.command = None
        error, is_dead = command.error, isinstance(command.error, Killed)
        self.counts[
            "coordinator killed" if is_dead else f"ended with {type(error).__name__ if error else 'success'}"
        ] += 1
        if is_dead or (was_away and error is not None):
            self.left = {row.number for row in self._rows() if row.state == "RUNNING"}
            self.counts["trials left running"] += len(self.left)
        if isinstance(error, AssertionError):
            raise error
        if isinstance(error, SearchError):
            assert any(sign in str(error) for sign in ("in a row", "no images", "was not ready")), error
        self.is_whole = False
        if error is None:
            assert command.coordinator is not None
            state = command.coordinator.state
            self.is_whole = state.end != "interrupted"
            counted = sum(row.is_counted for row in self._rows())
            assert state.end in ("finished", "space_exhausted", "grid_exhausted", "interrupted"), state.end
            assert state.end != "finished" or counted == max(command.num_trials, self.num_before)
            assert state.end != "space_exhausted" or not self.is_wide

    def _rows(self) -> Any:
        return read_rows(self.reader, self.name)

    # What must be true.

    @invariant()
    def nothing_is_lost_or_wrong(self) -> None:
        self.counts["looks at the study"] += 1
        is_settled = self.command is not None and self.command.stands == "waits"
        rows = self._rows()
        problems = list(find_problems(rows, self.received, is_settled=is_settled))
        assert not problems, problems
        now = {row.number: row for row in rows if row.state in ENDED}
        changed = [number for number, row in self.ended.items() if now.get(number) != row]
        assert not changed, f"trials {changed} had ended, and have changed"
        self.ended = now
        assert sum(row.is_counted for row in rows) <= self.most_trials
        running = {row.number for row in rows if row.state == "RUNNING"}
        assert self.command is not None or running == self.left, f"nobody runs the trials {running - self.left}"
        if is_settled:
            assert self.command is not None
            check_settled(self.command, rows, self.received, num_before=self.num_before)

    def teardown(self) -> None:
        """Let the search come to its end undisturbed: then it has exactly N, and the best is the best."""
        if not hasattr(self, "config"):
            return
        self.fuse.statements = None
        if self.lock is not None:
            self.unlock_database()
        self.is_whole = False
        for _ in range(MOST_ROUNDS):
            if self.command is None:
                self._start(self.most_trials)
            self._work(0.4)
            if self.is_whole:
                break
        assert self.is_whole, "the search comes to no end"
        self.nothing_is_lost_or_wrong()
        self._check_with_optuna()

    def _check_with_optuna(self) -> None:
        rows = self._rows()
        study = optuna.load_study(storage=self.storage, study_name=self.name)
        best, best_by_curve = best_trial(study), best_row(rows)
        assert (best and best.number) == (best_by_curve and best_by_curve.number)
        counts = count_trials(study)
        counted = sum(row.is_counted for row in rows)
        assert counts[optuna.trial.TrialState.COMPLETE] + counts[optuna.trial.TrialState.PRUNED] == counted
        assert not counts[optuna.trial.TrialState.RUNNING]
        self.counts["sequences to their end"] += 1
        self.counts["trials counted"] += counted
        self.counts["trials"] += len(rows)
