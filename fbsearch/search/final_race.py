"""The final race of a search: run the best configurations again with new seeds, and name the best mean."""

import math

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.durations import format_duration
from fbsearch.search.state import SearchState
from fbsearch.search.stop_criterion import StopCriterion
from fbsearch.study.locks import StudyClaim
from fbsearch.study.queries import best_trial
from fbsearch.study.race_result import (
    RaceResult,
    accuracies_of,
    clear_race,
    enqueue_race_run,
    race_runs,
    read_race,
    store_race,
)
from fbsearch.study.trial_record import TrialRecord, is_duplicate, rank_order

# Of each raced configuration, in addition to its own.
NUM_NEW_RUNS = 2
# A race that would need more of a search's time is left out.
MAX_SHARE = 0.25
# Runs take different times, and a worker may have just begun with another trial.
SLACK = 1.2


class FinalRace:
    """The race among the best `num_raced` trials of a study, which all its coordinators run together.

    What is left to do is read from the study each time: whoever is killed, or comes later, goes on with it.
    """

    def __init__(self, study: optuna.Study, claim: StudyClaim, state: SearchState, *, num_raced: int) -> None:
        self._study, self._claim, self._state = study, claim, state
        self._num_raced = num_raced
        self._raced: list[FrozenTrial] = []
        self._seconds = 0.0  # of the longest whole run
        self.is_running = False
        self.is_over = num_raced < 2

    def prepare(self) -> None:
        """Forget the result of a race where further trials are searched; else take it over."""
        if self._state.is_complete:
            self._state.race = read_race(self._study)
            self.is_over |= self._state.race is not None
        else:
            clear_race(self._study)

    def note_run(self, seconds: float) -> None:
        """Note the seconds of a whole run, from which those of the race are estimated."""
        self._seconds = max(self._seconds, seconds)

    def must_begin(self, stop: StopCriterion, *, num_workers: int) -> bool:
        """Return True if the time left is that of the race, by the runs so far, and not too large a share of all."""
        if self.is_over or self._state.num_complete < 2:
            return False
        needed = self._estimate_seconds(num_workers)
        return stop.seconds_left <= needed <= MAX_SHARE * stop.timeout

    def _estimate_seconds(self, num_workers: int) -> float:
        rounds = math.ceil(self._num_raced * NUM_NEW_RUNS / num_workers) + 1
        return SLACK * rounds * self._seconds

    def explain_absence(self, *, num_workers: int) -> str:
        """Return why the race of a search that is over has named no trial; empty if it has, or was not asked for."""
        if self._num_raced < 2 or self._state.race is not None:
            return ""
        if self._state.num_complete < 2:
            return "no final race: fewer than two trials are complete"
        if self.is_over:
            return "the final race names nobody: fewer than two configurations have come to the end of all their runs"
        if self.is_running:
            return "the final race names nobody: the time was over before its last run"
        needed = format_duration(self._estimate_seconds(num_workers))
        return f"no final race: it would have taken about {needed}, more than a quarter of the search's time"

    def advance(self) -> None:
        """Begin the race, or see whether it is over, and then store its result."""
        if self.is_over:
            return
        if not self.is_running:
            self._begin()
        runs = race_runs(self._study)
        own = [run for trial in self._raced for run in runs.get(trial.number, [])]
        num_left = sum(not run.state.is_finished() for run in own)
        if num_left > 0:
            self._state.notice = f"final race among the best {len(self._raced)}: {num_left} runs are left"
            return
        self._state.notice = ""
        self._name(runs)

    def _begin(self) -> None:
        """Choose the best trials, and put what their runs lack into the queue, where it is not yet."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = sorted((trial for trial in complete if not is_duplicate(trial)), key=rank_order)
        self._raced, self.is_running = best[: self._num_raced], True
        if len(self._raced) < 2:
            self._raced = []
            return
        with self._claim.lock():
            runs = race_runs(self._study)
            for trial in self._raced:
                # A run that is tried again has a trial for each attempt.
                first = [run for run in runs.get(trial.number, []) if TrialRecord.of(run).retry_of is None]
                for _ in range(NUM_NEW_RUNS - len(first)):
                    enqueue_race_run(self._study, trial)

    def take(self) -> optuna.Trial | None:
        """Take the next run of the race; None if all are taken."""
        raced = {trial.number for trial in self._raced}
        with self._claim.lock():
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                if TrialRecord.of(trial).race_of in raced and (taken := self._claim.take(self._study, trial)):
                    return taken
        return None

    def _name(self, runs: dict[int, list[FrozenTrial]]) -> None:
        """Store the means of the trials whose runs have all ended well, and name the best."""
        self.is_running, self.is_over = False, True
        found = {trial.number: accuracies_of(runs.get(trial.number, [])) for trial in self._raced}
        result = RaceResult(
            {
                trial.number: (trial.values[0], *found[trial.number])
                for trial in self._raced
                if len(found[trial.number]) >= NUM_NEW_RUNS
            }
        )
        if len(result.accuracies) > 1:
            store_race(self._study, result)
            self._state.race, self._state.best = result, best_trial(self._study)
