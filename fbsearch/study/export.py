"""Exports of a study: its best configurations with their costs, and a table of all its trials."""

import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from fbsearch.config.export_file import Export, Searched
from fbsearch.errors import ConfigError, StorageError
from fbsearch.files import FileKind
from fbsearch.messages import EpochStats
from fbsearch.study.front import read_front
from fbsearch.study.study import best_trials, goals_of, stored_config, stored_dataset
from fbsearch.study.trial_record import (
    FINISHED,
    TrialRecord,
    is_duplicate,
    is_failure,
    is_finished,
    is_infeasible,
    is_race_run,
    num_epochs,
    score_of,
)

if TYPE_CHECKING:
    import pandas

# The columns of a table without trials; with trials, the sampled parameters stand between value and num_parameters.
TABLE_COLUMNS = [
    "trial", "state", "value", "num_parameters", "flops", "seconds", "device", "epochs", "started", "ended", "seed",
    "failure",
]  # fmt: skip
CSV_TABLE = FileKind("table of trials of fbsearch", b"trial,state,value,")
JSON_TABLE = FileKind("table of trials of fbsearch", b'"trial":')


def export_best(study: optuna.Study, *, top: int) -> Export:
    """Return the `top` best configurations of a study. StorageError if no trial is complete yet, or one is damaged."""
    best = best_trials(study, top)
    if not best:
        raise StorageError(f"the study {study.study_name!r} has no complete trial yet; `fbsearch run` goes on with it")
    return _export_ranked(study, dict(enumerate(best, start=1)))


def export_front(study: optuna.Study) -> Export:
    """Return the Pareto front, the best of the first objective first, each trial with its rank in the study.

    StorageError if the study has one goal, if no trial is complete yet, or one is damaged.
    """
    goals = goals_of(study)
    if len(goals) == 1:
        raise StorageError(f"the study {study.study_name!r} has one goal, {goals[0]}, and so no Pareto front")
    numbers = read_front(study, goals).values
    best = best_trials(study, len(study.get_trials(deepcopy=False)))
    ranked = {rank: trial for rank, trial in enumerate(best, start=1) if trial.number in numbers}
    if not ranked:
        raise StorageError(f"the study {study.study_name!r} has no complete trial yet; `fbsearch run` goes on with it")
    return _export_ranked(study, ranked)


def export_trial(study: optuna.Study, number: int) -> Export:
    """Return the configuration of one complete trial, with its rank in the study.

    StorageError if there is no such trial, if it is not complete, or repeats another, and if it is damaged.
    """
    trials = study.get_trials(deepcopy=False)
    what = f"trial {number} of the study {study.study_name!r}"
    if not 0 <= number < len(trials):
        there = f"0 to {len(trials) - 1}" if trials else "none"
        raise StorageError(f"there is no {what}; its trials are {there}")
    if reason := _why_not_exported(trials[number]):
        raise StorageError(f"{what} {reason}; the complete ones are in `fbsearch export --format csv`")
    ranks = {trial.number: rank for rank, trial in enumerate(best_trials(study, len(trials)), start=1)}
    return _export_ranked(study, {ranks[number]: trials[number]})


def _why_not_exported(trial: FrozenTrial) -> str:
    """Return the reason for which a trial cannot be exported; nothing if it can."""
    record = TrialRecord.of(trial)
    message = f": {record.failure.message}" if record.failure else ""
    if is_duplicate(trial):
        return f"repeats trial {record.duplicate_of} and was not trained: export that one"
    if is_race_run(trial):
        return f"is another run of trial {record.race_of}, in the final race: export that one"
    if is_infeasible(trial):
        return f"was not trained{message}"
    if trial.state == TrialState.PRUNED:
        epochs = num_epochs(trial)
        return f"was pruned after epoch {epochs}, so that its score is not one of a whole training"
    if trial.state == TrialState.FAIL:
        return f"{'failed' if is_failure(trial) else 'was interrupted'}{message}"
    return "" if trial.state == TrialState.COMPLETE else f"is {trial.state.name.lower()} and has no score yet"


