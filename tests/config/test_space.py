"""Dimensions of a search: what they refuse, their values, the corners of a space, the points of a grid."""

import datetime
import math
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fbsearch.config.space import (
    DEFAULT_SPACE,
    FIELDS,
    LEVELS,
    ChoiceSpace,
    LevelsSpace,
    RangeSpace,
    check_space,
    corners,
    draw_point,
    encode_choice,
    field_value,
    grid_points,
    is_integer,
    values,
)
from fbsearch.config.study_file import StudyConfig

INTEGERS = {
    "model.base_channels", "model.pattern_resolution", "train.epochs", "train.batch_size", "train.early_stopping",
    "data.augment.shift", "data.augment.cutout",
}  # fmt: skip


def dimension(name: str, content: dict[str, Any]) -> Any:
    return StudyConfig.model_validate({"space": {name: content}}).space[name]


# What a range, a choice and levels refuse whatever they stand for.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"low": 2, "high": 1}, "empty range: low 2 must be below high 1"),
        ({"low": 1, "high": 1}, "empty range"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0, not 0"),
        ({"low": -1, "high": 1, "log": True}, "log needs a low above 0, not -1"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "log and step exclude each other"),
        ({"low": 1, "high": 8, "step": 2}, "high 8 is not low 1 plus a whole number of steps of 2"),
        ({"low": 0.1, "high": 0.35, "step": 0.1}, "whole number of steps"),
        ({"low": 1, "high": 2, "step": 0}, "greater than 0"),
        ({"low": 1, "high": 2, "step": -1}, "greater than 0"),
        ({"low": 1}, "Field required"),
        ({"low": float("nan"), "high": 1}, "finite"),
        ({"low": 1, "high": float("inf")}, "finite"),
        ({"low": 1, "high": 2, "choices": [1]}, "not permitted"),
    ],
)
def test_range_space_bad_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RangeSpace.model_validate(content)


@pytest.mark.parametrize(("low", "high", "step"), [(0.1, 0.3, 0.1), (0, 0.7, 0.1), (1, 7, 2), (-1, 1, 0.25)])
def test_range_space_on_its_step_grid_is_taken(low: float, high: float, step: float) -> None:
    assert RangeSpace(low=low, high=high, step=step).high == high


@pytest.mark.parametrize("choices", [[], [1, 1], [[1, 2], [1, 2]], ["a", "b", "a"], [None, None]])
def test_choice_space_empty_or_with_twins_is_refused(choices: list[Any]) -> None:
    with pytest.raises(ValidationError):
        ChoiceSpace.model_validate({"choices": choices})


@pytest.mark.parametrize("choices", [[{"a": 1}, 2], [[datetime.date(2026, 1, 1)]]])
def test_choice_space_of_what_no_field_can_hold_is_refused(choices: list[Any]) -> None:
    with pytest.raises(ValidationError):
        dimension("model.fractal_levels", {"choices": choices})


@pytest.mark.parametrize(
    "content",
    [
        {"num_stages": [], "level": [1]},
        {"num_stages": [1], "level": []},
        {"num_stages": [0], "level": [1]},
        {"num_stages": [9], "level": [1]},
        {"num_stages": [1], "level": [0]},
        {"num_stages": [1], "level": [9]},
        {"num_stages": [1]},
        {"level": [1]},
    ],
)
def test_levels_space_bad_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LevelsSpace.model_validate(content)


@pytest.mark.parametrize("content", [{"num_stages": [1, 1], "level": [1]}, {"num_stages": [1], "level": [2, 2]}])
def test_levels_space_with_twins_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LevelsSpace.model_validate(content)


