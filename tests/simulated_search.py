"""A search whose every step a test decides: simulated workers, and a coordinator that goes on when it is told to.

The coordinator, its storage and the SQLite file are the real ones. The coordinator runs in a thread of its own, as far
as its next wait for events; there it stands until the test gives it some.
"""

import queue
import sqlite3
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import FbsearchError
from fbsearch.messages import (
    CannotStart,
    DatasetInfo,
    Epoch,
    EpochStats,
    Event,
    Failed,
    FailureKind,
    Finished,
    Notice,
    Ready,
    Started,
    Stopped,
    WorkerDied,
    WorkerLost,
)
from fbsearch.search.coordinator import Coordinator
from fbsearch.study.database import storage_errors
from fbsearch.study.locks import claim_study
from fbsearch.study.retrying_storage import RetryingStorage
from fbsearch.study.study import create_study

DIGITS = DatasetInfo(
    num_classes=10, in_channels=1, image_size=8, num_train=1150, num_val=287, num_test=360,
    class_names=tuple(map(str, range(10))),
)  # fmt: skip
MOST_SECONDS_OF_A_STEP = 300.0
MAX_DUPLICATES, MAX_INFEASIBLE = 8, 40
TRIAL_TIMEOUT = 4.0


class Killed(BaseException):
    """The coordinator has been killed: from here on nothing that it does reaches the database."""


class Fuse:
    """Kills the coordinator at an SQL statement or commit: after `statements` more of them, if that is not None."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self.statements: int | None = None
        sqlalchemy.event.listen(engine, "before_cursor_execute", self._burn)
        sqlalchemy.event.listen(engine, "commit", self._burn)
        # A database that is locked says so at once, not after a second.
        sqlalchemy.event.listen(engine, "checkout", lambda raw, *_: raw.execute("PRAGMA busy_timeout=0"))

    def _burn(self, *_: Any) -> None:
        if self.statements is None:
            return
        if self.statements == 0:
            raise Killed
        self.statements -= 1


@dataclass
class SimulatedWorker:
    """A worker, as its process is. `said` waits in its pipe; `given` is the trial that the coordinator knows of."""

    number: int
    device: str
    stage: Literal["starting", "idle", "training", "dead", "lost"] = "starting"
    said: deque[Event] = field(default_factory=deque)
    given: int | None = None
    trial: int = -1
    config: TrialConfig | None = None
    epoch: int | None = None  # None before Started
    accuracy: float = 0.0  # of the last epoch
    must_stop: bool = False

    def say_next(self, accuracy: float) -> None:
        """Say what comes next in the life of a worker; nothing if it waits for a trial, or is gone."""
        if self.stage == "starting":
            self._say(Ready(self.number, self.device, DIGITS, {}, seconds=0.0), stage="idle")
        if self.stage != "training":
            return
        assert self.config is not None
        if self.epoch is None:
            self.epoch = 0
            self._say(Started(self.number, self.trial, 1000 * self.config.model.base_channels, flops=10**6))
        elif self._is_over_limits():
            self._say(Failed(self.number, self.trial, FailureKind.OVER_LIMITS, "over limits"), stage="idle")
        elif self.must_stop and accuracy < 0.5:  # else the request comes between two checks for it
            self._say(Stopped(self.number, self.trial), stage="idle")
        elif self.epoch == self.config.train.epochs:
            self._say(Finished(self.number, self.trial, self.accuracy), stage="idle")
        else:
            self.epoch, self.accuracy = self.epoch + 1, accuracy
            self._say(Epoch(self.number, self.trial, make_stats(self.epoch, accuracy)))

    @property
    def can_fail(self) -> bool:
        return self.stage == "training" and self.epoch is not None and not self._is_over_limits()

    def fail(self, kind: FailureKind, message: str) -> None:
        self._say(Failed(self.number, self.trial, kind, message, "Traceback ..."), stage="idle")

    def cannot_start(self) -> None:
        self._say(CannotStart(self.number, "no images"))
        self.die(WorkerDied(self.number, "ended with exit code 0"))

    def die(self, event: WorkerDied | WorkerLost) -> None:
        self._say(event, stage="dead")

    def breathe(self) -> None:
        """Give a sign of life."""
        self._say(Notice(self.number, "still there"))

    def _is_over_limits(self) -> bool:
        assert self.config is not None
        limit = self.config.limits.parameters
        return limit is not None and 1000 * self.config.model.base_channels > limit

    def _say(self, event: Event, *, stage: Any = None) -> None:
        self.said.append(event)
        self.stage = stage or self.stage


def make_stats(epoch: int, accuracy: float) -> EpochStats:
    return EpochStats(
        epoch=epoch, train_loss=1 / epoch, train_accuracy=accuracy, val_loss=1 / epoch, val_accuracy=accuracy,
        learning_rate=0.01, seconds=0.5, step_seconds=0.4, val_seconds=0.1, images_per_second=2300.0, memory_mib=512.0,
    )  # fmt: skip


class SimulatedWorkers:
    """An executor whose workers say what a test lets them say; `received` is what the coordinator heard of a trial."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        # Two workers share a device.
        self.workers = [SimulatedWorker(number, f"device {number // 2}") for number in range(num_workers)]
        self.received: dict[int, list[Event]] = {}
        self.waits: queue.SimpleQueue[str] = queue.SimpleQueue()  # "waits", "away" (for the database) or "ended"
        self._next: queue.SimpleQueue[list[Event] | BaseException] = queue.SimpleQueue()

    def go_on(self, item: list[Event] | BaseException) -> None:
        """Let the coordinator receive these events, or fail where it waits for them."""
        self._next.put(item)

    def take(self, number: int) -> Event:
        """Take the first event out of a worker's pipe, for the coordinator."""
        worker = self.workers[number]
        event = worker.said.popleft()
        of = getattr(event, "trial", None)
        if isinstance(event, WorkerDied | WorkerLost):
            worker.stage = "lost" if isinstance(event, WorkerLost) else "starting"
            of = worker.given
        if of is not None:
            self.received.setdefault(of, []).append(event)
        if isinstance(event, Finished | Failed | Stopped | WorkerDied | WorkerLost):
            worker.given = None
        return event

    # What the coordinator calls.

    def start(self) -> None:
        pass

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        given = self.workers[worker]
        assert given.given is None, f"worker {worker} has trial {given.given} and is given {trial}"
        assert trial not in self.received, f"trial {trial} is handed out twice"
        self.received[trial] = []
        given.given = trial
        if given.stage != "dead":  # else nobody reads the pipe
            assert given.stage == "idle", f"worker {worker} is {given.stage} and is given trial {trial}"
            given.stage, given.trial, given.config, given.epoch, given.must_stop = (
                "training",
                trial,
                config,
                None,
                False,
            )

    def stop_trial(self, worker: int) -> None:
        self.workers[worker].must_stop = True

    def kill(self, worker: int, *, reason: str) -> None:
        if self.workers[worker].stage != "dead":
            self.workers[worker].die(WorkerDied(worker, reason))

    def events(self, *, timeout: float) -> list[Event]:
        self.waits.put("waits" if timeout else "away")
        item = self._next.get(timeout=MOST_SECONDS_OF_A_STEP)
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        pass