def _export_ranked(study: optuna.Study, ranked: dict[int, FrozenTrial]) -> Export:
    try:
        return _export(study, ranked)
    except (KeyError, TypeError, AttributeError, ValidationError):  # there may be anything in a database
        raise StorageError(
            f"the best trials of the study {study.study_name!r} cannot be exported: it was made by another version of "
            "fbsearch, or is damaged"
        ) from None


def _export(study: optuna.Study, ranked: dict[int, FrozenTrial]) -> Export:
    dataset, records = stored_dataset(study), [TrialRecord.of(trial) for trial in ranked.values()]
    goals = goals_of(study)

    def named(trial: FrozenTrial) -> dict[str, float] | None:
        return None if goals == ("val_accuracy",) else dict(zip(goals, trial.values, strict=True))

    shape = {key: dataset[key] for key in ("num_classes", "in_channels", "image_size")}
    configs = [
        {
            "rank": rank,
            "trial": trial.number,
            "value": trial.values[0],
            "goals": named(trial),
            "num_parameters": record.num_parameters,
            **shape,
            **(record.config or {}),
        }
        for (rank, trial), record in zip(ranked.items(), records, strict=True)
    ]
    versions = (records[0].environment or {})["versions"]
    now = datetime.datetime.now(datetime.UTC)
    content = {"study": study.study_name, "exported": now, "versions": versions, "configs": configs}
    return Export.model_validate(content | {"search": _searched(study)})


def _searched(study: optuna.Study) -> Searched | None:
    """Return the space and the cost of the finished trials; None if another version's space is not readable."""
    try:
        config = stored_config(study)
    except ConfigError:
        return None
    finished = [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if is_finished(trial)]
    records, num_train = list(map(TrialRecord.of, finished)), stored_dataset(study)["num_train"]
    if config.train.budget is None:
        num_images = [num_train * num_epochs(trial) for trial in finished]
    else:  # no whole passes
        num_images = [sum(EpochStats(**epoch).num_images for epoch in one.history or []) for one in records]
    compute = {
        "num_trials": len(finished),
        "num_epochs": sum(map(num_epochs, finished)),
        "train_flops": sum((record.flops or 0) * num for record, num in zip(records, num_images, strict=True)),
        "seconds": sum(record.seconds or 0 for record in records),
    }
    sections = {"model": config.model, "train": config.train, "space": config.space}
    return Searched.model_validate(sections | {"compute": compute})


def listed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return every trial but the duplicates, which would show a result twice, and the runs of the final race."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if not (is_duplicate(trial) or is_race_run(trial))]


def trial_table(study: optuna.Study) -> "pandas.DataFrame":
    """Return listed_trials as rows: number, state, value, sampled parameters, costs, times, failure.

    `value` is that of the first goal, after the last epoch where a trial has not come to its end; further objectives
    are columns of their names, empty for such trials.
    """
    import pandas

    rows, others = [], goals_of(study)[1:]
    for trial in listed_trials(study):
        record = TrialRecord.of(trial)
        state = "infeasible" if is_infeasible(trial) else trial.state.name.lower()
        row: dict[str, Any] = {
            "trial": trial.number,
            "state": state,
            "value": score_of(trial) if trial.state in FINISHED else None,
        }
        row |= trial.params
        row |= {key: getattr(record, key) for key in ("num_parameters", "flops", "seconds", "device")}
        row |= dict(zip(others, trial.values[1:] if trial.values else [None] * len(others), strict=True))
        row["epochs"] = num_epochs(trial)
        row |= {"started": trial.datetime_start, "ended": trial.datetime_complete}
        row["seed"] = (record.config or {}).get("seed")
        row["failure"] = record.failure and record.failure.message
        rows.append(row)
    return pandas.DataFrame(rows, columns=None if rows else TABLE_COLUMNS)