def test_levels_space_combinations_are_conditional() -> None:
    assert LevelsSpace(num_stages=(1, 2), level=(1, 3)).combinations() == [
        (1,), (3,), (1, 1), (1, 3), (3, 1), (3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("content", [5, "adam", [1, 2], {}, {"value": 1}, {"log": True}])
def test_dimension_of_no_kind_says_what_to_write(content: Any) -> None:
    with pytest.raises(ValidationError, match=r"write \{low: ..., high: ...\}, \{choices: \[...\]\} or"):
        dimension("train.learning_rate", content)


def test_space_without_dimensions_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        StudyConfig.model_validate({"space": {}})


# What a space refuses because of the field a dimension stands for.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.epochs", RangeSpace(low=1.5, high=3), "space.train.epochs.low: must be a whole number, not 1.5"),
        ("train.epochs", RangeSpace(low=1, high=3.5), "space.train.epochs.high: must be a whole number, not 3.5"),
        ("train.epochs", RangeSpace(low=1, high=3, step=0.5), "space.train.epochs.step: must be a whole number"),
        ("train.early_stopping", RangeSpace(low=0.5, high=3), "space.train.early_stopping.low: must be a whole"),
        ("train.epochs", RangeSpace(low=0, high=3), "space.train.epochs: 0 cannot be used: input should be greater"),
        ("train.dropout", RangeSpace(low=0, high=1), "space.train.dropout: there is no such field; did you mean"),
        ("model.dropout", RangeSpace(low=0, high=1), "space.model.dropout: 1.0 cannot be used: input should be less"),
        ("model.base_channels", RangeSpace(low=8, high=16), "space.model.base_channels: 9 cannot be used: input"),
        ("model.base_channels", RangeSpace(low=8, high=64, log=True), "space.model.base_channels: 9 cannot be used"),
        ("model.base_channels", ChoiceSpace(choices=(8, 10)), "space.model.base_channels: 10 cannot be used"),
        ("model.pattern", ChoiceSpace(choices=("julia", "koch")), "space.model.pattern: 'koch' cannot be used"),
        ("model.pattern", RangeSpace(low=0, high=1), "space.model.pattern: this field is no number"),
        ("model.stem", LevelsSpace(num_stages=(1,), level=(1,)), "num_stages and level belong to model.fractal_levels"),
        (LEVELS, ChoiceSpace(choices=([1], [2, 0])), "space.model.fractal_levels: [2, 0] cannot be used"),
        ("model.patern", ChoiceSpace(choices=("julia",)), "space.model.patern: there is no such field; did you mean m"),
        ("data.limit", ChoiceSpace(choices=(100,)), "space.data.limit: there is no such field; allowed: model.fractal"),
        ("x", ChoiceSpace(choices=(1,)), "space.x: there is no such field"),
    ],
)
def test_check_space_value_the_field_refuses(name: str, content: Any, message: str) -> None:
    (problem,) = check_space({name: content})
    assert problem.startswith(f"space.{name}")
    assert message in problem


def test_check_space_did_you_mean_names_the_field() -> None:
    (problem,) = check_space({"train.learning_rat": RangeSpace(low=0.1, high=1)})
    assert problem == "space.train.learning_rat: there is no such field; did you mean train.learning_rate?"


def test_check_space_several_problems_are_all_there() -> None:
    space = {"x": ChoiceSpace(choices=(1,)), "train.epochs": RangeSpace(low=0, high=3), **DEFAULT_SPACE}
    assert [problem.partition(":")[0] for problem in check_space(space)] == ["space.x", "space.train.epochs"]


def test_check_space_rules_between_fields_are_left_to_whole_configurations() -> None:
    assert check_space({"train.warmup_epochs": RangeSpace(low=0, high=5)}) == []


@pytest.mark.parametrize("name", ["model.continuous_learning", "train.keep_best"])
def test_check_space_range_for_yes_or_no_is_refused(name: str) -> None:
    assert check_space({name: RangeSpace(low=0, high=1)}) != []


def test_check_space_many_levels_takes_little_memory() -> None:
    space = {LEVELS: LevelsSpace(num_stages=(6,), level=tuple(range(1, 9)))}
    tracemalloc.start()
    try:
        assert check_space(space) == []
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_is_integer_is_true_for_whole_number_fields_only() -> None:
    assert {name for name in FIELDS if is_integer(name)} == INTEGERS


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_can_be_searched(name: str) -> None:
    default = field_value(StudyConfig(), name)
    assert check_space({name: ChoiceSpace(choices=(default,))}) == []


# Values, corners, grids.


