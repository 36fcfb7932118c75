"""The search space: dimensions under the dotted names of the fields of a network, its training and its augmentation.

Every value of a dimension is checked against its field here, when a file is read. `study.sampling` turns dimensions
into suggestions of Optuna.
"""

import difflib
import itertools
import json
import math
import operator
import random
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, PlainValidator, Tag, ValidationError, model_validator

from fbsearch.config.models import AugmentConfig, ModelConfig, StrictModel, TrainConfig
from fbsearch.errors import printable

AUGMENT = "data.augment"
SECTIONS: dict[str, type[StrictModel]] = {"model": ModelConfig, "train": TrainConfig, AUGMENT: AugmentConfig}
# Fields without an effect on results: they cannot be searched, and may change when a study is resumed.
NEUTRAL_FIELDS = ("train.tensorboard", "train.cuda_graph")
# The same for all trials of a study, which could not be compared otherwise.
COMMON_FIELDS = ("train.budget",)
FIELDS = tuple(
    f"{section}.{field}"
    for section, model in SECTIONS.items()
    for field in model.model_fields
    if f"{section}.{field}" not in NEUTRAL_FIELDS + COMMON_FIELDS
)
LEVELS = "model.fractal_levels"
# The values of an integer range are all checked up to this number of values, beyond it only the two ends.
MAX_CHECKED_VALUES = 4096
# The highest number of values of a dimension of a grid, and of its points.
MAX_GRID = 100_000
# The largest end of a range: sums and quotients of such numbers are finite.
MAX_NUMBER = 1e18


def split_name(name: str) -> tuple[str, str]:
    """Return the section and the field of a dotted name: ("model", "fractal_levels"), ("data.augment", "scale")."""
    if name.startswith(f"{AUGMENT}."):
        return AUGMENT, name.removeprefix(f"{AUGMENT}.")
    section, _, field = name.partition(".")
    return section, field


def field_value(config: object, name: str) -> Any:
    """Return the value of a dotted name in a configuration."""
    return operator.attrgetter(name)(config)


def encode_choice(value: Any) -> str | int | float | bool | None:
    """Return a choice as a database can hold it: a list as JSON text, any other value unchanged.

    Raises ValueError for a value of a type that no field has.
    """
    if isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
        return json.dumps(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError(f"{value!r} cannot be a choice: write text, a number, true, false, null or a list of integers")


def format_value(value: Any) -> str:
    """Format the value of a field for people, as YAML writes it: `[1, 2]`, `0.0123`, `true`, `null` (also for NaN)."""
    if isinstance(value, (list, tuple)):
        return str(list(value))
    if isinstance(value, float):
        return "null" if math.isnan(value) else f"{value:.4g}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _check_number(value: Any) -> int | float:
    """Return a finite number as it is: an integer stays one, so that 8 is not written as 8.0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_NUMBER:
        raise ValueError(f"must be a finite number between {-MAX_NUMBER:g} and {MAX_NUMBER:g}")
    return value


Number = Annotated[int | float, PlainValidator(_check_number, json_schema_input_type=float)]


class RangeSpace(StrictModel):
    """Numbers from `low` to `high`, both inclusive."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @model_validator(mode="after")
    def _check(self) -> "RangeSpace":
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be greater than 0, not {self.step:g}")
        if self.low >= self.high:
            raise ValueError(f"empty range: low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low:g}: the logarithm of 0 does not exist")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other: take one of them, or write `choices`")
        if self.step is not None and not _is_multiple(self.high - self.low, self.step):
            raise ValueError(
                f"high {self.high:g} is not low {self.low:g} plus a whole number of steps of {self.step:g}"
            )
        return self


class ChoiceSpace(StrictModel):
    """A list of values."""

    choices: tuple[Any, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _check(self) -> "ChoiceSpace":
        if len({encode_choice(value) for value in self.choices}) < len(self.choices):
            raise ValueError("each choice may occur only once")
        return self


class LevelsSpace(StrictModel):
    """Numbers of stages, and the fractal levels that each stage can have."""

    num_stages: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(min_length=1, strict=False)
    level: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _check(self) -> "LevelsSpace":
        for key in ("num_stages", "level"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"each value of {key} may occur only once")
        return self

    def count(self) -> int:
        """Return the number of tuples of levels."""
        return sum(len(self.level) ** n for n in self.num_stages)

    def combinations(self) -> list[tuple[int, ...]]:
        """Return every tuple of levels, in the order of `num_stages` and `level`."""
        return [levels for n in self.num_stages for levels in itertools.product(self.level, repeat=n)]


def _kind(value: Any) -> str | None:
    keys = value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, StrictModel) else ()
    if "choices" in keys:
        return "<choices>"
    if "num_stages" in keys or "level" in keys:
        return "<levels>"
    return "<range>" if "low" in keys or "high" in keys else None


Dimension = Annotated[
    Annotated[RangeSpace, Tag("<range>")]
    | Annotated[ChoiceSpace, Tag("<choices>")]
    | Annotated[LevelsSpace, Tag("<levels>")],
    Discriminator(
        _kind,
        custom_error_type="dimension",
        custom_error_message="write {low: ..., high: ...}, {choices: [...]} or, for model.fractal_levels, "
        "{num_stages: [...], level: [...]}",
    ),
]

DEFAULT_SPACE: dict[str, Any] = {
    LEVELS: LevelsSpace(num_stages=(1, 2), level=(1, 2)),
    "model.base_channels": ChoiceSpace(choices=(8, 16, 24)),
    "model.pattern": ChoiceSpace(choices=("mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve")),
    "train.learning_rate": RangeSpace(low=0.003, high=0.05, log=True),
}


def _types(name: str) -> tuple[Any, ...]:
    """Return the types of a field: `float | None` has two."""
    section, field = split_name(name)
    annotation = SECTIONS[section].model_fields[field].annotation
    return annotation, *typing.get_args(annotation)


def is_integer(name: str) -> bool:
    """Return True if the field of the dotted `name` holds whole numbers."""
    return int in _types(name)


def check_space(space: Mapping[str, Any]) -> list[str]:
    """Return all errors of a space, as lines that begin with the key."""
    problems = []
    for name, dimension in space.items():
        if name in COMMON_FIELDS:
            problems.append(f"space.{name}: is the same for all trials; set it in {name.partition('.')[0]}")
        elif name not in FIELDS:
            same = [field for field in FIELDS if split_name(field)[1] == name.rpartition(".")[2]]
            close = same or difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else "allowed: " + ", ".join(FIELDS)
            problems.append(f"space.{printable(name)}: there is no such field; {hint}")
        elif isinstance(dimension, LevelsSpace) and name != LEVELS:
            problems.append(f"space.{name}: num_stages and level belong to {LEVELS}; write low and high, or choices")
        else:
            problems += _check_dimension(name, dimension)
    return problems


def _check_dimension(name: str, dimension: Any) -> list[str]:
    if isinstance(dimension, RangeSpace) and not {int, float} & set(_types(name)):
        return [f"space.{name}: this field is no number; write choices"]
    if isinstance(dimension, RangeSpace) and is_integer(name):
        for key in ("low", "high", "step"):
            value = getattr(dimension, key)
            if value is not None and value != int(value):
                return [f"space.{name}.{key}: must be a whole number, not {value:g}"]
    for value in values(name, dimension, most=MAX_CHECKED_VALUES):
        problem = _check_value(name, value)
        if problem:
            return [f"space.{name}: {problem}"]
    return []


def _check_value(name: str, value: Any) -> str | None:
    section, field = split_name(name)
    try:
        # model_construct skips the checks between fields, which need a whole configuration: one field is checked alone.
        SECTIONS[section].__pydantic_validator__.validate_assignment(SECTIONS[section].model_construct(), field, value)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"][:1] == (field,):
            message = first["msg"].removeprefix("Value error, ")
            return f"{value!r} cannot be used: {message[0].lower()}{message[1:]}"
    return None


def values(name: str, dimension: Any, *, most: int) -> list[Any]:
    """Return all values of a dimension, or the two ends of a continuous range and of more than `most` values."""
    if isinstance(dimension, ChoiceSpace):
        return list(dimension.choices)
    if isinstance(dimension, LevelsSpace):
        return _level_ends(dimension) if most < dimension.count() else dimension.combinations()
    number = int if is_integer(name) else float
    step = dimension.step or (1 if is_integer(name) else None)
    if step is None or (dimension.high - dimension.low) / step + 1 > most:
        return [number(dimension.low), number(dimension.high)]
    count = round((dimension.high - dimension.low) / step) + 1
    return [number(dimension.low + i * step) for i in range(count)]


def _level_ends(dimension: LevelsSpace) -> list[tuple[int, ...]]:
    ends = (min(dimension.level), max(dimension.level))
    return [(level,) * n for n in dimension.num_stages for level in dict.fromkeys(ends)]


def _ends(name: str, dimension: Any) -> list[Any]:
    """Return the extreme values of a dimension, or all values of a choice without an order."""
    if isinstance(dimension, LevelsSpace):
        return _level_ends(dimension)
    found = values(name, dimension, most=2)
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found):
        return list(dict.fromkeys((min(found), max(found))))
    return found


