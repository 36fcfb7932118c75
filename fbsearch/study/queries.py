"""Queries of Optuna's tables: counts of trials and the best one, without reading every trial; in memory they are read.

Optuna's own ways to count trials, or to find those of a value, read every trial with all its attributes and histories:
17 s for 10,000 trials, where these queries take 0.04 s. To read every trial takes 250 MiB more than it must.
"""

import collections
import datetime
import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fbsearch.messages import FailureKind
from fbsearch.study.race_result import read_race
from fbsearch.study.retrying_storage import retry
from fbsearch.study.trial_record import (
    DUPLICATE_OF,
    FAILURE,
    FINISHED,
    NUM_PARAMETERS,
    RACE_ACCURACY,
    is_duplicate,
    is_failure,
    is_infeasible,
    is_race_run,
    rank_order,
)

TRIALS_A_READ = 500
_KINDS = {"duplicate": is_duplicate, "infeasible": is_infeasible, "race": is_race_run}


def read_trials(study: optuna.Study, *, trials_a_read: int = TRIALS_A_READ) -> None:
    """Read a study's trials into Optuna's cache, `trials_a_read` at a time, of which `get_trials` then takes them.

    Optuna reads all at once, which for 10,000 trials takes 250 MiB that are free again a moment later.
    """
    cached, study_id, trial = study._storage, study._study_id, models.TrialModel
    if not isinstance(cached, _CachedStorage):
        return  # the study lives in memory
    found = _rows(study, sqlalchemy.select(trial.trial_id, trial.state).where(trial.study_id == study_id))
    finished = sorted(trial_id for trial_id, state in found if state.is_finished())
    with cached._lock:
        there = cached._studies.setdefault(study_id, _StudyInfo())
        there.unfinished_trial_ids |= {trial_id for trial_id, state in found if not state.is_finished()}
        for start in range(0, len(finished), trials_a_read):
            part = finished[start : start + trials_a_read]
            if part[-1] > there.last_finished_trial_id:
                read = cached._backend._get_trials(study_id, None, set(part), finished[-1])
                cached._add_trials_to_cache(study_id, read)
                there.last_finished_trial_id = part[-1]


def study_names(storage: optuna.storages.RDBStorage) -> list[str]:
    """Return the names of all studies, the oldest first. Optuna's way reads the attributes of all, damaged ones too."""
    study = models.StudyModel
    return [name for (name,) in _read(storage, sqlalchemy.select(study.study_name).order_by(study.study_id))]


class StudyRow(NamedTuple):
    """A study as the database lists it. `last` is when the last of its trials began or ended."""

    study_id: int
    name: str
    is_ours: bool
    num_trials: int
    last: datetime.datetime | None


