"""A study: make it or open it, read and write what it stores, rank its trials.

One coordinator writes a trial; any process may read.
"""

import contextlib
import dataclasses
import datetime
import difflib
import functools
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from fbsearch.config.goals import GOALS, OF_CLASSES
from fbsearch.config.space import NEUTRAL_FIELDS
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError, SearchError, StorageError
from fbsearch.messages import ClassSample, DatasetInfo, Samples
from fbsearch.study.buffered_storage import BufferedStorage
from fbsearch.study.database import hide_password
from fbsearch.study.front import read_front
from fbsearch.study.queries import StudyRow, best_trial, count_trials, list_rows
from fbsearch.study.race_result import read_race
from fbsearch.study.sampling import make_pruner, make_sampler
from fbsearch.study.trial_record import DETAILS, TrialRecord, is_duplicate, rank_order

# The keys of what a study stores, as Optuna's user attributes.
CONFIG, DATASET, SAMPLES, NUM_TRIALS, COORDINATOR = "config", "dataset", "samples", "num_trials", "coordinator"
# The number of the best trials that are shown with their files.
NUM_SHOWN = 10

optuna.logging.set_verbosity(optuna.logging.WARNING)


def create_study(
    storage: optuna.storages.RDBStorage | optuna.storages.InMemoryStorage,
    config: StudyConfig,
    *,
    is_searched: bool = False,
) -> optuna.Study:
    """Return the study of a study file: a new one, or the one of that name to go on with.

    What is set on its running trials is written by `flush`, or with the trial's end; a study in memory, as replays have
    it, ends with its process.
    ConfigError if the study of that name was searched in a different space, on different data, or with a different
    network or training: the values could not be compared. `is_searched`: other coordinators search it now, so that its
    settings cannot change even before its first trial.
    """
    for _ in config.corners():
        pass  # each is checked as it is made: values that cannot be used together are refused before anything is stored
    opened = BufferedStorage(storage) if isinstance(storage, optuna.storages.RDBStorage) else storage
    ways = optuna.study.StudyDirection
    directions = [ways.MAXIMIZE if GOALS[goal].is_maximized else ways.MINIMIZE for goal in config.search.goals]
    study = optuna.create_study(storage=opened, study_name=config.name, directions=directions, load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    is_known, is_other = is_ours(study.user_attrs), study.directions != directions
    if not is_known and (trials or is_other):
        raise ConfigError(f"the study {config.name!r} was not made by fbsearch; --name NAME starts a new one")
    if trials or (is_known and (is_searched or is_other)):
        _check_unchanged(stored_config(study), config)
    if is_other:  # though its settings are ours
        raise StorageError(f"the study {config.name!r} is damaged: its objectives are not those of its settings")
    study.set_user_attr(CONFIG, config.model_dump(mode="json"))
    study.sampler = make_sampler(config.search, num_trials=len(trials))
    study.pruner = make_pruner(config)
    return study


def without_details(study: optuna.Study) -> contextlib.AbstractContextManager[None]:
    """Keep no details (DETAILS) of finished trials in memory within the block, unless that is all the study has."""
    if isinstance(study._storage, optuna.storages.InMemoryStorage):
        return contextlib.nullcontext()
    assert isinstance(study._storage, BufferedStorage), "the study is from create_study"
    return study._storage.leaving_out(DETAILS)


def flush(study: optuna.Study) -> list[int]:
    """Write what was set on running trials; return the numbers of those that another coordinator has ended."""
    if isinstance(study._storage, optuna.storages.InMemoryStorage):
        return []
    assert isinstance(study._storage, BufferedStorage), "the study is from create_study"
    return study._storage.flush()


def is_ours(study_user_attrs: Mapping[str, Any]) -> bool:
    """Return True for the user attributes of a study that fbsearch made."""
    return CONFIG in study_user_attrs


def stored_config(study: optuna.Study) -> StudyConfig:
    """Return the study file that a study was last searched with. ConfigError if another version's is not readable."""
    try:
        return StudyConfig.model_validate(study.user_attrs[CONFIG])
    except ValidationError:
        raise ConfigError(
            f"the study {study.study_name!r} was made by another version of fbsearch; --name NAME starts a new one"
        ) from None


def stored_settings(study: optuna.Study) -> dict[str, Any]:
    """Return the study file as it is stored, whichever version of fbsearch has stored it; {} without one."""
    return _stored_mapping(study, CONFIG)


def goals_of(study: optuna.Study) -> tuple[str, ...]:
    """Return the goals of a study, by which its trials' values are named. StorageError if its settings are damaged."""
    search = stored_settings(study).get("search", {})
    objectives = search.get("objectives") if isinstance(search, dict) else None
    goals = tuple(objectives or [search.get("metric", "val_accuracy")]) if isinstance(search, dict) else ()
    if len(goals) != len(study.directions) or not set(goals) <= set(GOALS):
        raise StorageError(
            f"the study {study.study_name!r} was made by another version of fbsearch, or is damaged: its goals are "
            f"not known ({', '.join(map(str, goals)) or 'none'})"
        )
    return goals


def stored_dataset(study: optuna.Study) -> dict[str, Any]:
    """Return the fields of DatasetInfo that are stored; {} before a worker has loaded the data."""
    return _stored_mapping(study, DATASET)


def store_samples(study: optuna.Study, samples: Samples) -> None:
    """Store a few images of the data set, of which a report makes a contact sheet."""
    study.set_user_attr(SAMPLES, dataclasses.asdict(samples))


def stored_samples(study: optuna.Study) -> Samples | None:
    """Return the images that are stored; None without them, and in a form that this version does not read."""
    try:
        found = _stored_mapping(study, SAMPLES)
        classes = tuple(ClassSample(**one) for one in found["classes"])
        return Samples(smallest=found["smallest"], num_smallest=found["num_smallest"], classes=classes)
    except (KeyError, TypeError, StorageError):
        return None


def _stored_mapping(study: optuna.Study, key: str) -> dict[str, Any]:
    found: dict[str, Any] = study.user_attrs.get(key, {})
    if not isinstance(found, dict):
        raise StorageError(f"the study {study.study_name!r} is damaged: its attribute {key!r} is no mapping")
    return found


def store_dataset(study: optuna.Study, dataset: DatasetInfo, *, must_be_same: bool) -> None:
    """Store the data set. ConfigError if `must_be_same` and the trials of the study were trained on another one."""
    now, stored = _dataset_fields(dataset), stored_dataset(study)
    if must_be_same and (changed := _describe_changes(stored, now)):
        raise ConfigError(
            f"the data of the study {study.study_name!r} have changed since its trials were run ({changed}): their "
            "results cannot be compared; --name NAME starts a new study"
        )
    study.set_user_attr(DATASET, now)


def check_classes(config: StudyConfig, dataset: DatasetInfo) -> None:
    """ConfigError if a goal is a mean over classes, and the data have one class."""
    found = [goal for goal in config.search.goals if goal in OF_CLASSES]
    if found and dataset.num_classes < 2:
        raise ConfigError(
            f"search.metric, search.objectives: {' and '.join(found)} need at least two classes, and the data have "
            f"{dataset.num_classes}; take val_accuracy, or other data"
        )


def check_same_dataset(first: DatasetInfo, later: DatasetInfo, *, where: str) -> None:
    """SearchError if the worker at `where` has loaded other data than the first one of the search."""
    if changed := _describe_changes(_dataset_fields(first), _dataset_fields(later)):
        raise SearchError(
            f"{where} has loaded other data than the first worker ({changed}): the images have changed since this "
            "search began, or differ between its machines. Nothing finished is lost: restore them and give the same "
            "command again, or start a new study with --name NAME"
        )


def _dataset_fields(dataset: DatasetInfo) -> dict[str, Any]:
    return dataclasses.asdict(dataset) | {"class_names": list(dataset.class_names)}  # as the database gives it back


def _describe_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two data sets; a field that an older version did not store is left out."""
    changed = [key for key in now if key in was and was[key] != now[key]]
    if changed == ["fingerprint"]:
        return "as many images, but other ones, or with other labels"
    return ", ".join(f"{key} {was[key]} -> {now[key]}" for key in changed if key != "fingerprint")


def stored_num_trials(study: optuna.Study) -> int | None:
    """Return the number of finished trials that the study is searched for; None without a limit or a search."""
    num_trials: int | None = study.user_attrs.get(NUM_TRIALS)
    return num_trials


def store_search(study: optuna.Study, *, num_trials: int | None) -> None:
    """Store the number of finished trials to search for, None without a limit, and which process searches."""
    study.set_user_attr(NUM_TRIALS, num_trials)
    process = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M}"}
    study.set_user_attr(COORDINATOR, process)


def describe_searcher(storage: optuna.storages.RDBStorage, name: str) -> str:
    """Return ` (process ... on ..., since ...)` of the last search of a study; nothing if it has stored none yet."""
    try:
        attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    except (KeyError, json.JSONDecodeError, optuna.exceptions.StorageInternalError):  # just made, damaged, not readable
        return ""
    if COORDINATOR not in attributes:
        return ""
    return " (process {pid} on {host}, since {since})".format(**attributes[COORDINATOR])


def load_study(storage: optuna.storages.RDBStorage, name: str | None) -> optuna.Study:
    """Return the study of that name, or the newest one without a name. StorageError if absent, or not fbsearch's.

    The newest is the last of fbsearch's that was made, and has a trial or is being searched.
    """
    name = _newest(storage) if name is None else find_row(storage, name).name
    study = optuna.load_study(storage=storage, study_name=name)
    try:
        attributes = study.user_attrs
    except json.JSONDecodeError:
        others = ", ".join(row.name for row in list_rows(storage, mark=CONFIG))
        raise StorageError(f"the study {name!r} is damaged: its attributes are no JSON; there are: {others}") from None
    if not is_ours(attributes):
        raise StorageError(f"the study {name!r} was not made by fbsearch; optuna-dashboard shows it")
    return study


def find_row(storage: optuna.storages.RDBStorage, name: str) -> StudyRow:
    """Return the row of the study of that name. StorageError, which names those that there are, if absent."""
    rows = _rows(storage)
    for row in rows:
        if row.name == name:
            return row
    names = [row.name for row in rows]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? There are: " if close else "there are: "
    raise StorageError(f"there is no study {name!r} in this database; {hint}{', '.join(names)}")


def _newest(storage: optuna.storages.RDBStorage) -> str:
    from fbsearch.study.locks import is_claimed  # which imports this module

    rows = _rows(storage)
    for row in reversed(rows):  # a search that has just begun has no trial yet
        if row.is_ours and (row.num_trials or is_claimed(optuna.load_study(storage=storage, study_name=row.name))):
            return row.name
    return next((row.name for row in reversed(rows) if row.is_ours), rows[-1].name)


def _rows(storage: optuna.storages.RDBStorage) -> list[StudyRow]:
    rows = list_rows(storage, mark=CONFIG)
    if not rows:
        raise StorageError("there is no study in this database yet; `fbsearch run` makes one")
    return rows


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
    # What is searched for, and the limits: the sampler has learned from the old ones.
    sections["search"] = {key: sections["search"][key] for key in ("metric", "objectives", "limits")}
    for section in ("data", "model", "train", "space", "search"):
        for key, value in sections[section].items():
            yield f"{section}.{key}", value


def best_trials(study: optuna.Study, top: int) -> list[FrozenTrial]:
    """Return the `top` best complete trials without duplicates; of equal values fewer parameters come first.

    Those of a final race that is over come before the others, in the order of their means.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    race = read_race(study)
    order = functools.partial(rank_order, directions=study.directions) if race is None else race.rank_order
    return sorted((trial for trial in complete if not is_duplicate(trial)), key=order)[:top]


def is_among_best(study: optuna.Study, value: float, top: int) -> bool:
    """Return True if a trial that is about to end with `value`, of its first goal, can be among the `top` best."""
    best = best_trials(study, top)
    return len(best) < top or value >= best[-1].values[0]


def status(study: optuna.Study, *, url: str) -> dict[str, Any]:
    """Return the state of a study in the keys of `fbsearch status --json`; the storage URL without its password.

    Counts in the database and reads the best trial alone: 0.04 s for 10,000 trials, all of which take 17 s to read.
    """
    counts = count_trials(study)
    goals, best, race = goals_of(study), best_trial(study), read_race(study)
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
        "metric": goals[0],
        "best": best
        and {
            "trial": best.number,
            "value": best.values[0],
            "values": dict(zip(goals, best.values, strict=True)),
            "config": TrialRecord.of(best).config,
        },
        "race": race and race.as_list(),
        "front": read_front(study, goals).as_list() if len(goals) > 1 else None,
    }
