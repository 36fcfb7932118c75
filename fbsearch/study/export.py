"""What leaves a study: its best configurations with what they have cost, and a table of all its trials."""

import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from fbsearch.config.export_file import Export, Searched
from fbsearch.errors import ConfigError, StorageError
from fbsearch.study.study import best_trials, stored_config
from fbsearch.study.trial_record import FINISHED, is_duplicate, is_finished, is_infeasible

if TYPE_CHECKING:
    import pandas

# Of a table without trials; with trials, what was sampled stands between value and num_parameters.
TABLE_COLUMNS = [
    "trial", "state", "value", "num_parameters", "flops", "seconds", "device", "epochs", "started", "ended", "seed",
    "failure",
]  # fmt: skip


def export_best(study: optuna.Study, *, top: int) -> Export:
    """The `top` best configurations of a study. StorageError if no trial is complete yet."""
    best = best_trials(study, top)
    if not best:
        raise StorageError(f"the study {study.study_name!r} has no complete trial yet; `fbsearch run` goes on with it")
    dataset = study.user_attrs["dataset"]
    shape = {key: dataset[key] for key in ("num_classes", "in_channels", "image_size")}
    configs = [
        {
            "rank": rank,
            "trial": trial.number,
            "value": trial.value,
            "num_parameters": trial.user_attrs["num_parameters"],
            **shape,
            **trial.user_attrs["config"],
        }
        for rank, trial in enumerate(best, start=1)
    ]
    versions = best[0].user_attrs["environment"]["versions"]
    now = datetime.datetime.now(datetime.UTC)
    content = {"study": study.study_name, "exported": now, "versions": versions, "configs": configs}
    return Export.model_validate(content | {"search": _searched(study)})


def _searched(study: optuna.Study) -> Searched | None:
    """What was searched, and what the finished trials have cost; None where another version's space is not readable."""
    try:
        config = stored_config(study)
    except ConfigError:
        return None
    num_train = study.user_attrs["dataset"]["num_train"]
    finished = [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if is_finished(trial)]
    epochs = [len(trial.intermediate_values) for trial in finished]
    flops = (trial.user_attrs["flops"] * num for trial, num in zip(finished, epochs, strict=True))
    compute = {
        "num_trials": len(finished),
        "num_epochs": sum(epochs),
        "train_flops": num_train * sum(flops),
        "seconds": sum(trial.user_attrs["seconds"] for trial in finished),
    }
    sections = {"model": config.model, "train": config.train, "space": config.space}
    return Searched.model_validate(sections | {"compute": compute})


def listed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Every trial but the duplicates, which would show a result twice."""
    return [trial for trial in study.get_trials(deepcopy=False) if not is_duplicate(trial)]


def trial_table(study: optuna.Study) -> "pandas.DataFrame":
    """Every trial of listed_trials as a row: number, state, value, what was sampled, costs, times, failure."""
    import pandas

    rows = []
    for trial in listed_trials(study):
        attributes = trial.user_attrs
        state = "infeasible" if is_infeasible(trial) else trial.state.name.lower()
        row: dict[str, Any] = {"trial": trial.number, "state": state, "value": trial.value}
        row |= trial.params
        row |= {key: attributes.get(key) for key in ("num_parameters", "flops", "seconds", "device")}
        row["epochs"] = len(trial.intermediate_values)
        row |= {"started": trial.datetime_start, "ended": trial.datetime_complete}
        row["seed"] = attributes.get("config", {}).get("seed")
        row["failure"] = attributes.get("failure", {}).get("message")
        rows.append(row)
    return pandas.DataFrame(rows, columns=None if rows else TABLE_COLUMNS)