def list_rows(storage: optuna.storages.RDBStorage, *, mark: str) -> list[StudyRow]:
    """Return a row for each study, the oldest first; fbsearch's have the attribute `mark`, which is not read."""
    study, trial, attribute = models.StudyModel, models.TrialModel, models.StudyUserAttributeModel
    is_marked = sqlalchemy.exists().where(attribute.study_id == study.study_id, attribute.key == mark)
    times = trial.__table__.c  # in UTC; TrialModel's own attributes are no columns
    last = sqlalchemy.func.max(sqlalchemy.func.coalesce(times.datetime_complete, times.datetime_start))
    query = (
        sqlalchemy.select(study.study_id, study.study_name, is_marked, sqlalchemy.func.count(trial.trial_id), last)
        .select_from(sqlalchemy.outerjoin(study, trial, trial.study_id == study.study_id))
        .group_by(study.study_id, study.study_name)
        .order_by(study.study_id)
    )
    return [
        StudyRow(study_id, name, is_ours, num_trials, last and last.replace(tzinfo=datetime.UTC))
        for study_id, name, is_ours, num_trials, last in _read(storage, query)
    ]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the trial that best_trials(study, 1) gives, None without one. Reads that trial alone."""
    race = read_race(study)
    if race is not None:
        number = max(race.accuracies, key=race.mean)
        return trial_of(study, number)
    if len(study.directions) > 1:
        found = complete_values(study)
        return trial_of(study, found[0][0]) if found else None
    if isinstance(study._storage, optuna.storages.InMemoryStorage):
        return min(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=rank_order, default=None)
    try:
        value = study._storage.get_best_trial(study._study_id).value
    except ValueError:  # no trial is complete
        return None
    assert value is not None
    return study._storage.get_trial(min(_tied_trials(study, value))[-1])


def count_trials(study: optuna.Study) -> collections.Counter[TrialState | str]:
    """Return the number of trials in each state, and of `infeasible`, `duplicate`, `race` ones; none counts twice.

    Interrupted trials (is_failure) are not counted at all. Runs of the race are `race` once they have ended well.
    """
    if isinstance(study._storage, optuna.storages.InMemoryStorage):
        return _count(study.get_trials(deepcopy=False))
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    # One query, so that no trial ends between two.
    is_mark = (attribute.trial_id == trial.trial_id) & (
        ((attribute.key == FAILURE) & trial.state.in_((TrialState.FAIL, TrialState.PRUNED)))
        | ((attribute.key == DUPLICATE_OF) & trial.state.in_(FINISHED))
        | ((attribute.key == RACE_ACCURACY) & (trial.state == TrialState.PRUNED))
    )
    query = (
        sqlalchemy.select(trial.state, attribute.key, attribute.value_json, sqlalchemy.func.count())
        .select_from(sqlalchemy.outerjoin(trial, attribute, is_mark))
        .where(trial.study_id == study._study_id)
        .group_by(trial.state, attribute.key, attribute.value_json)
    )
    counts: collections.Counter[TrialState | str] = collections.Counter()
    for state, key, mark, count in _rows(study, query):
        if key == DUPLICATE_OF:
            counts["duplicate"] += count
        elif key == RACE_ACCURACY:
            counts["race"] += count
        elif key == FAILURE and state == TrialState.PRUNED:
            counts["infeasible"] += count
        elif mark is None or json.loads(mark).get("kind") != FailureKind.INTERRUPTED:
            counts[state] += count
    return counts


def _count(trials: list[FrozenTrial]) -> collections.Counter[TrialState | str]:
    kinds: list[TrialState | str] = [
        next((kind for kind, is_kind in _KINDS.items() if is_kind(trial)), trial.state)
        for trial in trials
        if trial.state != TrialState.FAIL or is_failure(trial)
    ]
    return collections.Counter(kinds)


def _tied_trials(study: optuna.Study, value: float) -> Iterator[tuple[int, int, int]]:
    """Yield (num_parameters, number, Optuna's id) of the complete trials of a value; the least is the best trial."""
    trial, attribute, score = models.TrialModel, models.TrialUserAttributeModel, models.TrialValueModel
    is_size = (attribute.trial_id == trial.trial_id) & (attribute.key == NUM_PARAMETERS)
    stored, kind = score.value_to_stored_repr(value)
    query = (
        sqlalchemy.select(attribute.value_json, trial.number, trial.trial_id)
        .select_from(sqlalchemy.join(trial, score).outerjoin(attribute, is_size))
        .where(trial.study_id == study._study_id, trial.state == TrialState.COMPLETE)
        .where(score.objective == 0, score.value_type == kind, score.value == stored)
    )
    for size, number, trial_id in _rows(study, query):
        yield (0 if size is None else json.loads(size), number, trial_id)


def complete_values(study: optuna.Study) -> list[tuple[int, tuple[float, ...]]]:
    """Return (number, values) of the complete trials without duplicates, the best first (rank_order)."""
    if isinstance(study._storage, optuna.storages.InMemoryStorage):
        order = functools.partial(rank_order, directions=study.directions)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [(trial.number, tuple(trial.values)) for trial in sorted(complete, key=order) if not is_duplicate(trial)]
    trial, attribute, score = models.TrialModel, models.TrialUserAttributeModel, models.TrialValueModel
    is_mark = (attribute.trial_id == trial.trial_id) & attribute.key.in_((NUM_PARAMETERS, DUPLICATE_OF))
    is_ours = (trial.study_id == study._study_id) & (trial.state == TrialState.COMPLETE)
    scores = sqlalchemy.select(trial.number, score.objective, score.value, score.value_type).join(score).where(is_ours)
    marks = sqlalchemy.select(trial.number, attribute.key, attribute.value_json).join(attribute, is_mark).where(is_ours)
    values: dict[int, dict[int, float]] = {}
    for number, objective, stored, kind in _rows(study, scores):
        values.setdefault(number, {})[objective] = score.stored_repr_to_value(stored, kind)
    sizes, duplicates = dict[int, int](), set[int]()
    for number, key, text in _rows(study, marks):  # read later: a trial that has ended since then is not in `values`
        if key == DUPLICATE_OF:
            duplicates.add(number)
        else:
            sizes[number] = json.loads(text)
    signs = [-1 if way == StudyDirection.MAXIMIZE else 1 for way in study.directions]
    found = [(number, tuple(own[goal] for goal in sorted(own))) for number, own in values.items()]

    def order_of(item: tuple[int, tuple[float, ...]]) -> tuple[float, ...]:
        number, own = item
        return (*(sign * value for sign, value in zip(signs, own, strict=True)), sizes.get(number, 0), number)

    return sorted((item for item in found if item[0] not in duplicates), key=order_of)


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """Return the trial of a number; reads it alone."""
    return study._storage.get_trial(study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def _rows(study: optuna.Study, query: sqlalchemy.Executable) -> list[Any]:
    return _read(study._storage._backend, query)  # type: ignore[attr-defined]  # a study wraps its RDBStorage in a cache


def _read(storage: optuna.storages.RDBStorage, query: sqlalchemy.Executable) -> list[Any]:
    def read() -> list[Any]:
        with storage.engine.connect() as connection:
            return list(connection.execute(query))

    return retry(storage, read)
