"""The trials of a study as one DataFrame, from which every figure and table of a report is made."""

import math
from collections.abc import Sequence
from typing import Any

import optuna
import pandas as pd

from fbsearch.config.space import LEVELS
from fbsearch.study.export import listed_trials, trial_table
from fbsearch.study.queries import read_trials
from fbsearch.study.study import best_trials, goals_of
from fbsearch.study.trial_record import FINISHED, TrialRecord, score_of


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """Return every trial as a row: the columns of `study.export.trial_table` and those that only figures need.

    `score`: the first goal, as the validation accuracy, at the end, of pruned trials when they were stopped. `rank`: 1
    for the best complete trial. `history`: a list with a dict for each epoch (`epoch`, `val_accuracy`, ...).
    `model.fractal_levels`: the levels of all stages as one text. `worker`: the number of the worker.
    `planned_epochs`, `failure_kind`, `traceback`. `config`, `environment`: dicts as stored. `attrs["log"]` names the
    parameters with a log scale, `attrs["metric"]` the score. Values that an older version did not store are empty.
    Raises StorageError for a study whose goals are not known.
    """
    goals = goals_of(study)
    read_trials(study)
    frame = trial_table(study)
    trials = listed_trials(study)
    records = [TrialRecord.of(trial) for trial in trials]
    ranks = {trial.number: rank for rank, trial in enumerate(best_trials(study, len(trials)), start=1)}
    configs = [record.config or {} for record in records]
    added: dict[str, list[Any]] = {
        "score": [_score(trial) for trial in trials],
        "rank": [ranks.get(t.number, math.nan) for t in trials],
        "planned_epochs": [config.get("train", {}).get("epochs", math.nan) for config in configs],
        "history": [_history(trial, goals) for trial in trials],
        "worker": [math.nan if record.worker is None else record.worker for record in records],
        "failure_kind": [record.failure and record.failure.kind for record in records],
        "traceback": [record.traceback for record in records],
        "config": configs,
        "environment": [record.environment or {} for record in records],
    }
    if any(name.startswith(f"{LEVELS}.") for name in frame.columns):
        added[LEVELS] = [_levels(trial.params) for trial in trials]
    for name, values in added.items():
        frame[name] = pd.Series(values, index=frame.index, dtype=float if name in ("score", "rank") else object)
    for name in ("num_parameters", "flops", "seconds", "planned_epochs", "value", "epochs", "worker"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    distributions = {pair for trial in trials for pair in trial.distributions.items()}
    frame.attrs["metric"] = goals[0]
    frame.attrs["log"] = sorted(name for name, distribution in distributions if getattr(distribution, "log", False))
    return frame.assign(started=pd.to_datetime(frame["started"]), ended=pd.to_datetime(frame["ended"]))


def _score(trial: optuna.trial.FrozenTrial) -> float:
    score = score_of(trial) if trial.state in FINISHED else None
    return math.nan if score is None else score


def _history(trial: optuna.trial.FrozenTrial, goals: Sequence[str]) -> list[dict[str, Any]]:
    stored = TrialRecord.of(trial).history
    if stored:
        return list(stored)
    curve = TrialRecord.of(trial).curve
    if curve:
        return [{"epoch": epoch, goals[0]: values[0]} for epoch, values in enumerate(curve, start=1)]
    return [{"epoch": epoch, goals[0]: value} for epoch, value in sorted(trial.intermediate_values.items())]


def _levels(params: dict[str, Any]) -> str | None:
    num_stages = params.get(f"{LEVELS}.num_stages")
    return num_stages and str([params.get(f"{LEVELS}.{stage}") for stage in range(num_stages)])