@pytest.mark.parametrize(
    ("value", "label"),
    [([1, 2], "[1, 2]"), ((1,), "[1]"), ("a", "a"), (None, None), (True, True), (3, 3), (0.5, 0.5)],
)
def test_encode_choice_is_what_a_database_can_hold(value: Any, label: Any) -> None:
    assert encode_choice(value) == label
    assert type(encode_choice(value)) is type(label)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("train.epochs", {"low": 1, "high": 4}, [1, 2, 3, 4]),
        ("train.epochs", {"low": 1.0, "high": 5.0, "step": 2.0}, [1, 3, 5]),
        ("train.epochs", {"low": 1, "high": 200}, [1, 200]),
        ("train.learning_rate", {"low": 1, "high": 2}, [1.0, 2.0]),
        ("train.learning_rate", {"low": 0.1, "high": 0.3, "step": 0.1}, [0.1, 0.2, 0.3]),
        ("train.clip_grad_norm", {"choices": [None, 1, 5]}, [None, 1, 5]),
        (LEVELS, {"choices": [[1], [1, 2]]}, [[1], [1, 2]]),
        (LEVELS, {"num_stages": [1, 2], "level": [1, 2]}, [(1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)]),
        (LEVELS, {"num_stages": [8], "level": [1, 2, 3]}, [(1,) * 8, (3,) * 8]),
    ],
)
def test_values_up_to_a_hundred(name: str, content: dict[str, Any], found: list[Any]) -> None:
    got = values(name, dimension(name, content), most=100)
    assert got == (pytest.approx(found) if isinstance(found[0], float) else found)
    assert [type(value) for value in got] == [type(value) for value in found]


def test_corners_of_the_default_space_are_its_extremes() -> None:
    found = list(corners(DEFAULT_SPACE))
    assert {point[LEVELS] for point in found} == {(1,), (2,), (1, 1), (2, 2)}
    assert {point["model.base_channels"] for point in found} == {8, 24}
    assert len({point["model.pattern"] for point in found}) == 5
    assert {point["train.learning_rate"] for point in found} == {0.003, 0.05}
    assert len(found) == 4 * 2 * 5 * 2


def test_corners_of_unordered_choices_are_all_of_them() -> None:
    space = {
        "train.clip_grad_norm": ChoiceSpace(choices=(None, 1.0, 2.0)),
        "train.keep_best": ChoiceSpace(choices=(True, False)),
    }
    assert len(list(corners(space))) == 6


@pytest.mark.parametrize(
    "continuous",
    [{"train.learning_rate": RangeSpace(low=0.1, high=1)}, {"train.epochs": RangeSpace(low=1, high=8, log=True)}],
)
def test_grid_points_of_a_continuous_range_is_an_error(continuous: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"space\.{next(iter(continuous))}: a grid needs `step` or `choices`"):
        grid_points({"model.pattern": ChoiceSpace(choices=("julia",)), **continuous})


def test_study_with_a_grid_over_a_continuous_range_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"space\.train\.learning_rate: a grid needs"):
        StudyConfig.model_validate({"search": {"sampler": "grid"}})


