"""The study file: what to search, and how a network is trained. All errors of a file are shown together."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from fbsearch.config.models import DataConfig, LimitsConfig, ModelConfig, Strict, TrainConfig, TrialConfig
from fbsearch.config.space import DEFAULT_SPACE, FIELDS, SECTIONS, Dimension, check_space, corners, grid_points
from fbsearch.config.yaml_format import describe_errors, on_one_line, read_yaml, without_unset_keys
from fbsearch.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

MAX_NAME = 200
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
            lines = describe_errors(error, TrialConfig)
            raise ConfigError(f"{values} cannot be used together: " + "; ".join(lines)) from None

    def corners(self) -> Iterator[TrialConfig]:
        """The trial of each corner of the space, at most MAX_CORNERS."""
        for count, values in enumerate(corners(self.space)):
            if count == MAX_CORNERS:
                return
            yield self.trial(values, seed=self.search.seed)


def load_study_file(path: Path) -> StudyConfig:
    """Read and check a study file. ConfigError lists everything that is wrong with it."""
    return validate_content(StudyConfig, read_yaml(path, maker=f"fbsearch init {path}"), path)


def validate_content(model: type[Model], content: dict[str, Any], path: Path) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = describe_errors(error, model)
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
            yield from (
                f"  {dotted}: {on_one_line(without_unset_keys(dimension))}\n" for dotted, dimension in value.items()
            )
        else:
            yield f"{key + ' ' + on_one_line(plain[name]):30} # {field.description}\n"


def check_paths(file: Path, *, data: DataConfig, train: TrainConfig) -> None:
    """Refuse paths that leave the current folder: absolute ones, `~`, `..`, and links that lead out.

    ConfigError names file, key, path and way out.
    """
    here = Path.cwd().resolve()
    for key, value in {"data.root": data.root, "train.tensorboard": train.tensorboard}.items():
        if value is None:
            continue
        path = Path(value)
        if path.is_absolute() or value.startswith("~") or ".." in path.parts or not _leads_below(path, here):
            raise ConfigError(
                f"{file}: {key}: {value!r} leaves the current folder, which --untrusted does not allow; put the data "
                f"below {here} and name them from there, or leave --untrusted away if you trust the file"
            )


def _leads_below(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder once its links are followed, those inside an image tree too."""
    return all(found.resolve().is_relative_to(folder) for found in (path, *_links(path)))


def _links(folder: Path) -> list[Path]:
    """The symbolic links at most three levels down: train, its classes, their images."""
    return [found for pattern in ("*", "*/*", "*/*/*") for found in folder.glob(pattern) if found.is_symlink()]
