"""Exactly N finished trials, however many coordinators search the study."""

import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from fbsearch.search.state import SearchState
from fbsearch.study.locks import StudyClaim
from fbsearch.study.queries import best_trial, count_trials
from fbsearch.study.study import store_search, stored_num_trials

# Between two looks at the trials of the study's other coordinators.
SECONDS_BETWEEN_COUNTS = 2.0


class Quota:
    """Count the trials of the study into the state, and ask for another one only if N are not reached with it."""

    def __init__(self, study: optuna.Study, claim: StudyClaim, state: SearchState) -> None:
        self._study, self._claim, self._state = study, claim, state
        self._num_waiting, self._counted = 0, 0.0

    def begin(self) -> None:
        """Count; store how many trials are wanted, the maximum over the coordinators that run now, and who searches.

        Trials that a dead coordinator has left are put back before: only then those that had failed are counted so.
        """
        self.count()
        self._state.num_finished_before = self._state.num_finished
        wanted = self._state.num_trials
        with self._claim.lock():
            if wanted is not None and self._claim.num_other_claims():
                wanted = max(stored_num_trials(self._study) or 0, wanted)
            store_search(self._study, num_trials=wanted)

    def count(self) -> None:
        """Read the counts and the best trial from the database; after that, only other coordinators change them."""
        state, counts, self._counted = self._state, count_trials(self._study), time.monotonic()
        state.num_complete, state.num_pruned = counts[TrialState.COMPLETE], counts[TrialState.PRUNED]
        state.num_failed, self._num_waiting = counts[TrialState.FAIL], counts[TrialState.WAITING]
        state.num_infeasible, state.num_duplicates = counts["infeasible"], counts["duplicate"]
        if self._claim.is_shared:  # else what runs elsewhere was left by a dead coordinator, and will be put back
            state.num_running_elsewhere = max(0, counts[TrialState.RUNNING] - len(state.running))
        state.best = best_trial(self._study)

    def follow_others(self) -> bool:
        """Count anew, and put back the trials of dead coordinators, now and then; True if trials were put back."""
        if not self._claim.is_shared or time.monotonic() - self._counted < SECONDS_BETWEEN_COUNTS:
            return False
        is_put_back = self._claim.put_back_abandoned(self._study) > 0
        self.count()
        return is_put_back or self._num_waiting > 0

    def ask(self, fill_queue: Callable[[], bool]) -> optuna.Trial | None:
        """Take the next trial of the study; None if N are reached, or `fill_queue` says that there is none."""
        while self._has_room():
            with self._claim.lock():
                if self._claim.is_shared:
                    self.count()
                    # The lock ends with the server: then another coordinator may have counted the same place.
                    if not (self._claim.holds_lock() and self._has_room()):
                        continue
                return self._claim.ask(self._study) if fill_queue() else None
        return None

    def _has_room(self) -> bool:
        state = self._state
        return state.num_trials is None or state.num_finished + state.num_running < state.num_trials
