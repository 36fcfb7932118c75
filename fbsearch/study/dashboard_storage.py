"""Access to Optuna's storage for optuna-dashboard's page: the best trial, identifiers, and system attributes."""

from typing import Any

import optuna
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState

from fbsearch.study.study import best_trials


class FeasibleBest(_CachedStorage):
    """Optuna's cache, with fbsearch's best trial; optuna-dashboard's page asks for that one alone.

    Optuna's own best trial may break constraints, and of equal values it is the first, not the smallest network. If
    every complete trial breaks a constraint, Optuna's is returned: the page cannot show that there is none.
    """

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        study = optuna.load_study(storage=self, study_name=self.get_study_name_from_id(study_id))
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = {trial.number for trial in trials if all(value <= 0 for value in trial.constraints.values())}
        if study.directions == [optuna.study.StudyDirection.MAXIMIZE] and feasible:
            return next(trial for trial in best_trials(study, len(trials)) if trial.number in feasible)
        return super().get_best_trial(study_id)


def trial_id(trial: FrozenTrial) -> int:
    """Return the number that identifies a trial in its database, by which optuna-dashboard names files."""
    return trial._trial_id


def editable_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """Return the trial as optuna-dashboard's functions take it to write on it."""
    return optuna.Trial(study, trial._trial_id)


def read_system_attributes(study: optuna.Study) -> dict[str, Any]:
    """Return the system attributes of a study, where optuna-dashboard keeps notes and the names of files."""
    return study._storage.get_study_system_attrs(study._study_id)


def write_system_attribute(study: optuna.Study, key: str, value: str) -> None:
    """Set a system attribute of a study."""
    study._storage.set_study_system_attr(study._study_id, key, value)
