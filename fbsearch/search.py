"""The coordinator: asks Optuna for trials, hands them to workers, stores what comes back, prunes, tells.

The only writer of its study, in one process and one thread: so N means exactly N, and a dead worker is seen at once.
Knows nothing of torch and nothing of the screen; who wants to look is called with the state after every change.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config import TrialConfig
from fbsearch.errors import ConfigError, SearchError
from fbsearch.events import (
    CannotStart,
    DatasetInfo,
    Epoch,
    EpochStats,
    Event,
    Failed,
    Finished,
    Notice,
    Ready,
    Started,
    Stopped,
    WorkerDied,
)
from fbsearch.executors import Executor
from fbsearch.study import (
    FINISHED,
    best_trials,
    enqueue_grid_point,
    fail,
    is_failure,
    put_back,
    put_back_running,
    rank_order,
    sample,
)
from fbsearch.study_file import StudyConfig

# How often one configuration is tried before it is given up.
MAX_ATTEMPTS = 3
# Different configurations failing in a row with the same reason: the search stops with it. A loss that is not finite
# is a property of the configuration, and a wide range of learning rates may well draw several in a row.
MAX_SAME_FAILURES = {"non_finite_loss": 20}
DEFAULT_MAX_SAME_FAILURES = 3
SECONDS_BETWEEN_LOOKS = 0.5

End = Literal["finished", "interrupted", "timeout", "grid_exhausted"]


@dataclasses.dataclass
class RunningTrial:
    """A trial in a worker's hands."""

    trial: optuna.Trial
    config: TrialConfig
    worker: int
    history: list[EpochStats] = dataclasses.field(default_factory=list)
    handed_out: float = dataclasses.field(default_factory=time.monotonic)


