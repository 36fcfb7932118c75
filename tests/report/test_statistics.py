"""Statistics of a study: parameters, savings and Pareto fronts."""

import math

import numpy as np
import pandas as pd
import pytest
from made_studies import make_study
from optuna.storages import RDBStorage

from fbsearch.report.statistics import (
    best_so_far,
    choices,
    labels,
    parameters,
    pareto_front,
    ranked,
    saved_by_pruning,
    scale,
)
from fbsearch.report.trials_table import trials_frame


@pytest.fixture
def frame(storage: RDBStorage) -> pd.DataFrame:
    return trials_frame(make_study(storage, 90))


def test_parameters_are_one_field_for_all_levels(frame: pd.DataFrame) -> None:
    names = ["model.fractal_levels", "model.base_channels", "model.pattern", "train.learning_rate"]
    assert sorted(parameters(frame)) == sorted(names)
    same = frame[frame["model.pattern"] == "julia"]
    assert "model.pattern" not in parameters(same)
    assert "model.pattern" in parameters(same, varied=False)


def test_labels_of_numbers_words_and_null() -> None:
    mixed = pd.Series([1.0, None, "a", True, 0.000123456], dtype=object)
    assert list(labels(mixed)) == ["1", "null", "a", "true", "0.0001235"]
    assert choices(pd.Series([16, 8, 24, 8])) == ["8", "16", "24"]
    assert choices(pd.Series(["[2, 1]", "[1]", "[1, 2]"])) == ["[1]", "[1, 2]", "[2, 1]"]


def test_scale_of_numbers_and_choices() -> None:
    numbers = np.linspace(0.1, 0.5, 20)
    frame = pd.DataFrame({"a.few": [8, 16] * 10, "a.words": ["x", "y"] * 10, "a.flat": numbers, "a.steep": numbers})
    frame.attrs["log"] = ["a.steep"]
    kinds = {name: scale(frame[frame["a.few"] > 0], name) for name in frame.columns}
    assert kinds == {"a.few": "choices", "a.words": "choices", "a.flat": "linear", "a.steep": "log"}


def test_ranked_and_best_so_far_agree_on_the_best(frame: pd.DataFrame) -> None:
    best = ranked(frame)
    assert list(best["rank"]) == list(range(1, 31))
    assert best["value"].is_monotonic_decreasing
    assert best_so_far(frame).iloc[-1] == best.iloc[0]["value"]


def test_saved_by_pruning_counts_the_epochs_not_run(frame: pd.DataFrame) -> None:
    saving = saved_by_pruning(frame)
    assert saving is not None
    assert (saving.num_run, saving.num_saved) == (30 * 8 + 60 * 4, 60 * 4)
    assert saving.share == pytest.approx(1 / 3)
    assert saving.seconds_saved == pytest.approx(60 * 4 * 0.5)
    assert saved_by_pruning(frame.assign(planned_epochs=math.nan)) is None


def test_pareto_front_has_no_trial_that_another_beats(frame: pd.DataFrame) -> None:
    front = pareto_front(frame, "num_parameters")
    complete = frame[frame["state"] == "complete"]
    assert len(front) >= 1
    for _, trial in front.iterrows():
        cheaper = complete[complete["num_parameters"] <= trial["num_parameters"]]
        assert cheaper["value"].max() == trial["value"]
    assert front["value"].is_monotonic_increasing
    assert front["num_parameters"].is_monotonic_increasing
