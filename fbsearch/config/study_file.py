"""The two YAML formats that users keep: the study file, which says what to search, and the export of the best.

Reads, checks and writes both; all errors of a file are shown together, each with its key path. This file must not
import torch or optuna.
"""

import contextlib
import datetime
import difflib
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from fbsearch.config.models import DataConfig, LimitsConfig, ModelConfig, Strict, TrainConfig, TrialConfig
from fbsearch.config.space import DEFAULT_SPACE, FIELDS, SECTIONS, Dimension, check_space, corners, grid_points
from fbsearch.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

MAX_NAME = 200
EXPORT_FORMAT = "fbsearch-export/1"
# A space with more corners than this is checked at the first of them only; `validate` says so.
MAX_CORNERS = 2048


class SearchConfig(Strict):
    """How the space is searched."""

    metric: Literal["val_accuracy"] = Field(
        "val_accuracy", description="what is maximised, measured on the validation split"
    )
    sampler: Literal["tpe", "random", "cmaes", "gp", "grid"] = Field(
        "tpe", description="tpe | random | cmaes | gp | grid"
    )
    pruner: Literal["median", "successive_halving", "hyperband", "none"] = Field(
        "successive_halving", description="median | successive_halving | hyperband | none"
    )
    seed: int = Field(0, ge=0, description="of the sampler, and with the trial's number of each trial")
    limits: LimitsConfig = Field(
        LimitsConfig(), description="most parameters, FLOPs an image, MiB of training; null is no limit"
    )


class StudyConfig(Strict):
    """A whole study file. Its defaults are the default study: scikit-learn's digits, 100 trials in a few minutes."""

    name: str = Field("digits", min_length=1, max_length=MAX_NAME, description="the study's name in the database")
    data: DataConfig = Field(DataConfig(), description="which images")
    model: ModelConfig = Field(ModelConfig(), description="the network; what `space` names is sampled instead")
    train: TrainConfig = Field(TrainConfig(), description="one training run; what `space` names is sampled instead")
    space: dict[str, Dimension] = Field(
        DEFAULT_SPACE,
        min_length=1,
        description="what is searched: any field of model or train, as {low, high, log, step} or {choices: [...]}",
        json_schema_extra={"propertyNames": {"enum": list(FIELDS)}},
    )
    search: SearchConfig = Field(SearchConfig(), description="how it is searched")

    @model_validator(mode="after")
    def _check_space(self) -> "StudyConfig":
        problems = check_space(self.space)
        if not problems and self.search.sampler == "grid":
            try:
                grid_points(self.space)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def trial(self, values: dict[str, Any], *, seed: int) -> TrialConfig:
        """The configuration of one trial; `values` maps dotted names to what was sampled. ConfigError if they clash."""
        sections = {name: getattr(self, name).model_dump() for name in SECTIONS}
        for name, value in values.items():
            section, field = name.split(".")
            sections[section][field] = value
        try:
            return TrialConfig.model_validate(
                {"data": self.data, "seed": seed, "limits": self.search.limits, **sections}
            )
        except ValidationError as error:
            lines = _describe(error, TrialConfig)
            raise ConfigError(f"{values} cannot be used together: " + "; ".join(lines)) from None

    def corners(self) -> Iterator[TrialConfig]:
        """The trial of each corner of the space, at most MAX_CORNERS."""
        for count, values in enumerate(corners(self.space)):
            if count == MAX_CORNERS:
                return
            yield self.trial(values, seed=self.search.seed)


class ExportedConfig(Strict):
    """One of the best configurations: whole and resolved, no default left to guess."""

    rank: int = Field(ge=1)
    trial: int = Field(ge=0)
    value: float
    num_parameters: int
    num_classes: int
    in_channels: int
    image_size: int
    seed: int = Field(ge=0)
    data: DataConfig
    model: ModelConfig
    train: TrainConfig


class SearchCompute(Strict):
    """What a study's finished trials have cost.

    `train_flops` is the sum of one image's forward FLOPs x training images x epochs run: the same on every machine.
    A training step costs about three forward passes, in every network alike.
    """

    num_trials: int = Field(ge=1)
    num_epochs: int = Field(ge=0)
    train_flops: int = Field(ge=0)
    seconds: float = Field(ge=0)


class Searched(Strict):
    """What a search drew from and what it spent: what it takes to search the same space otherwise at equal compute."""

    model: ModelConfig
    train: TrainConfig
    space: dict[str, Dimension] = Field(min_length=1)
    compute: SearchCompute


class Export(Strict):
    """The file that `fbsearch export` writes. Files from before there was `search` have none."""

    format: Literal["fbsearch-export/1"] = "fbsearch-export/1"
    study: str
    exported: datetime.datetime
    versions: dict[str, str]
    configs: tuple[ExportedConfig, ...] = Field(min_length=1, strict=False)
    search: Searched | None = None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader; a key that stands twice is an error, and 1e-3 is a number (YAML 1.2, not 1.1's text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key_node.value for key_node, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:  # a date or a number that cannot be, such as 2026-13-45
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path, *, maker: str) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError names file, line and fault. `maker` is the command that writes one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `{maker}` writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, such as `name: my-study`, found {type(content).__name__}")
    return content