@dataclasses.dataclass
class SearchState:
    """What there is to see of a search at one moment."""

    name: str
    num_trials: int
    num_workers: int
    num_complete: int = 0
    num_pruned: int = 0
    num_failed: int = 0
    num_finished_before: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)
    best: FrozenTrial | None = None
    dataset: DatasetInfo | None = None
    devices: dict[int, str] = dataclasses.field(default_factory=dict)
    running: dict[int, RunningTrial] = dataclasses.field(default_factory=dict)
    notice: str = ""
    end: End | None = None

    @property
    def num_finished(self) -> int:
        return self.num_complete + self.num_pruned

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the trials finished so far in this run; None before the first."""
        done = self.num_finished - self.num_finished_before
        if done == 0:
            return None
        return (time.monotonic() - self.started) / done * (self.num_trials - self.num_finished)


class Coordinator:
    """One search from its start to N finished trials, the timeout, or an interruption."""

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        executor: Executor,
        *,
        num_trials: int,
        timeout: float | None = None,
        show: Callable[[SearchState, Event | None], None],
    ) -> None:
        """`num_trials` counts what the study holds already; `timeout` is in seconds from now."""
        self.study, self.config, self.executor, self._show = study, config, executor, show
        trials = study.get_trials(deepcopy=False)
        self.state = SearchState(
            name=config.name,
            num_trials=num_trials,
            num_workers=executor.num_workers,
            num_complete=sum(t.state == TrialState.COMPLETE for t in trials),
            num_pruned=sum(t.state == TrialState.PRUNED for t in trials),
            num_failed=sum(is_failure(t) for t in trials),
            num_finished_before=sum(t.state in FINISHED for t in trials),
            best=next(iter(best_trials(study, 1)), None),
        )
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._idle: list[int] = []
        self._stopping: set[int] = set()
        self._same_failures: list[tuple[str, int]] = []
        self._environment: dict[str, Any] = {}
        self._interrupted = False

    def run(self) -> SearchState:
        """Search. Running trials are put back when it ends early, whatever the reason; workers are ended always."""
        with self._interruptible():
            try:
                put_back_running(self.study)
                self.study.set_user_attr("num_trials", self.state.num_trials)  # for who watches from elsewhere
                if self.state.num_finished < self.state.num_trials:
                    self.executor.start()
                while self._go_on():
                    self._hand_out()
                    for event in self.executor.events(timeout=SECONDS_BETWEEN_LOOKS):
                        self._handle(event)
                        self._show(self.state, event)
                    self._show(self.state, None)
            finally:
                self.executor.close()
                put_back_running(self.study)
        return self.state

    def _go_on(self) -> bool:
        state = self.state
        if self._interrupted:
            state.end = "interrupted"
        elif state.num_finished >= state.num_trials:
            state.end = "finished"
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            state.end = "timeout"
        elif state.end == "grid_exhausted":
            return bool(state.running)
        return state.end is None

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the search between two writes; a second one at once."""

        def on_signal(number: int, _frame: FrameType | None) -> None:
            # `timeout` and cluster managers may send SIGTERM twice; only a person presses Ctrl-C again.
            if self._interrupted and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._interrupted = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_out(self) -> None:
        while self._idle and self.state.num_finished + len(self.state.running) < self.state.num_trials:
            if not self._ask(self._idle[0]):
                return
            self._idle.pop(0)

    def _ask(self, worker: int) -> bool:
        """Give a worker the next trial; False if there is none, or it cannot be built."""
        if self.config.search.sampler == "grid" and not self._fill_queue():
            self.state.end = "grid_exhausted"
            return False
        trial = self.study.ask()
        values = sample(trial, self.config)
        try:
            config = self.config.trial(values, seed=self.config.search.seed + trial.number)
        except ConfigError as error:
            self._failed(trial, kind="invalid_configuration", message=str(error))
            return False
        assert self.state.dataset is not None, "a worker that is idle has said what its data is"
        model = config.model.resolve_stem(self.state.dataset.image_size)
        config = config.model_copy(update={"model": model})
        trial.set_user_attr("config", config.model_dump(mode="json"))
        self.state.running[worker] = RunningTrial(trial, config, worker)
        self.executor.submit(worker, trial.number, config)
        return True

    def _fill_queue(self) -> bool:
        """Whether a point of the grid waits: one that was put back, or else the next."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return bool(waiting) or enqueue_grid_point(self.study, self.config)

    def _handle(self, event: Event) -> None:
        running = self.state.running.get(event.worker)
        match event:
            case CannotStart(message=message):
                raise SearchError(message)
            case Ready():
                self._ready(event)
            case Notice(text=text):
                self.state.notice = text
            case Stopped() | Finished() | Failed() if running is None:
                self._free(event.worker)  # the end of a trial that was pruned
            case Started() if running is not None:
                self._started(running, event)
            case Epoch() if running is not None:
                self._epoch(running, event.stats)
            case Finished() if running is not None:
                self._store_history(running)
                self._tell(running, TrialState.COMPLETE, value=event.value)
                self._free(event.worker)
            case Failed() if running is not None:
                self._free(event.worker)
                self._failed(running.trial, kind=event.kind, message=event.message, details=event.details)
            case WorkerDied() if self._interrupted:
                pass  # a SIGTERM to the whole process group: what ran is put back at the end
            case WorkerDied():
                self.state.running.pop(event.worker, None)
                self._idle = [worker for worker in self._idle if worker != event.worker]
                if running is not None:
                    self._failed(running.trial, kind="worker_died", message=event.message)

    def _ready(self, event: Ready) -> None:
        if self.state.dataset is None:
            self.state.dataset = event.dataset
            self._check_dataset()
            self.study.set_user_attr("dataset", dataclasses.asdict(event.dataset))
            self._environment = {"versions": event.versions | coordinator_versions(), "git_commit": git_commit()}
            # Start-up is behind us: what is left is estimated from trials alone.
            self.state.started = time.monotonic()
        self.state.devices[event.worker] = event.device
        self.state.notice = ""
        self._idle.append(event.worker)

    def _check_dataset(self) -> None:
        """Refuse to go on with a study whose finished trials were trained on other data."""
        stored = self.study.user_attrs.get("dataset")
        now = json.loads(json.dumps(dataclasses.asdict(self.state.dataset)))  # type: ignore[arg-type]
        if self.state.num_finished and stored is not None and stored != now:
            changed = ", ".join(f"{key} {stored.get(key)} -> {now[key]}" for key in now if stored.get(key) != now[key])
            raise ConfigError(
                f"the data of the study {self.config.name!r} have changed since its trials were run ({changed}): their "
                "results cannot be compared; --name NAME starts a new study"
            )

    def _free(self, worker: int) -> None:
        self.state.running.pop(worker, None)
        self._idle.append(worker)

    def _started(self, running: RunningTrial, event: Started) -> None:
        attributes = {
            "num_parameters": event.num_parameters,
            "flops": event.flops,
            "device": self.state.devices[event.worker],
            "environment": self._environment,
        }
        for key, value in attributes.items():
            running.trial.set_user_attr(key, value)

    def _epoch(self, running: RunningTrial, stats: EpochStats) -> None:
        running.history.append(stats)
        running.trial.report(stats.val_accuracy, step=stats.epoch)
        if stats.epoch < running.config.train.epochs and running.trial.should_prune():
            self._store_history(running)
            self._tell(running, TrialState.PRUNED)
            del self.state.running[running.worker]
            self.executor.stop_trial(running.worker)

    def _store_history(self, running: RunningTrial) -> None:
        running.trial.set_user_attr("history", [dataclasses.asdict(stats) for stats in running.history])
        running.trial.set_user_attr("seconds", time.monotonic() - running.handed_out)

    def _tell(self, running: RunningTrial, state: TrialState, *, value: float | None = None) -> None:
        told = self.study.tell(running.trial, value, state=state)
        self._same_failures.clear()
        if state == TrialState.PRUNED:
            self.state.num_pruned += 1
            return
        self.state.num_complete += 1
        if self.state.best is None or rank_order(told) < rank_order(self.state.best):
            self.state.best = told

    def _failed(self, trial: optuna.Trial, *, kind: str, message: str, details: str = "") -> None:
        """Record a failure, try the configuration again where that can help, stop where it is always the same."""
        if details:
            trial.set_user_attr("traceback", details)
        self.state.num_failed += 1
        attempt = trial.user_attrs.get("attempt", 1)
        # The same configuration diverges again, and cannot be built again.
        if attempt < MAX_ATTEMPTS and kind not in ("non_finite_loss", "invalid_configuration"):
            frozen = self.study.get_trials(deepcopy=False)[trial.number]
            put_back(self.study, frozen, kind=kind, message=message, attempt=attempt + 1)
            self.state.end = None  # a grid that seemed exhausted is not
        else:
            fail(self.study, trial.number, kind=kind, message=message)
        # The same bug may name other sizes in each trial.
        bug = f"{kind}: {re.sub('[0-9]+', '#', message)}"
        self._same_failures = [item for item in self._same_failures if item[0] == bug]
        self._same_failures.append((bug, trial.user_attrs.get("retry_of", trial.number)))
        most = MAX_SAME_FAILURES.get(kind, DEFAULT_MAX_SAME_FAILURES)
        if len({origin for _, origin in self._same_failures}) >= most:
            raise SearchError(
                f"{most} different trials in a row failed in the same way, the search stops: {kind}: {message}"
            )


def coordinator_versions() -> dict[str, str]:
    """Versions of what runs in the coordinator."""
    return {name: importlib.metadata.version(name) for name in ("fbsearch", "optuna")}


@functools.cache
def git_commit() -> str | None:
    """The commit of fbsearch's own checkout, with + where it has changes; None where it is installed as a package."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no git here, or a checkout without a commit
    return commit.stdout.strip()