class Command(threading.Thread):
    """`fbsearch run` with simulated workers. `waits` says where it stands now, or that it has ended."""

    def __init__(self, storage: RetryingStorage, config: StudyConfig, *, num_workers: int, num_trials: int) -> None:
        super().__init__(daemon=True)
        self.workers = SimulatedWorkers(num_workers)
        self.num_trials = num_trials
        self.clock = 0.0
        self.coordinator: Coordinator | None = None
        self.error: BaseException | None = None
        self._storage, self._config = storage, config
        self.start()
        self.stands = self._wait()

    def step(self, item: list[Event] | BaseException) -> None:
        """Go on with these events, or this end, to the next wait."""
        self.workers.go_on(item)
        self.stands = self._wait()

    def _wait(self) -> str:
        return self.workers.waits.get(timeout=MOST_SECONDS_OF_A_STEP)

    def run(self) -> None:
        try:
            self._search()
        except (Killed, FbsearchError, KeyboardInterrupt) as error:
            self.error = error
        except BaseException as error:  # a bug, which the test raises
            self.error = AssertionError(f"{type(error).__name__}: {error}")
            self.error.__cause__ = error
        finally:
            self.workers.waits.put("ended")

    def _search(self) -> None:
        storage, config = self._storage, self._config
        with storage_errors("the database"), claim_study(storage, config.name) as claim:
            self.coordinator = Coordinator(
                create_study(storage, config), config, self.workers,
                num_trials=self.num_trials, trial_timeout=TRIAL_TIMEOUT, show=lambda state, event: None, claim=claim,
                max_duplicates=MAX_DUPLICATES, max_infeasible=MAX_INFEASIBLE, clock=lambda: self.clock,
            )  # fmt: skip
            self.coordinator.run()


class Lock:
    """Another program's lock on an SQLite file: nobody else can write."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()