def corners(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the extreme values of all dimensions, as {dotted name: value}."""
    for combination in itertools.product(*(_ends(name, dimension) for name, dimension in space.items())):
        yield dict(zip(space, combination, strict=True))


def grid_points(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every point of a space as {dotted name: value}. Raises ValueError if a range is continuous."""
    axes = []
    for name, dimension in space.items():
        if isinstance(dimension, RangeSpace) and dimension.step is None and (dimension.log or not is_integer(name)):
            raise ValueError(f"space.{name}: a grid needs `step` or `choices` here, a continuous range has no end")
        axes.append(values(name, dimension, most=MAX_GRID))
    num_points = math.prod(map(len, axes))
    if num_points > MAX_GRID:
        raise ValueError(f"space: a grid of {num_points:,} points, at most {MAX_GRID:,} can be searched; take out some")
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*axes)]


def draw_point(space: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """Draw a point of a space, as {dotted name: value}: uniform in each dimension, log-uniform where `log` is set."""
    return {name: _draw(name, dimension, rng) for name, dimension in space.items()}


def _draw(name: str, dimension: Any, rng: random.Random) -> Any:
    if isinstance(dimension, ChoiceSpace):
        return rng.choice(dimension.choices)
    if isinstance(dimension, LevelsSpace):
        return tuple(rng.choice(dimension.level) for _ in range(rng.choice(dimension.num_stages)))
    low, high = dimension.low, dimension.high
    if dimension.log:
        # A whole number covers all values that are rounded to it, so that the ends are not drawn half as often.
        margin = 0.5 if is_integer(name) else 0
        value = math.exp(rng.uniform(math.log(low - margin), math.log(high + margin)))
        value = min(max(round(value) if is_integer(name) else value, low), high)
    elif is_integer(name) or dimension.step is not None:
        step = dimension.step or 1
        value = low + step * rng.randint(0, round((high - low) / step))
    else:
        value = rng.uniform(low, high)
    return int(value) if is_integer(name) else float(value)


def _is_multiple(value: float, step: float) -> bool:
    return math.isfinite(value / step) and abs(value / step - round(value / step)) < 1e-6
