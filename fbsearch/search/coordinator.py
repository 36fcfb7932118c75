"""The coordinator: asks Optuna for trials, hands them to workers, stores what comes back, prunes, tells.

The only writer of its trials, in one process and one thread: so N means exactly N, and a dead worker is seen at once.
Knows nothing of torch and nothing of the screen; who wants to look is called with the state after every change.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import SearchError, StorageError
from fbsearch.messages import (
    OVER_LIMITS,
    CannotStart,
    Epoch,
    Event,
    Failed,
    Finished,
    Notice,
    Ready,
    Started,
    Stopped,
    WorkerDied,
    WorkerLost,
)
from fbsearch.search.failures import Faults
from fbsearch.search.hang_detector import Silence
from fbsearch.search.interruption import Interruption
from fbsearch.search.proposals import SURE_FAILURES, Proposals, Unusable
from fbsearch.search.state import SearchState
from fbsearch.study.database import explain, storage_errors
from fbsearch.study.locks import Alone, Crew, describe_process
from fbsearch.study.provenance import check_same_data, coordinator_versions, git_commit
from fbsearch.study.retrying_storage import while_away
from fbsearch.study.study import NUM_SHOWN, best_trial, count_trials, flush, is_among_best
from fbsearch.study.trial_record import (
    OverLimits,
    RunningTrial,
    put_back_running,
    rank_order,
    set_constraints,
    tell_infeasible,
)
from fbsearch.workers.executor import Executor

SECONDS_BETWEEN_LOOKS = 0.5
# The same at what other coordinators of the study have done.
SECONDS_BETWEEN_COUNTS = 2.0


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
        trial_timeout: float | None = None,
        show: Callable[[SearchState, Event | None], None],
        crew: Crew | None = None,
    ) -> None:
        """`num_trials` counts what the study holds already; `timeout` is in seconds from now.

        A worker is ended that gives no epoch for `trial_timeout` seconds, or for 10 times the usual epoch. `crew` are
        the study's coordinators; None is this one alone.
        """
        self.study, self.config, self.executor, self._show = study, config, executor, show
        self._crew = crew or Alone()
        self.state = SearchState(name=config.name, num_trials=num_trials, num_workers=executor.num_workers)
        self._count()
        self.state.num_finished_before = self.state.num_finished
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._idle: list[int] = []
        self._busy: set[int] = set()
        self._lost: set[int] = set()
        self._alone: dict[str, int] = {}  # the worker that has, or waits for, a device to itself
        self._hung: dict[int, int] = {}  # by worker, the trial for which it was ended
        self._backlog: list[Event] = []
        self._silence = Silence(trial_timeout=trial_timeout)
        self._faults = Faults(study)
        self._environment: dict[str, Any] = {}
        self._proposals = Proposals(study, config)
        self._over_limits = OverLimits()
        self._interruption = Interruption()

    def run(self) -> SearchState:
        """Search. Running trials are put back when it ends early, whatever the reason; workers are ended always."""
        with self._interruption.heard(), while_away(self.study, self._while_away):
            try:
                put_back_running(self.study, self._crew.is_own)
                self._announce()
                if self.state.num_finished < self.state.num_trials:
                    self._silence.start(range(self.executor.num_workers))
                    self.executor.start()
                while self._go_on():
                    self._hand_out()
                    for event in self._receive():
                        self._handle(event)
                        self._show(self.state, event)
                    self._write()
                    self._end_silent()
                    self._show(self.state, None)
                while self._backlog:  # it came while the database was away, and the time was over with that
                    for event in self._receive():
                        self._handle(event)
                    self._write()
            except BaseException:
                self.executor.close()
                # What stopped the search is what is said. What cannot be put back now is at the next start.
                with contextlib.suppress(StorageError), storage_errors("the database"):
                    put_back_running(self.study, self._crew.is_own)
                raise
            self.executor.close()
            put_back_running(self.study, self._crew.is_own)
        return self.state

    def _receive(self) -> list[Event]:
        """What workers have said: first what came while the database was away."""
        self.state.away = ""
        events, self._backlog = self._backlog, []
        return events or self._listen(SECONDS_BETWEEN_LOOKS)

    def _listen(self, timeout: float) -> list[Event]:
        events = self.executor.events(timeout=timeout)
        for event in events:
            self._silence.hear(event)
        return events

    def _while_away(self, error: BaseException) -> bool:
        """Go on listening while the database is away, so that no worker waits and nothing is lost; until Ctrl-C."""
        self.state.away = explain(error).partition(";")[0]
        self._backlog += self._listen(0)
        self._show(self.state, None)
        return not self._interruption.is_asked

    def _end_silent(self) -> None:
        """End the workers that hang; WorkerDied will follow."""
        for worker, reason in self._silence.look(time.monotonic()):
            running = self.state.running.get(worker)
            self._hung[worker] = -1 if running is None else running.trial.number
            self._silence.start([worker])
            self.executor.kill(worker, reason=reason)

    def _announce(self) -> None:
        """Say in the study until how many trials it is searched: the most that any of its coordinators was told."""
        with self._crew.turn():
            told = self.study.user_attrs.get("num_trials", 0) if self._crew.num_others() else 0
            self.study.set_user_attr("num_trials", max(told, self.state.num_trials))
            self.study.set_user_attr("coordinator", describe_process())  # whom to name to another one, on SQLite

    def _write(self) -> None:
        """Write what has come in; look after what the study's other coordinators have done, or left undone."""
        lost = flush(self.study)
        for running in [running for running in self.state.running.values() if running.trial.number in lost]:
            self._lose(running)
        if self._crew.is_shared and time.monotonic() - self._counted >= SECONDS_BETWEEN_COUNTS:
            if self._crew.put_back_orphans(self.study):
                self.state.end = None  # a grid that seemed exhausted is not
            self._count()
            if self._num_waiting and self.state.end in ("grid_exhausted", "space_exhausted"):
                self.state.end = None  # another coordinator has put trials back

    def _count(self) -> None:
        """Take from the database how far the study is; then only what others do changes it behind our back."""
        state, counts, self._counted = self.state, count_trials(self.study), time.monotonic()
        state.num_complete, state.num_pruned = counts[TrialState.COMPLETE], counts[TrialState.PRUNED]
        state.num_failed, self._num_waiting = counts[TrialState.FAIL], counts[TrialState.WAITING]
        state.num_infeasible, state.num_duplicates = counts["infeasible"], counts["duplicate"]
        state.num_running_elsewhere = max(0, counts[TrialState.RUNNING] - len(state.running))
        state.best = best_trial(self.study)

    def _go_on(self) -> bool:
        state = self.state
        if self._interruption.is_asked:
            state.end = "interrupted"
        elif state.num_finished >= state.num_trials:
            state.end = "finished"
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            state.end = "timeout"
        elif state.end in ("grid_exhausted", "space_exhausted"):
            return self._num_running > 0
        return state.end is None

    @property
    def _num_running(self) -> int:
        """Of all coordinators; what runs before a search that is alone is put back."""
        elsewhere = self.state.num_running_elsewhere if self._crew.is_shared else 0
        return len(self.state.running) + elsewhere

    def _hand_out(self) -> None:
        for worker in list(self._idle):
            if self.state.end is not None or not self._has_room():
                break
            # A trial that needs its device for itself waits until it is free, and the others then wait for it.
            if self.state.devices[worker] not in self._alone:
                if not self._ask(worker):
                    break
                self._idle.remove(worker)
        for device, worker in self._alone.items():
            others = {other for other in self._busy - {worker} if self.state.devices.get(other) == device}
            if not others and worker not in self._busy:
                self._submit(self.state.running[worker])

    def _submit(self, running: RunningTrial) -> None:
        if any(event.worker == running.worker for event in self._backlog):
            return  # it died while the database was away: its WorkerDied comes next, and puts the trial back
        running.handed_out = time.monotonic()
        self._busy.add(running.worker)
        self._silence.submit(running.worker)
        self.executor.submit(running.worker, running.trial.number, running.config)

    def _has_room(self) -> bool:
        return self.state.num_finished + self._num_running < self.state.num_trials

    def _take(self) -> optuna.Trial | None:
        """The next trial; None where the places are taken, or the grid is exhausted (`Proposals.end`)."""
        while True:
            with self._crew.turn():
                if self._crew.is_shared:
                    self._count()
                    if not self._crew.has_turn():
                        continue  # the server was away: another coordinator may have counted the same place free
                    if not self._has_room():
                        return None
                return self._crew.ask(self.study) if self._proposals.fill_queue() else None

    def _ask(self, worker: int) -> bool:
        """Give a worker the next trial; False if there is none, or it cannot be built."""
        assert self.state.dataset is not None, "a worker that is idle has said what its data is"
        try:
            proposed = self._proposals.next(self._take, image_size=self.state.dataset.image_size)
        except Unusable as error:
            self._failed(error.trial, kind="invalid_configuration", message=str(error))
            return False
        if not self._crew.is_shared:
            self.state.num_duplicates = self._proposals.num_duplicates
        if proposed is None:
            self.state.end, self.state.num_distinct = self._proposals.end, len(self._proposals.known)
            return False
        trial, config = proposed
        running = self.state.running[worker] = RunningTrial(trial, config, worker)
        if trial.user_attrs.get("alone"):
            self._alone[self.state.devices[worker]] = worker
        else:
            self._submit(running)
        return True

    def _handle(self, event: Event) -> None:
        running = self.state.running.get(event.worker)
        try:
            self._dispatch(event)
        except UpdateFinishedTrialError:
            assert running is not None, "only a running trial is ended"
            self._lose(running, is_ended=isinstance(event, Finished))

    def _lose(self, running: RunningTrial, *, is_ended: bool = False) -> None:
        """Drop a trial that another coordinator has put back, taking this one for dead: its result counts there."""
        worker = running.worker
        self.state.notice = f"trial {running.trial.number} was put back by another coordinator, its result is dropped"
        if self.state.running.pop(worker, None) is None:
            return  # told before what is known now
        if is_ended or worker not in self._busy:
            self._free(worker)
        else:
            self.executor.stop_trial(worker)

    def _dispatch(self, event: Event) -> None:
        running = self.state.running.get(event.worker)
        match event:
            case CannotStart(message=message):
                if self.state.dataset is None:
                    raise SearchError(message)
                self.state.notice = message  # the others go on, and it is started again
            case Ready():
                self._ready(event)
            case Notice(text=text):
                self.state.notice = text
            case Stopped() | Finished() | Failed() if running is None:
                self._free(event.worker)  # the end of a trial that was pruned
            case Started() if running is not None:
                self._started(running, event)
            case Epoch() if running is not None:
                self._epoch(running, event)
            case Finished() if running is not None:
                running.store_history()
                self._store_attention(running, event)
                self._tell(running, TrialState.COMPLETE, value=event.value)
                self._free(event.worker)
            case Failed(kind=kind) if running is not None and kind == OVER_LIMITS:
                self._free(event.worker)
                self._infeasible(running, event.message)
            case Failed() if running is not None:
                self._free(event.worker)
                self._failed(running.trial, kind=event.kind, message=event.message, details=event.details)
            case WorkerDied() | WorkerLost() if self._interruption.is_asked:
                pass  # a SIGTERM to the whole process group: what ran is put back at the end
            case WorkerDied(kind=kind, message=message):
                self._worker_gone(event.worker)
                hung = self._hung.pop(event.worker, None)
                if running is not None:
                    kind = "hung" if hung == running.trial.number else kind
                    self._failed(running.trial, kind=kind, message=message)
            case WorkerLost(message=message):
                self._worker_gone(event.worker)
                self._lost.add(event.worker)
                self.state.notice = message
                if len(self._lost) == self.executor.num_workers:
                    raise SearchError(f"no worker is left: {message}")

    def _worker_gone(self, worker: int) -> None:
        self._free(worker)
        self._idle.remove(worker)
        self.state.devices.pop(worker, None)

    def _ready(self, event: Ready) -> None:
        if self.state.dataset is None:
            self.state.dataset = event.dataset
            with self._crew.turn():
                if self.state.num_finished or self._crew.num_others():
                    check_same_data(self.config.name, self.study.user_attrs.get("dataset"), event.dataset)
                self.study.set_user_attr("dataset", dataclasses.asdict(event.dataset))
            self._environment = {"versions": event.versions | coordinator_versions(), "git_commit": git_commit()}
            # Start-up is behind us: what is left is estimated from trials alone.
            self.state.started = time.monotonic()
        self.state.devices[event.worker] = event.device
        self.state.notice = ""
        self._idle.append(event.worker)

    def _free(self, worker: int) -> None:
        self.state.running.pop(worker, None)
        self._busy.discard(worker)
        self._alone = {device: other for device, other in self._alone.items() if other != worker}
        self._idle = [other for other in self._idle if other != worker] + [worker]

    def _started(self, running: RunningTrial, event: Started) -> None:
        running.store_start(event, device=self.state.devices[event.worker], environment=self._environment)
        excess = running.config.limits.excess(event.costs)
        set_constraints(self.study, running.trial, excess)
        self._over_limits.note(event.costs, excess)

    def _infeasible(self, running: RunningTrial, message: str) -> None:
        """End a trial whose cost is over the limits, and the search where nothing else is drawn."""
        tell_infeasible(self.study, running.trial, constraints={}, kind=OVER_LIMITS, message=message)
        self._proposals.known.add(running.trial, running.config)
        self.state.num_infeasible += 1
        if self.config.search.sampler != "grid":  # which has an end of its own
            self._over_limits.check(running.config.limits)

    def _epoch(self, running: RunningTrial, event: Epoch) -> None:
        running.store_epoch(event)
        if event.stats.epoch < running.config.train.epochs and running.trial.should_prune():
            running.store_history()
            self._tell(running, TrialState.PRUNED)
            del self.state.running[running.worker]
            self.executor.stop_trial(running.worker)

    def _store_attention(self, running: RunningTrial, event: Finished) -> None:
        """Keep the maps of the best at this moment only: of all trials they would be most of the database."""
        if event.attention is not None and is_among_best(self.study, event.value, NUM_SHOWN):
            running.trial.set_user_attr("attention", dataclasses.asdict(event.attention))

    def _tell(self, running: RunningTrial, state: TrialState, *, value: float | None = None) -> None:
        told = self.study.tell(running.trial, value, state=state)
        self._proposals.known.add(told, running.config)
        self._faults.none()
        if state == TrialState.PRUNED:
            self.state.num_pruned += 1
            return
        self.state.num_complete += 1
        if self.state.best is None or rank_order(told) < rank_order(self.state.best):
            self.state.best = told

    def _failed(self, trial: optuna.Trial, *, kind: str, message: str, details: str = "") -> None:
        outcome = self._faults.record(trial, kind=kind, message=message, details=details)
        if outcome == "infeasible":
            self.state.num_infeasible += 1
        else:
            self.state.num_failed += 1
        if outcome == "again":
            self.state.end = None  # a grid that seemed exhausted is not
        elif outcome == "infeasible" or kind in SURE_FAILURES:
            self._proposals.known.add(trial, TrialConfig.model_validate(trial.user_attrs["config"]))
