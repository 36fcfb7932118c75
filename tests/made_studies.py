"""Studies as a search leaves them, made without training: for what reads studies."""

import contextlib
import datetime
import math
import sqlite3
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from fbsearch.config.models import FractalPatternType, TrainConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.study.study import create_study

NUM_VAL = 287
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "fbsearch": "0.1.0", "torch": "2.15.0", "optuna": "5.0.0"},
    "git_commit": "59f5e8bc7bb353525d30d9f3ad7a5d200b85d435",
}
DATASET = {
    "num_classes": 10, "in_channels": 1, "image_size": 8, "num_train": 1150, "num_val": NUM_VAL, "num_test": 360,
    "class_names": [str(digit) for digit in range(10)], "num_broken": 0,
}  # fmt: skip
SPACE: dict[str, BaseDistribution] = {
    "model.fractal_levels.num_stages": CategoricalDistribution((1, 2)),
    "model.fractal_levels.0": CategoricalDistribution((1, 2)),
    "model.fractal_levels.1": CategoricalDistribution((1, 2)),
    "model.base_channels": CategoricalDistribution((8, 16, 24)),
    "model.pattern": CategoricalDistribution([pattern.value for pattern in FractalPatternType]),
    "train.learning_rate": FloatDistribution(0.003, 0.05, log=True),
}
START = datetime.datetime(2026, 11, 20, 9)
_MADE: dict[tuple[int, int, str, str], sqlite3.Connection] = {}


def make_study(
    storage: RDBStorage, count: int, *, epochs: int = 8, name: str = "digits", dataset: dict[str, Any] | None = None
) -> optuna.Study:
    """A default study with `count` trials, two thirds of them pruned; base channels matter most, the pattern not.

    Into an empty SQLite database the second study of the same arguments is copied: Optuna needs 25 ms for each trial.
    """
    config = StudyConfig(name=name, train=TrainConfig(epochs=epochs))
    is_new = storage.engine.dialect.name == "sqlite" and storage.get_all_studies() == []
    arguments = (count, epochs, name, repr(dataset))
    if is_new and arguments in _MADE:
        with _connection(storage) as database:
            _MADE[arguments].backup(database)
        return create_study(storage, config)
    study = create_study(storage, config)
    study.set_user_attr("dataset", DATASET if dataset is None else dataset)
    rng = np.random.default_rng(0)
    study.add_trials(make_trial(config, rng, number) for number in range(count))
    if is_new:
        _MADE[arguments] = sqlite3.connect(":memory:")
        with _connection(storage) as database:
            database.backup(_MADE[arguments])
    return study


@contextlib.contextmanager
def _connection(storage: RDBStorage) -> Iterator[sqlite3.Connection]:
    pooled = storage.engine.raw_connection()
    try:
        assert isinstance(pooled.driver_connection, sqlite3.Connection)
        yield pooled.driver_connection
    finally:
        pooled.close()


def make_trial(config: StudyConfig, rng: np.random.Generator, number: int) -> FrozenTrial:
    """A complete trial where the number is divisible by three, else one that was pruned halfway."""
    params: dict[str, Any] = {"model.fractal_levels.num_stages": int(rng.integers(1, 3))}
    for stage in range(params["model.fractal_levels.num_stages"]):
        params[f"model.fractal_levels.{stage}"] = int(rng.integers(1, 3))
    params["model.base_channels"] = int(rng.choice([8, 16, 24]))
    params["model.pattern"] = str(rng.choice(list(FractalPatternType)))
    params["train.learning_rate"] = math.exp(rng.uniform(math.log(0.003), math.log(0.05)))
    levels = tuple(v for k, v in params.items() if k.startswith("model.fractal_levels.") and not k.endswith("stages"))
    values = {name: value for name, value in params.items() if not name.startswith("model.fractal_levels")}
    trial = config.trial(values | {"model.fractal_levels": levels}, seed=number)
    planned = config.train.epochs
    num_epochs = planned if number % 3 == 0 else max(1, planned // 2)
    top = 0.8 + 0.008 * params["model.base_channels"] + rng.normal(0, 0.01)
    accuracies = [
        round(min(1.0, top * (1 - math.exp(-epoch))) * NUM_VAL) / NUM_VAL for epoch in range(1, num_epochs + 1)
    ]
    seconds = 0.5 * num_epochs
    made = create_trial(
        state=TrialState.COMPLETE if number % 3 == 0 else TrialState.PRUNED,
        value=accuracies[-1],
        params=params,
        distributions={name: SPACE[name] for name in params},
        intermediate_values=dict(enumerate(accuracies, start=1)),
        user_attrs={
            "config": trial.model_dump(mode="json"),
            "device": "cpu x86_64",
            "environment": ENVIRONMENT,
            "num_parameters": 1000 * params["model.base_channels"] * len(levels),
            "flops": 100_000 * params["model.base_channels"] * len(levels),
            "history": [_stats(epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start=1)],
            "seconds": seconds,
        },
    )
    # Two lanes, the second half a second behind.
    made.datetime_start = START + datetime.timedelta(seconds=number // 2 * 0.5 * planned + number % 2 * 0.5)
    made.datetime_complete = made.datetime_start + datetime.timedelta(seconds=seconds)
    return made


def _stats(epoch: int, accuracy: float) -> dict[str, float]:
    return {
        "epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": accuracy, "val_loss": 1.1 / epoch,
        "val_accuracy": accuracy, "learning_rate": 0.01, "seconds": 0.5, "step_seconds": 0.45, "val_seconds": 0.05,
        "images_per_second": 2472.75, "memory_mib": 766.4,
    }  # fmt: skip
