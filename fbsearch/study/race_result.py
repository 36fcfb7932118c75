"""The final race of a study: the best configurations are trained again with new seeds before one of them is named.

A run of the race is a trial of the study with the raced trial's parameters and `race_of`. It ends as PRUNED, with its
accuracy in `race_accuracy`, and counts neither towards N nor as pruned: so the complete trials stay those of the
search, and Optuna's best trial the search's. The result is an attribute of the study. It is there once the race is
over, and gone as soon as further trials are searched.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.errors import StorageError
from fbsearch.study.trial_record import RACE_OF, TrialRecord, rank_order

FINAL_RACE = "final_race"


@dataclass(frozen=True)
class RaceResult:
    """The accuracies of the raced trials by their numbers: of each its own first, then those of its new runs."""

    accuracies: dict[int, tuple[float, ...]]

    @property
    def num_runs(self) -> int:
        """Return the number of runs of each raced trial, its own included: the least, should they differ."""
        return min(map(len, self.accuracies.values()))

    def mean(self, number: int) -> float:
        """Return the mean accuracy of a raced trial's runs."""
        return statistics.fmean(self.accuracies[number])

    def as_list(self) -> list[dict[str, Any]]:
        """Return the raced trials for `--json`, the best mean first."""
        order = sorted(self.accuracies, key=self.mean, reverse=True)
        return [{"trial": n, "mean": self.mean(n), "accuracies": list(self.accuracies[n])} for n in order]

    def rank_order(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Return the sort key of complete trials: the raced ones first, by their means, then the others."""
        if trial.number in self.accuracies:
            return (0, -self.mean(trial.number), *rank_order(trial))
        return (1, 0, *rank_order(trial))

    def describe(self, number: int) -> str:
        """Return how the trial was chosen: `chosen among 4 by 3 runs each: 99.30% on average`."""
        means = f"{self.mean(number):.2%} on average"
        return f"chosen among {len(self.accuracies)} by {self.num_runs} runs each: {means}"


def read_race(study: optuna.Study) -> RaceResult | None:
    """Return the result of the race that has named the best trial; None without one. StorageError if it is damaged."""
    try:
        found: Any = study.user_attrs.get(FINAL_RACE)
        if not found:
            return None
        return RaceResult({int(number): tuple(map(float, values)) for number, values in found.items()})
    except (AttributeError, TypeError, ValueError):
        raise StorageError(
            f"the study {study.study_name!r} is damaged: its attribute {FINAL_RACE!r} is no race"
        ) from None


def store_race(study: optuna.Study, result: RaceResult) -> None:
    """Store the result of a race that is over."""
    study.set_user_attr(FINAL_RACE, {str(number): values for number, values in result.accuracies.items()})


def clear_race(study: optuna.Study) -> None:
    """Remove the result: further trials are searched, and nobody is named before they have ended."""
    if study.user_attrs.get(FINAL_RACE):
        study.set_user_attr(FINAL_RACE, {})


def race_runs(study: optuna.Study) -> dict[int, list[FrozenTrial]]:
    """Return all runs of races, of those that failed each attempt, by the number of the raced trial."""
    runs: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if RACE_OF in trial.user_attrs:
            runs.setdefault(trial.user_attrs[RACE_OF], []).append(trial)
    return runs


def accuracies_of(runs: list[FrozenTrial]) -> list[float]:
    """Return the accuracies of the runs that have come to their end."""
    found = (TrialRecord.of(run).race_accuracy for run in runs)
    return [accuracy for accuracy in found if accuracy is not None]


def enqueue_race_run(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put another run of a complete trial's configuration into the queue."""
    study.enqueue_trial(trial.params, user_attrs=TrialRecord(race_of=trial.number).attributes())


def take_waiting(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial | None:
    """Take a certain trial out of the queue, as `ask` takes the first; None if another process was quicker."""
    try:
        if not study._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
            return None
    except optuna.exceptions.UpdateFinishedTrialError:
        return None
    return optuna.Trial(study, trial._trial_id)


def tell_race_run(study: optuna.Study, trial: optuna.Trial, *, accuracy: float) -> None:
    """End a running trial as a run of the race. It does not count towards N."""
    TrialRecord(race_accuracy=accuracy).store(trial)
    study.tell(trial, state=TrialState.PRUNED)