@st.composite
def stepped(draw: st.DrawFn, low: int, high: int, unit: float) -> dict[str, Any]:
    """A range in steps, within `low` and `high` units."""
    start = draw(st.integers(low, high - 1))
    step = draw(st.integers(1, high - start))
    count = draw(st.integers(1, (high - start) // step))
    return {"low": start * unit, "high": (start + count * step) * unit, "step": step * unit}


def some_of(options: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(options), min_size=1, max_size=3, unique_by=str)


def choices_of(options: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return some_of(options).map(lambda some: {"choices": some})


DISCRETE = {
    LEVELS: st.fixed_dictionaries({"num_stages": some_of([1, 2, 3]), "level": some_of([1, 2, 8])})
    | choices_of([[1], [2], [1, 2], [8, 8, 8]]),
    "model.base_channels": stepped(1, 8, 4) | choices_of([4, 8, 64]),
    "model.pattern": choices_of(["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]),
    "model.continuous_learning": choices_of([True, False]),
    "model.dropout": stepped(0, 9, 0.1),
    "train.epochs": stepped(1, 6, 1),
    "train.clip_grad_norm": choices_of([None, 0.5, 1]),
    "train.early_stopping": stepped(1, 4, 1) | choices_of([None, 3]),
}
CONTINUOUS = {
    "train.learning_rate": st.tuples(st.floats(1e-6, 1e-2), st.floats(2e-2, 1)).map(
        lambda ends: {"low": ends[0], "high": ends[1], "log": True}
    ),
    "train.batch_size": st.tuples(st.integers(2, 64), st.integers(65, 10**9)).map(
        lambda ends: {"low": ends[0], "high": ends[1], "log": True}
    ),
    "model.drop_path_prob": st.floats(0.01, 0.99).map(lambda high: {"low": 0, "high": high}),
    "data.augment.rotation": st.floats(0.01, 180).map(lambda high: {"low": 0, "high": high}),
}


def spaces(dimensions: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dimensions).filter(lambda space: 0 < len(space) <= 4)


@given(space=spaces(DISCRETE | CONTINUOUS))
def test_every_corner_of_a_valid_space_is_a_valid_trial(space: dict[str, Any]) -> None:
    study = StudyConfig.model_validate({"space": space})
    found = list(corners(study.space))
    assert 1 <= len(found) <= math.prod(12 if name == LEVELS else 4 for name in space)
    for point in found[:50]:
        assert point.keys() == space.keys()
        trial = study.trial(point, seed=0)
        for name, value in point.items():
            got = field_value(trial, name)
            assert got == (tuple(value) if isinstance(value, list) else value)


@given(space=spaces(DISCRETE))
def test_every_point_of_a_grid_is_a_valid_trial_and_there_once(space: dict[str, Any]) -> None:
    study = StudyConfig.model_validate({"space": space, "search": {"sampler": "grid"}})
    points = grid_points(study.space)
    assert len(points) == math.prod(len(values(name, dim, most=10**6)) for name, dim in study.space.items())
    assert len({str(point) for point in points}) == len(points)
    for point in points[:50]:
        study.trial(point, seed=0)


@given(space=spaces(DISCRETE | CONTINUOUS))
def test_a_valid_space_survives_json(space: dict[str, Any]) -> None:
    study = StudyConfig.model_validate({"space": space})
    again = StudyConfig.model_validate_json(study.model_dump_json())
    assert again.model_dump(mode="json") == study.model_dump(mode="json")
    assert list(corners(again.space)) == list(corners(study.space))


@given(space=spaces(DISCRETE | CONTINUOUS), seed=st.integers(0, 2**32))
def test_every_drawn_point_is_a_valid_trial_within_the_space(space: dict[str, Any], seed: int) -> None:
    study = StudyConfig.model_validate({"space": space})
    point = draw_point(study.space, random.Random(seed))
    study.trial(point, seed=0)
    assert point == draw_point(study.space, random.Random(seed))
    for name, value in point.items():
        allowed = values(name, study.space[name], most=10**6)
        ends = getattr(study.space[name], "low", None), getattr(study.space[name], "high", None)
        assert value in allowed or (None not in ends and ends[0] <= value <= ends[1])


@pytest.mark.parametrize(
    ("name", "dimension", "expected"),
    [
        ("model.base_channels", {"choices": [4, 8]}, {4: 0.5, 8: 0.5}),
        ("train.epochs", {"low": 1, "high": 4}, {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        ("train.epochs", {"low": 2, "high": 6, "step": 2}, {2: 1 / 3, 4: 1 / 3, 6: 1 / 3}),
        (
            "train.epochs",
            {"low": 1, "high": 3, "log": True},
            {1: 0.565, 2: 0.263, 3: 0.173},
        ),
        ("model.fractal_levels", {"num_stages": [1, 2], "level": [3]}, {(3,): 0.5, (3, 3): 0.5}),
    ],
)
def test_draw_point_draws_evenly(name: str, dimension: dict[str, Any], expected: dict[Any, float]) -> None:
    space = StudyConfig.model_validate({"space": {name: dimension}}).space
    rng = random.Random(0)
    drawn = [draw_point(space, rng)[name] for _ in range(4000)]
    assert {value: drawn.count(value) / 4000 for value in set(drawn)} == pytest.approx(expected, abs=0.03)


def test_draw_point_on_a_logarithmic_scale_has_its_median_at_the_geometric_mean() -> None:
    space = StudyConfig.model_validate({"space": {"train.learning_rate": {"low": 1e-4, "high": 1, "log": True}}}).space
    rng = random.Random(0)
    drawn = [draw_point(space, rng)["train.learning_rate"] for _ in range(2000)]
    assert sum(value < 1e-2 for value in drawn) == pytest.approx(1000, abs=80)
    assert min(drawn) >= 1e-4 and max(drawn) <= 1
