"""The coordinator of a search: ask Optuna for trials, hand them to workers, store what comes back, prune, tell.

It is the only writer of its trials and runs in one process and one thread. So N means exactly N trials, and a dead
worker is seen at once.
"""

import contextlib
import functools
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
    CannotStart,
    Epoch,
    Event,
    Failed,
    FailureKind,
    Finished,
    Notice,
    Ready,
    Started,
    WorkerDied,
    WorkerLost,
)
from fbsearch.search.failures import MAX_INFEASIBLE_IN_A_ROW, FailurePolicy
from fbsearch.search.final_race import FinalRace
from fbsearch.search.proposals import MAX_DUPLICATES_IN_A_ROW, SURE_FAILURES, InvalidProposal, Proposals
from fbsearch.search.quota import Quota
from fbsearch.search.state import End, SearchState
from fbsearch.search.stop_criterion import StopCriterion
from fbsearch.search.worker_pool import WorkerPool
from fbsearch.study.database import explain, storage_errors
from fbsearch.study.locks import StudyClaim
from fbsearch.study.provenance import coordinator_versions, git_commit
from fbsearch.study.race_result import tell_race_run
from fbsearch.study.retrying_storage import call_on_retry
from fbsearch.study.running_trial import RunningTrial
from fbsearch.study.sampling import should_prune
from fbsearch.study.study import (
    NUM_SHOWN,
    check_classes,
    check_same_dataset,
    flush,
    is_among_best,
    store_dataset,
    store_samples,
    without_details,
)
from fbsearch.study.trial_record import TrialRecord, put_back_running, rank_order, trial_config
from fbsearch.workers.executor import Executor

SECONDS_BETWEEN_LOOKS = 0.5


