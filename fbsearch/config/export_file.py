"""The export: the best configurations of a study as `fbsearch export` writes them and `fbsearch train` reads them."""

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from fbsearch.config.models import DataConfig, ModelConfig, Strict, TrainConfig
from fbsearch.config.space import Dimension
from fbsearch.config.study_file import validate_content
from fbsearch.config.yaml_format import read_yaml, to_yaml, without_unset_keys
from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape

EXPORT_FORMAT = "fbsearch-export/1"


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

    @property
    def shape(self) -> ImageShape:
        return ImageShape(num_classes=self.num_classes, in_channels=self.in_channels, image_size=self.image_size)


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
    return validate_content(Export, content, path)


def dump_export(export: Export) -> str:
    """The text of an export file."""
    content = export.model_dump(mode="json", exclude={"search"}) | {"exported": export.exported}
    if export.search is not None:
        space = {name: without_unset_keys(dimension) for name, dimension in export.search.space.items()}
        content["search"] = export.search.model_dump(mode="json") | {"space": space}
    return to_yaml(content)
