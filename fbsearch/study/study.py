"""The Optuna side of a search: study, sampler, pruner, sampling a point of the space, the best of what is finished.

One coordinator writes; anything may read. Knows nothing of torch. A trial that has to be run again is ended as failed
and its parameters are put into Optuna's queue: a RUNNING trial set back to WAITING would keep its old learning curve.
"""

import collections
import json
from collections.abc import Iterator
from typing import Any

import optuna
import sqlalchemy
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from fbsearch.config.space import NEUTRAL_FIELDS
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError, StorageError
from fbsearch.study.buffered_storage import BufferedStorage
from fbsearch.study.database import hide_password
from fbsearch.study.retrying_storage import patiently
from fbsearch.study.sampling import make_pruner, make_sampler
from fbsearch.study.trial_record import FINISHED, INTERRUPTED, is_duplicate, rank_order

# So many of the best trials are shown with their files.
NUM_SHOWN = 10

optuna.logging.set_verbosity(optuna.logging.WARNING)


def create_study(
    storage: optuna.storages.RDBStorage, config: StudyConfig, *, is_searched: bool = False
) -> optuna.Study:
    """The study of a study file: a new one, or the one of that name to go on with.

    What is set on its running trials is written by `flush`, or with the trial's end.
    ConfigError if what is stored under the name was searched in a different space, on different data, or with a
    different network or training: their values could not be compared. `is_searched` says that other coordinators
    search it now, so that it cannot be changed even before its first trial.
    """
    for _ in config.corners():
        pass  # each is checked as it is made: values that cannot be used together are refused before anything is stored
    batching = BufferedStorage(storage)
    try:
        study = optuna.create_study(storage=batching, study_name=config.name, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=batching, study_name=config.name)
    trials = study.get_trials(deepcopy=False)
    if study.directions != [optuna.study.StudyDirection.MAXIMIZE] or (trials and "config" not in study.user_attrs):
        raise ConfigError(f"the study {config.name!r} was not made by fbsearch; --name NAME starts a new one")
    if trials or (is_searched and "config" in study.user_attrs):
        _check_unchanged(stored_config(study), config)
    study.set_user_attr("config", config.model_dump(mode="json"))
    study.sampler = make_sampler(config.search, num_trials=len(trials))
    study.pruner = make_pruner(config)
    return study


def flush(study: optuna.Study) -> list[int]:
    """Write what was set on running trials; the numbers of those that another coordinator has ended, now forgotten."""
    assert isinstance(study._storage, BufferedStorage), "the study is from create_study"
    return study._storage.flush()


def stored_config(study: optuna.Study) -> StudyConfig:
    """The study file that a study was last searched with. ConfigError if another version's is not readable."""
    try:
        return StudyConfig.model_validate(study.user_attrs["config"])
    except ValidationError:
        raise ConfigError(
            f"the study {study.study_name!r} was made by another version of fbsearch; --name NAME starts a new one"
        ) from None


def load_study(storage: optuna.storages.RDBStorage, name: str | None) -> optuna.Study:
    """The study of that name, or the newest one without a name. StorageError if it is absent, or not fbsearch's."""
    # optuna.get_all_study_summaries would read every trial of every study.
    names = [study.study_name for study in storage.get_all_studies()]
    if not names:
        raise StorageError("there is no study in this database yet; `fbsearch run` makes one")
    if name is not None and name not in names:
        raise StorageError(f"there is no study {name!r} in this database; there are: {', '.join(names)}")
    study = optuna.load_study(storage=storage, study_name=name if name is not None else names[-1])
    if "config" not in study.user_attrs:
        raise StorageError(f"the study {study.study_name!r} was not made by fbsearch; optuna-dashboard shows it")
    return study


def _check_unchanged(stored: StudyConfig, config: StudyConfig) -> None:
    was, now = (dict(_compared(side)) for side in (stored, config))
    changes = [
        f"  {key}: {was.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in was | now
        if key not in NEUTRAL_FIELDS and was.get(key) != now.get(key)
    ]
    if changes:
        raise ConfigError(
            f"the study {config.name!r} in the database was searched with other settings (stored -> now):\n"
            + "\n".join(changes)
            + "\ntheir results cannot be compared; --name NAME starts a new study with these settings"
        )


def _compared(config: StudyConfig) -> Iterator[tuple[str, Any]]:
    sections = config.model_dump(mode="json")
    # The limits too: what the sampler has learned of the old ones stays with the trials.
    sections["search"] = {"limits": sections["search"]["limits"]}
    for section in ("data", "model", "train", "space", "search"):
        for key, value in sections[section].items():
            yield f"{section}.{key}", value


