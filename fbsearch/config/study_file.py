"""The study file: the search space, the training of a network and the settings of a search."""

import contextlib
import functools
import itertools
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from fbsearch.config.goals import GOALS, METRICS, PARETO_PRUNERS, SINGLE_SAMPLERS, Metric, Objective
from fbsearch.config.models import (
    MAX_STUDY_SEED,
    BudgetConfig,
    DataConfig,
    LimitsConfig,
    ModelConfig,
    StrictModel,
    TrainConfig,
    TrialConfig,
)
from fbsearch.config.space import DEFAULT_SPACE, FIELDS, Dimension, check_space, corners, grid_points, split_name
from fbsearch.config.yaml_format import describe_errors, dump_dimension, read_yaml, to_flow_yaml, validate_content
from fbsearch.errors import ConfigError

MAX_NAME = 200
# Only this many corners of a space are checked; `validate` says so.
MAX_CORNERS = 2048

# What a study file leaves out of `model` and `train`: the parts that pay in short runs, and ModelConfig's and
# TrainConfig's defaults for the rest. Networks that are built in Python, and studies that are stored, have the latter.
SHORT_RUN_MODEL = ModelConfig(
    fractal_levels=(1, 2), base_channels=16, dynamics="last", join="mean", scale_processor="none", downsample="pool",
    stem="pool3", global_attention="none", drop_path="none", activation="relu", continuous_learning=False, dropout=0.0,
    init="identity",
)  # fmt: skip
SHORT_RUN_TRAINING = TrainConfig(epochs=6, optimizer="muon")


class SearchConfig(StrictModel):
    """The settings of a search."""

    metric: Metric = Field(
        "val_accuracy",
        description="what is maximised, on the validation split: val_accuracy | macro_f1 | balanced_accuracy",
    )
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2, max_length=3)] | None = Field(
        None,
        strict=False,
        description=f"instead of metric, two or three of {', '.join(GOALS)}; the first names the best",
    )
    sampler: Literal["tpe", "random", "nsga2", "cmaes", "gp", "grid"] = Field(
        "tpe", description="tpe | random | nsga2 | cmaes | gp | grid"
    )
    pruner: Literal["median", "successive_halving", "hyperband", "none"] = Field(
        "successive_halving", description="median | successive_halving | hyperband | none"
    )
    seed: int = Field(
        0, ge=0, le=MAX_STUDY_SEED, description="of the sampler; a trial's own seed is this plus its number"
    )
    final_race: int = Field(
        0, ge=0, le=20, description="so many of the best are run again before one is named, by the mean; 0: none"
    )
    limits: LimitsConfig = Field(
        LimitsConfig(), description="most parameters, FLOPs an image, MiB of training; null is no limit"
    )

    @property
    def goals(self) -> tuple[str, ...]:
        """The objectives, or the metric as the only one."""
        return (self.metric,) if self.objectives is None else self.objectives

    @model_validator(mode="after")
    def _check_objectives(self) -> "SearchConfig":
        if self.objectives is None:
            return self
        problems = []
        if len(set(self.objectives)) < len(self.objectives):
            problems.append(f"objectives {list(self.objectives)}: each can stand there once")
        if self.objectives[0] not in METRICS:
            problems.append(f"objectives: the first one names the best trial, and is one of {', '.join(METRICS)}")
        if self.metric != "val_accuracy":
            problems.append("metric: goes without objectives, the first of which takes its place")
        if self.sampler in SINGLE_SAMPLERS:
            problems.append(f"sampler {self.sampler}: has one objective; tpe, nsga2, gp, random and grid have several")
        if self.pruner not in PARETO_PRUNERS:
            problems.append(f"pruner {self.pruner}: has one objective; {' and '.join(PARETO_PRUNERS)} have several")
        if self.final_race:
            problems.append("final_race: compares one score; it goes without objectives")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class StudyConfig(StrictModel):
    """The content of a study file. Its defaults are the default study, on scikit-learn's digits."""

    name: str = Field("digits", min_length=1, max_length=MAX_NAME, description="the study's name in the database")
    data: DataConfig = Field(DataConfig(), description="which images")
    model: ModelConfig = Field(SHORT_RUN_MODEL, description="the network; what `space` names is sampled instead")
    train: TrainConfig = Field(
        SHORT_RUN_TRAINING, description="one training run; what `space` names is sampled instead"
    )
    space: dict[str, Dimension] = Field(
        DEFAULT_SPACE,
        min_length=1,
        max_length=len(FIELDS),
        description="what is searched: any field of model, train or data.augment, as {low, high, log, step} or "
        "{choices: [...]}",
        json_schema_extra={"propertyNames": {"enum": list(FIELDS)}},
    )
    search: SearchConfig = Field(SearchConfig(), description="how it is searched")

    @model_validator(mode="after")
    def _check_space(self) -> "StudyConfig":
        problems = check_space(self.space)
        if self.train.budget is not None and "train.epochs" in self.space:
            problems.append("space.train.epochs: counts the parts of train.budget, the same in all trials")
        if not problems and self.search.sampler == "grid":
            try:
                grid_points(self.space)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def trial(self, values: dict[str, Any], *, seed: int) -> TrialConfig:
        """Return a trial's configuration. `values` maps dotted names to sampled values; ConfigError if they clash."""
        sections = self.model_dump(include={"data", "model", "train"})
        for name, value in values.items():
            section, field = split_name(name)
            functools.reduce(operator.getitem, section.split("."), sections)[field] = value
        try:
            costs = {"limits": self.search.limits, "goals": self.search.goals}
            return TrialConfig.model_validate({**sections, **costs, "seed": seed})
        except ValidationError as error:
            lines = describe_errors(error, TrialConfig)
            raise ConfigError(f"{values} cannot be used together: " + "; ".join(lines)) from None

    def corners(self) -> Iterator[TrialConfig]:
        """Yield the trials of the corners of the space, at most MAX_CORNERS."""
        for values in itertools.islice(corners(self.space), MAX_CORNERS):
            yield self.trial(values, seed=self.search.seed)