def load_study(path: Path) -> StudyConfig:
    """Read and check a study file. ConfigError lists everything that is wrong with it."""
    return _validate(StudyConfig, read_yaml(path, maker=f"fbsearch init {path}"), path)


def load_export(path: str | Path) -> Export:
    """Read and check a file that `fbsearch export` wrote. ConfigError if it is none, or of a newer format."""
    path = Path(path)
    maker = f"fbsearch export --output {path}"
    content = read_yaml(path, maker=maker)
    found = content.get("format")
    if found != EXPORT_FORMAT:
        newer = isinstance(found, str) and found.startswith("fbsearch-export/")
        reason = f"its format is {found!r}, this fbsearch reads {EXPORT_FORMAT!r}" if newer else "it is no export"
        raise ConfigError(f"{path}: format: {reason}; `{maker}` writes one")
    return _validate(Export, content, path)


def _validate(model: type[Model], content: dict[str, Any], path: Path) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = _describe(error, model)
        if model is StudyConfig:
            lines += _check_sound_dimensions(content.get("space"))
        raise ConfigError("\n".join(f"{path}: {line}" for line in dict.fromkeys(lines))) from None


def _check_sound_dimensions(space: Any) -> list[str]:
    """What is wrong with the values of those dimensions that can be read, where something else in the file is wrong."""
    sound = {}
    for name, dimension in space.items() if isinstance(space, dict) else ():
        with contextlib.suppress(ValidationError):
            sound[name] = TypeAdapter(Dimension).validate_python(dimension)
    return check_space(sound)


def _describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """The errors of pydantic as lines `key.path: what is wrong and what is allowed`."""
    lines = []
    items = error.errors()
    for item in items:
        if any(other["loc"][: len(item["loc"])] == item["loc"] and other is not item for other in items):
            continue  # only says again that something below it is wrong
        loc = tuple(part for part in item["loc"] if not str(part).startswith("<"))
        key = ".".join(str(part) for part in loc)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = _unknown_key(model, item["loc"])
        elif item["type"] == "missing":
            message = "this key is missing"
        elif not isinstance(item["input"], (dict, BaseModel)):
            message = f"{message[0].lower()}{message[1:]}, found {item['input']!r}"
        lines += [f"{key}: {message}"] if key else message.split("\n")
    return lines


def _unknown_key(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """What to write instead of a key that is not known, from the model that `loc` leads to."""
    allowed: list[str] = []
    current: type[BaseModel] | None = model
    annotation: Any = None
    for part in loc[:-1]:
        if isinstance(part, int):
            annotation = next(iter(typing.get_args(annotation)), None)
        else:
            field = current.model_fields.get(part) if current else None
            annotation = field.annotation if field else None
        current = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    if current is not None:
        allowed = list(current.model_fields)
    elif loc[-2:-1]:
        tags = {"<range>": "low, high, log, step", "<choices>": "choices", "<levels>": "num_stages, level"}
        return f"unknown key; allowed: {tags.get(str(loc[-2]), 'none')}"
    close = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    return "unknown key; " + (f"did you mean {close[0]}?" if close else "allowed: " + ", ".join(allowed))


def render_study(config: StudyConfig) -> str:
    """A study file with every key, each with a comment on what it means."""
    intro = "# A study file of fbsearch: what to search. How to run it is said by flags: fbsearch run --help.\n\n"
    return intro + "".join(_render(config, indent=0))


def _render(model: BaseModel, *, indent: int) -> Iterator[str]:
    plain = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        key = f"{' ' * indent}{name}:"
        if indent == 0 and isinstance(value, BaseModel):
            yield f"{key:30} # {field.description}\n"
            yield from _render(value, indent=2)
        elif isinstance(value, dict):
            yield f"{key:30} # {field.description}\n"
            yield from (f"  {dotted}: {_flow(_set_keys(dimension))}\n" for dotted, dimension in value.items())
        else:
            yield f"{key + ' ' + _flow(plain[name]):30} # {field.description}\n"


def _set_keys(dimension: BaseModel) -> dict[str, Any]:
    """A dimension without the keys that are off, so that a range shows no empty `step`."""
    return {
        key: value
        for key, value in dimension.model_dump(mode="json").items()
        if value is not None and value is not False
    }


def _flow(value: Any) -> str:
    """A plain value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def dump_export(export: Export) -> str:
    """The text of an export file."""
    content = export.model_dump(mode="json", exclude={"search"}) | {"exported": export.exported}
    if export.search is not None:
        space = {name: _set_keys(dimension) for name, dimension in export.search.space.items()}
        content["search"] = export.search.model_dump(mode="json") | {"space": space}
    return to_yaml(content)


def to_yaml(content: dict[str, Any]) -> str:
    """YAML for people: keys in the given order, below each other; a list of plain values on one line."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Block style for the outline, one line for lists of plain values."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flat = flow_style or not any(isinstance(item, (dict, list)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flat)

    def represent_datetime(self, data: datetime.datetime) -> yaml.ScalarNode:
        text = data.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.represent_scalar("tag:yaml.org,2002:timestamp", text)


_Dumper.add_representer(datetime.datetime, _Dumper.represent_datetime)
