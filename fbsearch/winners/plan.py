"""Plan the trainings at full budget: configurations, seeds and folders, all checked before the first one starts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from fbsearch.config.export_file import Export, ExportedConfig
from fbsearch.config.models import TrainConfig, TrialConfig
from fbsearch.errors import ConfigError, FbsearchError
from fbsearch.files import file_name
from fbsearch.network.baselines import NetName, build_baseline_net
from fbsearch.training.requirements import Cost, measure_net
from fbsearch.winners.checkpoint import build_net, choose_config


class RunError(FbsearchError):
    """One run cannot be trained; others can."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of `fbsearch train`. None keeps the value of the exported TrainConfig."""

    num_seeds: int = 3
    epochs: int | None = None
    seconds: float | None = None
    early_stopping: int | None = None
    keep_best: bool | None = None
    keep_validation: bool = False
    output: Path = Path("reports")


@dataclass(frozen=True)
class Run:
    """One configuration with one seed; `config.train` and `config.seed` are those of this training.

    `baseline` is the name of a baseline, which has the data and shape of the configuration it is compared with.
    `net` names another network than the FractalBrainNet of `config.model`.
    """

    study: str
    config: ExportedConfig
    keep_validation: bool
    folder: Path
    baseline: str | None = None
    net: NetName | None = None

    @property
    def label(self) -> str:
        """Return the name of all seeds of the run, for messages."""
        return f"rank {self.config.rank}" if self.baseline is None else self.baseline

    @property
    def name(self) -> str:
        """Return the name of the run, for messages."""
        return f"{self.label}, seed {self.config.seed}"

    @property
    def trial(self) -> TrialConfig:
        """Return the configuration for the trainer, which does not read its `model`."""
        config = self.config
        return TrialConfig(data=config.data, model=config.model, train=config.train, seed=config.seed)

    def build(self) -> nn.Module:
        """Build the network; its weights are drawn from torch's global generator."""
        config = self.config
        return build_net(config) if self.net is None else build_baseline_net(self.net, config.shape)

    def cost(self) -> Cost:
        """Return parameters and FLOPs of the network. Raises what `build` raises where it cannot be built."""
        return measure_net(self.build, self.config.shape)

    def settings(self) -> dict[str, Any]:
        """Return all settings that change the numbers of the run, as JSON values."""
        sections = self.config.model_dump(mode="json", include={"data", "model", "train", "seed"})
        del sections["train"]["cuda_graph"]
        if self.net is not None:
            sections["model"] = self.net
        return {**sections, "keep_validation": self.keep_validation}


def choose_configs(export: Export, path: Path, *, rank: int | None, top: int | None) -> tuple[ExportedConfig, ...]:
    """Return the configuration of `rank`, the `top` best, or by default rank 1 or the only one, whatever its rank.

    ConfigError where the file has too few.
    """
    assert rank is None or top is None
    if rank is None and len(export.configs) == 1:
        top = top or 1
    if top is None:
        return (choose_config(export, path, rank=1 if rank is None else rank),)
    if top > len(export.configs):
        raise ConfigError(
            f"--top {top}: {path} holds {len(export.configs)}; `fbsearch export --top {top}` writes more, where so "
            "many trials are complete"
        )
    return tuple(sorted(export.configs, key=lambda config: config.rank)[:top])


def plan_runs(export: Export, configs: Iterable[ExportedConfig], settings: Settings) -> list[Run]:
    """Return the runs of all seeds. ConfigError where the settings and a configuration contradict each other."""
    return [run for config in configs for run in plan_seeds(export.study, config, settings)]


def plan_seeds(
    study: str,
    config: ExportedConfig,
    settings: Settings,
    *,
    baseline: str | None = None,
    net: NetName | None = None,
) -> list[Run]:
    """Return the runs of one configuration or baseline. ConfigError where it contradicts the settings."""
    label = f"rank {config.rank}" if baseline is None else baseline
    trained = train_config(config.train, settings, label=label)
    folder = study_folder(settings.output, study) / (f"rank-{config.rank}" if baseline is None else f"baseline-{label}")
    return [
        Run(
            study,
            config.model_copy(update={"train": trained, "seed": seed}),
            settings.keep_validation,
            folder / f"seed-{seed}",
            baseline=baseline,
            net=net,
        )
        for seed in range(config.seed, config.seed + settings.num_seeds)
    ]


def study_folder(output: Path, study: str) -> Path:
    """Return the folder of a study's results."""
    return output / file_name(study)


def train_config(config: TrainConfig, settings: Settings, *, label: str) -> TrainConfig:
    """Return a TrainConfig with the flags applied. ConfigError, which names `label`, where they contradict it."""
    wanted = {"epochs": settings.epochs, "early_stopping": settings.early_stopping, "keep_best": settings.keep_best}
    values = config.model_dump() | {name: value for name, value in wanted.items() if value is not None}
    if settings.seconds is not None:
        values["budget"] = {"seconds": settings.seconds}
    elif settings.epochs is not None:
        values["budget"] = None
    try:
        trained = TrainConfig.model_validate(values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{label}: train: {reason}") from None
    for name in ("early_stopping", "keep_best"):
        if getattr(trained, name) and not settings.keep_validation:
            raise ConfigError(
                f"{label}: train.{name} {json.dumps(getattr(trained, name))} needs validation images, and "
                "they are trained on: --keep-validation keeps them apart"
            )
    return trained