def load_study_file(path: Path) -> StudyConfig:
    """Read and check a study file. Raises ConfigError, which lists all errors of the file."""
    content = read_yaml(path, maker=f"fbsearch init {path}")
    for section, default in (("model", SHORT_RUN_MODEL), ("train", SHORT_RUN_TRAINING)):
        if isinstance(content.get(section), dict):
            content[section] = _leave_needed(default, content) | content[section]
    return validate_content(StudyConfig, content, path, check_further=_check_valid_dimensions)


def _leave_needed(default: StrictModel, content: dict[str, Any]) -> dict[str, Any]:
    """Return the short-run defaults of a section, without one that would take the effect from what the file says."""
    fields = default.model_dump(mode="json", exclude_unset=True)
    space, model = content.get("space"), content.get("model")
    is_searched = isinstance(space, dict) and "model.drop_path_prob" in space
    if is_searched or (isinstance(model, dict) and "drop_path_prob" in model):
        fields.pop("drop_path", None)
    return fields


def _check_valid_dimensions(content: dict[str, Any]) -> list[str]:
    """Return the errors in the values of dimensions that are valid by themselves, in a file that has other errors."""
    space, valid = content.get("space"), {}
    for name, dimension in space.items() if isinstance(space, dict) and len(space) <= len(FIELDS) else ():
        with contextlib.suppress(ValidationError):
            valid[str(name)] = TypeAdapter(Dimension).validate_python(dimension)
    return check_space(valid)


def render_study(config: StudyConfig) -> str:
    """Return the text of a study file with every key and a comment on each."""
    intro = "# A study file of fbsearch: what to search. Flags say how to run it: fbsearch run --help.\n\n"
    return intro + "".join(_render(config, indent=0))


def _render(model: BaseModel, *, indent: int) -> Iterator[str]:
    plain = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        key = f"{' ' * indent}{name}:"
        if isinstance(value, BaseModel) and not isinstance(value, BudgetConfig):  # which has one of its keys
            yield f"{key:30} # {field.description}\n"
            yield from _render(value, indent=indent + 2)
        elif isinstance(value, dict):
            yield f"{key:30} # {field.description}\n"
            yield from (
                f"  {dotted}: {to_flow_yaml(dump_dimension(dimension))}\n" for dotted, dimension in value.items()
            )
        else:
            yield f"{key + ' ' + to_flow_yaml(plain[name]):30} # {field.description}\n"
