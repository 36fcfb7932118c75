"""Access to Optuna's storage for optuna-dashboard's page: studies, the best trial, identifiers, attributes, files."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages._cached_storage import _CachedStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from fbsearch.study.queries import study_names
from fbsearch.study.study import best_trials


class FeasibleBest(_CachedStorage):
    """Optuna's cache, with fbsearch's best trial; optuna-dashboard's page asks for that one alone.

    Optuna's own best trial may break constraints, and of equal values it is the first, not the smallest network. If
    every complete trial breaks a constraint, Optuna's is returned: the page cannot show that there is none.
    """

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the studies whose attributes can be read: one that is damaged must not hide the others."""
        try:
            return super().get_all_studies()
        except json.JSONDecodeError:
            found = []
            for name in study_names(self._backend):
                with contextlib.suppress(json.JSONDecodeError):
                    found.append(self._read_study(name))
            return found

    def _read_study(self, name: str) -> FrozenStudy:
        study_id = self.get_study_id_from_name(name)
        return FrozenStudy(
            study_name=name,
            direction=None,
            directions=self.get_study_directions(study_id),
            user_attrs=self.get_study_user_attrs(study_id),
            system_attrs=self.get_study_system_attrs(study_id),
            study_id=study_id,
        )

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        study = optuna.load_study(storage=self, study_name=self.get_study_name_from_id(study_id))
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = {trial.number for trial in trials if all(value <= 0 for value in trial.constraints.values())}
        if study.directions == [optuna.study.StudyDirection.MAXIMIZE] and feasible:
            return next(trial for trial in best_trials(study, len(trials)) if trial.number in feasible)
        return super().get_best_trial(study_id)


class ArtifactFolder(FileSystemArtifactStore):
    """The files of trials in one folder, which may be somebody else's: no link is followed, and no name leads out."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def _check(self, artifact_id: str) -> None:
        if not re.fullmatch("[0-9a-fA-F-]+", artifact_id) or (self._folder / artifact_id).is_symlink():
            raise ArtifactNotFound(f"{artifact_id!r} is no file of {self._folder}")

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file. Raises ArtifactNotFound."""
        self._check(artifact_id)
        return super().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file. Raises ArtifactNotFound for a link."""
        self._check(artifact_id)
        super().write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove a file. Raises ArtifactNotFound."""
        self._check(artifact_id)
        super().remove(artifact_id)


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