class Coordinator:
    """One search, until N trials are finished, the timeout is over, or it is interrupted."""

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        executor: Executor,
        *,
        num_trials: int | None,
        timeout: float | None = None,
        start_up_weight: float = 0.0,
        trial_timeout: float | None = None,
        show: Callable[[SearchState, Event | None], None],
        claim: StudyClaim | None = None,
        max_duplicates: int = MAX_DUPLICATES_IN_A_ROW,
        max_infeasible: int = MAX_INFEASIBLE_IN_A_ROW,
        num_with_attention: int = NUM_SHOWN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Search with the workers of `executor` until the study has `num_trials` finished trials, or `timeout` seconds.

        Either can be None: no limit. The timeout is shortened by `start_up_weight` times the seconds until the first
        worker is ready, for what is started after the search and takes as long to start.

        A worker is killed that gives no epoch for `trial_timeout` seconds, or for 10 times the usual epoch if that is
        None. `show` is called with the state and each event, or None. `claim` is the claim on the study; None is that
        of the only coordinator. `max_duplicates` and `max_infeasible` known or too large configurations in a row end
        the search. The attention maps of the `num_with_attention` best trials are stored. `clock` gives the seconds of
        the timeout, and those by which a worker hangs.
        """
        self.study, self.config, self._show = study, config, show
        self._claim = claim or StudyClaim()
        self._pool = WorkerPool(executor, trial_timeout=trial_timeout)
        self.state = SearchState(name=config.name, num_trials=num_trials, pool=self._pool, goals=config.search.goals)
        self._stop_criterion = StopCriterion(timeout=timeout, clock=clock)
        self.state.deadline = self._stop_criterion.deadline
        self._quota = Quota(study, self._claim, self.state)
        self._proposals = Proposals(study, config, quota=self._quota, max_duplicates=max_duplicates)
        self._failure_policy = FailurePolicy(study, config, max_infeasible=max_infeasible)
        self._race = FinalRace(study, self._claim, self.state, num_raced=config.search.final_race)
        self._end_of_search: End | None = None  # why there are no further trials, while the race is run
        self._start_up_weight = start_up_weight
        self._num_with_attention, self._clock = num_with_attention, clock
        self._environment: dict[str, Any] = {}

    def run(self) -> SearchState:
        """Search. At the end, whatever its reason, the workers are killed and running trials are put back."""
        with (
            self._stop_criterion.catch_signals(),
            call_on_retry(self.study, self._while_away),
            without_details(self.study),
        ):
            try:
                self._search()
            except BaseException:
                self._pool.close()
                # The first error is raised. A trial that cannot be put back now is put back at the next start.
                with contextlib.suppress(StorageError), storage_errors("the database"):
                    put_back_running(self.study, self._claim.owns)
                raise
            self._pool.close()
            put_back_running(self.study, self._claim.owns)
        return self.state

    def _search(self) -> None:
        put_back_running(self.study, self._claim.owns)
        self._quota.begin()
        self._race.prepare()
        if not (self.state.is_complete and self._race.is_over):
            self._pool.start()
        while not self._is_over():
            self._hand_out()
            self._receive()
            self._pool.kill_hung(self._clock())
            self._show(self.state, None)
        while self._pool.has_events:  # received while the database was away
            self._receive()
        if self.state.end != "interrupted":
            num_workers = len(self._pool.workers)
            self.state.race_absence = self._race.explain_absence(num_workers=num_workers)

    def _is_over(self) -> bool:
        """Check the reasons to stop, and store the one that holds. But for two of them the final race comes first."""
        end = self._stop_criterion.check(self.state, exhausted=self._proposals.exhausted)
        self.state.num_distinct = self._proposals.num_distinct
        if end not in ("interrupted", "timeout"):
            must_race = self._race.must_begin(self._stop_criterion, num_workers=len(self._pool.workers))
            self._end_of_search = self._end_of_search or end or ("timeout" if must_race else None)
            if self._end_of_search is not None:
                self._race.advance()
                end = self._end_of_search if self._race.is_over else None
        self.state.end = end
        return end is not None

    def _while_away(self, error: BaseException) -> bool:
        """Go on receiving while the database is away, so that no worker waits; return False to give up."""
        self.state.away = explain(error).partition(";")[0]
        self._pool.receive(timeout=0)
        self._show(self.state, None)
        return not self._stop_criterion.is_interrupted

    def _hand_out(self) -> None:
        """Ask for a trial for each idle worker, until there is none."""
        while (worker := self._pool.find_idle()) is not None:
            try:
                proposed = self._propose()
            except InvalidProposal as error:
                with contextlib.suppress(UpdateFinishedTrialError):  # as below
                    self._fail(error.trial, kind=FailureKind.INVALID_CONFIGURATION, message=str(error))
                return
            except UpdateFinishedTrialError:  # another coordinator put it back while the database was away
                return
            if not self._claim.is_shared:
                self.state.num_duplicates = self._proposals.num_duplicates
            if proposed is None:
                return
            trial, config = proposed
            record = TrialRecord.of(trial)
            self._pool.submit(RunningTrial(trial, config, worker, race_of=record.race_of), alone=record.alone)

    def _propose(self) -> tuple[optuna.Trial, TrialConfig] | None:
        """Return the next trial, or run of the final race; None if there is none now."""
        assert self.state.dataset is not None, "an idle worker has sent its data set"
        image_size = self.state.dataset.image_size
        if self._race.is_running:
            if (trial := self._race.take()) is None:
                return None
            return trial, self._proposals.configure(trial, image_size=image_size)
        if self._proposals.exhausted is not None:
            return None
        return self._proposals.propose(image_size=image_size)

    def _receive(self) -> None:
        """Handle the events of all workers, write what they change, and follow other coordinators of the study."""
        self.state.away = ""
        for event, running in self._pool.events(timeout=SECONDS_BETWEEN_LOOKS):
            try:
                self._handle(event, running)
            except UpdateFinishedTrialError:
                assert running is not None, "only a running trial is ended"
                self._drop(running)
                self._show(self.state, None)  # the event's result does not count
                continue
            self._show(self.state, event)
        ended_by_others = flush(self.study)
        for running in self.state.running.values():
            if running.trial.number in ended_by_others:
                self._drop(running)
        if self._quota.follow_others():
            self._proposals.exhausted = None

    def _drop(self, running: RunningTrial) -> None:
        """Stop a trial that another coordinator has put back because it took this one for dead."""
        self.state.notice = f"trial {running.trial.number} was put back by another coordinator, its result is dropped"
        self._pool.stop(running)

    def _handle(self, event: Event, running: RunningTrial | None) -> None:
        match event:
            case Ready():
                self._ready(event)
            case Notice(text=text):
                self.state.notice = text
            case CannotStart(message=message):
                if self.state.dataset is None:
                    raise SearchError(message)
                self.state.notice = message  # the other workers go on, and this one is started again
            case WorkerDied() | WorkerLost() if self._stop_criterion.is_interrupted:
                pass  # SIGTERM has ended the whole process group; running trials are put back at the end
            case WorkerLost(message=message):
                self.state.notice = message
                if self._pool.is_lost:
                    raise SearchError(f"no worker is left: {message}")
            case Started() if running is not None:
                device = self._pool.workers[event.worker].device
                running.store_start(event, device=device, environment=self._environment)
                self._failure_policy.note_costs(running.trial, event)
            case Epoch() if running is not None:
                self._store_epoch(running, event)
            case Finished() if running is not None:
                self._finish(running, event)
            case Failed(kind=kind, message=message, details=details) if running is not None:
                self._fail(running.trial, kind=kind, message=message, details=details)
            case WorkerDied(kind=kind, message=message) if running is not None:
                self._fail(running.trial, kind=kind, message=message)

    def _ready(self, event: Ready) -> None:
        self.state.notice = ""
        if self.state.dataset is not None:
            where = f"worker {event.worker} ({event.device})"
            check_same_dataset(self.state.dataset, event.dataset, where=where)
            return
        check_classes(self.config, event.dataset)
        self.state.dataset = event.dataset
        with self._claim.lock():
            has_trials = bool(self.state.num_finished or self._claim.num_other_claims())
            store_dataset(self.study, event.dataset, must_be_same=has_trials)
            if event.samples is not None:
                store_samples(self.study, event.samples)
        self._environment = {"versions": event.versions | coordinator_versions(), "git_commit": git_commit()}
        self._stop_criterion.shorten(self._start_up_weight * (time.monotonic() - self.state.started))
        self.state.deadline = self._stop_criterion.deadline
        # The time left is estimated from trials alone, without the start of the workers.
        self.state.started = time.monotonic()

    def _store_epoch(self, running: RunningTrial, event: Epoch) -> None:
        """Store an epoch, and prune the trial if the pruner says so."""
        running.store_epoch(event, num_val=self._num_val)
        if running.race_of is not None:
            return
        if event.stats.epoch < running.config.train.epochs and should_prune(self.study, running.trial):
            running.store_history()
            self._tell(running, TrialState.PRUNED)
            self._pool.stop(running)

    def _finish(self, running: RunningTrial, event: Finished) -> None:
        running.store_history()
        if running.race_of is not None:
            tell_race_run(self.study, running.trial, accuracy=event.value)
            self._failure_policy.reset()
            return
        self._race.note_run(sum(stats.seconds for stats in running.history))
        # Only of the best at this moment: the maps of all trials would be most of the database.
        if event.attention is not None and is_among_best(self.study, event.value, self._num_with_attention):
            running.store_attention(event.attention)
        one = len(running.config.goals) == 1
        values = [event.value] if one else running.final_values(num_val=self._num_val)
        self._tell(running, TrialState.COMPLETE, values=values)

    @property
    def _num_val(self) -> int:
        assert self.state.dataset is not None, "a worker that trains has sent its data set"
        return self.state.dataset.num_val

    def _tell(self, running: RunningTrial, state: TrialState, *, values: list[float] | None = None) -> None:
        told = self.study.tell(running.trial, values, state=state)
        self._proposals.remember(told, running.config)
        self._failure_policy.reset()
        if state == TrialState.PRUNED:
            self.state.num_pruned += 1
            return
        self.state.num_complete += 1
        order = functools.partial(rank_order, directions=self.study.directions)
        if self.state.best is None or order(told) < order(self.state.best):
            self.state.best = told

    def _fail(self, trial: optuna.Trial, *, kind: FailureKind, message: str, details: str = "") -> None:
        outcome = self._failure_policy.record(trial, kind=kind, message=message, details=details)
        if outcome == "infeasible":
            self.state.num_infeasible += 1
        else:
            self.state.num_failed += 1
        if outcome == "again":
            self._proposals.exhausted = None
        elif outcome == "infeasible" or kind in SURE_FAILURES:
            self._proposals.remember(trial, trial_config(trial))
