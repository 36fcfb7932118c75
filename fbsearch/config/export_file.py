"""The export file: the best configurations of a study, written by `fbsearch export` and read by `fbsearch train`."""

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from fbsearch.config.models import (
    COMMON_NETWORK,
    MAX_IMAGE_SIZE,
    MAX_SEED,
    DataConfig,
    ModelConfig,
    StrictModel,
    TrainConfig,
)
from fbsearch.config.space import FIELDS, Dimension
from fbsearch.config.yaml_format import dump_dimension, read_yaml, to_yaml, validate_content
from fbsearch.errors import ConfigError
from fbsearch.files import FileKind
from fbsearch.messages import ImageShape

EXPORT_FORMAT = "fbsearch-export/1"
# More are mistakes, which would only be noticed when memory has run out.
MAX_CLASSES = 1_000_000
MAX_CHANNELS = 1024
EXPORT = FileKind("export of fbsearch", b"format: fbsearch-export/")


class ExportedConfig(StrictModel):
    """One of the best configurations, with the value of every field."""

    rank: int = Field(ge=1)
    trial: int = Field(ge=0)
    value: float
    # By name, where the search had another goal than the validation accuracy alone; `value` is the first of them.
    goals: dict[str, float] | None = None
    num_parameters: int = Field(ge=0)
    num_classes: int = Field(ge=1, le=MAX_CLASSES)
    in_channels: int = Field(ge=1, le=MAX_CHANNELS)
    image_size: int = Field(ge=1, le=MAX_IMAGE_SIZE)
    seed: int = Field(ge=0, le=MAX_SEED)
    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    @property
    def shape(self) -> ImageShape:
        return ImageShape(num_classes=self.num_classes, in_channels=self.in_channels, image_size=self.image_size)


class SearchCompute(StrictModel):
    """The total cost of a study's finished trials.

    `train_flops` sums forward FLOPs per image x training images x epochs run, which is the same on every machine. A
    training step costs about three forward passes in every network.
    """

    num_trials: int = Field(ge=1)
    num_epochs: int = Field(ge=0)
    train_flops: int = Field(ge=0)
    seconds: float = Field(ge=0)


class Searched(StrictModel):
    """The space of a search and the compute it has spent, for another search of the same space at equal compute."""

    model: ModelConfig
    train: TrainConfig
    space: dict[str, Dimension] = Field(min_length=1, max_length=len(FIELDS))
    compute: SearchCompute


class Export(StrictModel):
    """The content of an export file. `search` is None in files of early versions."""

    format: Literal["fbsearch-export/1"] = "fbsearch-export/1"
    study: str
    exported: datetime.datetime
    versions: dict[str, str]
    configs: tuple[ExportedConfig, ...] = Field(min_length=1, strict=False)
    search: Searched | None = None


def load_export(path: str | Path) -> Export:
    """Read and check an export file. Raises ConfigError if it is not one, or of a newer format."""
    path = Path(path)
    content = read_yaml(path, maker=f"fbsearch export --output {path}")
    found = content.get("format")
    if found != EXPORT_FORMAT:
        newer = isinstance(found, str) and found.startswith("fbsearch-export/")
        reason = f"its format is {found!r}, this fbsearch reads {EXPORT_FORMAT!r}" if newer else "it is no export"
        # Another name: the file that is there may be somebody's study file.
        raise ConfigError(
            f"{path}: format: {reason}; after a search `fbsearch export` writes one, by default best.yaml"
        )
    return validate_content(Export, content, path)


def describe_common(configs: Iterable[ExportedConfig]) -> list[str]:
    """Return a line for each configuration that keeps nothing of the fractal."""
    return [f"Rank {config.rank} is {COMMON_NETWORK}." for config in configs if config.model.is_common]


def dump_export(export: Export) -> str:
    """Return the text of an export file."""
    content = export.model_dump(mode="json", exclude={"search"}) | {"exported": export.exported}
    for config in content["configs"]:
        if config["goals"] is None:
            del config["goals"]
    if export.search is not None:
        space = {name: dump_dimension(dimension) for name, dimension in export.search.space.items()}
        content["search"] = export.search.model_dump(mode="json") | {"space": space}
    return to_yaml(content)