def best_trials(study: optuna.Study, top: int) -> list[FrozenTrial]:
    """The `top` best complete trials, none twice; of equal values the one with fewer parameters comes first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted((trial for trial in complete if not is_duplicate(trial)), key=rank_order)[:top]


def is_among_best(study: optuna.Study, value: float, top: int) -> bool:
    """Whether a trial that is about to end with `value` will be among the `top` best complete ones."""
    best = best_trials(study, top)
    return len(best) < top or value >= best[-1].values[0]


def status(study: optuna.Study, *, url: str) -> dict[str, Any]:
    """Where a study stands, in the keys of `fbsearch status --json`; the storage URL without its password.

    Counts in the database and reads the best trial alone: 0.04 s for 10,000 trials, all of which take 17 s to read.
    """
    counts = count_trials(study)
    best = best_trial(study)
    return {
        "study": study.study_name,
        "storage": hide_password(url),
        "num_complete": counts[TrialState.COMPLETE],
        "num_pruned": counts[TrialState.PRUNED],
        "num_failed": counts[TrialState.FAIL],
        "num_running": counts[TrialState.RUNNING],
        "num_waiting": counts[TrialState.WAITING],
        "num_infeasible": counts["infeasible"],
        "num_duplicates": counts["duplicate"],
        "best": best and {"trial": best.number, "value": best.value, "config": best.user_attrs["config"]},
    }


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The trial that best_trials(study, 1) gives, None without one; reads that trial alone."""
    try:
        value = study._storage.get_best_trial(study._study_id).value
    except ValueError:  # no trial is complete
        return None
    assert value is not None
    return study._storage.get_trial(min(_tied_trials(study, value))[-1])


# Optuna's own ways to count trials, or to find those of a value, read every trial with all its attributes, our history
# among them. These two ask its tables.


def count_trials(study: optuna.Study) -> collections.Counter[TrialState | str]:
    """How many trials of a study are in each state, infeasible, or duplicates, from one query; none is counted twice.

    Interrupted ones (is_failure) are not counted at all.
    """
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    # One query, so that no trial ends between two: failed and infeasible ones are told by their reasons.
    is_mark = (attribute.trial_id == trial.trial_id) & (
        ((attribute.key == "failure") & trial.state.in_((TrialState.FAIL, TrialState.PRUNED)))
        | ((attribute.key == "duplicate_of") & trial.state.in_(FINISHED))
    )
    query = (
        sqlalchemy.select(trial.state, attribute.key, attribute.value_json, sqlalchemy.func.count())
        .select_from(sqlalchemy.outerjoin(trial, attribute, is_mark))
        .where(trial.study_id == study._study_id)
        .group_by(trial.state, attribute.key, attribute.value_json)
    )
    counts: collections.Counter[TrialState | str] = collections.Counter()
    for state, key, mark, count in _rows(study, query):
        if key == "duplicate_of":
            counts["duplicate"] += count
        elif key == "failure" and state == TrialState.PRUNED:
            counts["infeasible"] += count
        elif mark is None or json.loads(mark).get("kind") != INTERRUPTED:
            counts[state] += count
    return counts


def _tied_trials(study: optuna.Study, value: float) -> Iterator[tuple[int, int, int]]:
    """The complete trials of a value, best_trials' order among them first: (num_parameters, number, Optuna's id)."""
    trial, attribute, score = models.TrialModel, models.TrialUserAttributeModel, models.TrialValueModel
    is_size = (attribute.trial_id == trial.trial_id) & (attribute.key == "num_parameters")
    stored, kind = score.value_to_stored_repr(value)
    query = (
        sqlalchemy.select(attribute.value_json, trial.number, trial.trial_id)
        .select_from(sqlalchemy.join(trial, score).outerjoin(attribute, is_size))
        .where(trial.study_id == study._study_id, trial.state == TrialState.COMPLETE)
        .where(score.objective == 0, score.value_type == kind, score.value == stored)
    )
    for size, number, trial_id in _rows(study, query):
        yield (0 if size is None else json.loads(size), number, trial_id)


def _rows(study: optuna.Study, query: sqlalchemy.Executable) -> list[Any]:
    backend = study._storage._backend  # type: ignore[attr-defined]  # a study wraps its RDBStorage in a cache

    def read() -> list[Any]:
        with backend.engine.connect() as connection:
            return list(connection.execute(query))

    return patiently(backend, read)
