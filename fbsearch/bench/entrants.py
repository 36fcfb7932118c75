"""The entrants of a race: networks by their names, trained in one or several ways, and an export's configurations."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from torch import nn

from fbsearch.bench.common import choose_names
from fbsearch.config.export_file import load_export
from fbsearch.config.models import COMMON_NETWORK, AugmentConfig, BudgetConfig, DataConfig, ModelConfig, TrainConfig
from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape
from fbsearch.network.baselines import NET_NAMES, NetName, build_baseline_net, describe_net
from fbsearch.network.model import SIZES, FractalBrainNet
from fbsearch.training.requirements import Cost, measure_net
from fbsearch.winners.baselines import fit_size
from fbsearch.winners.plan import RunError

NETWORKS = (*NET_NAMES, *SIZES)
OPTIMIZERS: tuple[str, ...] = get_args(TrainConfig.model_fields["optimizer"].annotation)
# A run is divided into as many parts, each with a validation at its end, unless these would take too long.
MAX_POINTS = 20


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A network and its training, which lacks the budget: the FractalBrainNet of `network`, or the net of that name.

    `augment` None is the augmentation of the race's study file.
    """

    name: str
    note: str
    train: TrainConfig
    augment: AugmentConfig | None = None
    network: ModelConfig | NetName

    @property
    def trained(self) -> str:
        """Return the way of its training, which tells apart the ways of one network."""
        return f"{self.train.optimizer} {self.train.learning_rate:g}"

    @property
    def remark(self) -> str:
        """Return what a FractalBrainNet is that keeps nothing of the fractal; for others nothing."""
        return COMMON_NETWORK if isinstance(self.network, ModelConfig) and self.network.is_common else ""

    def build(self, shape: ImageShape) -> nn.Module:
        """Build the network; its weights are drawn from torch's global generator. ConfigError if it cannot be."""
        if isinstance(self.network, ModelConfig):
            return FractalBrainNet.for_images(self.network, shape)
        return build_baseline_net(self.network, shape)

    def cost(self, shape: ImageShape) -> Cost:
        """Return parameters and FLOPs. ConfigError if the network cannot be built for these images."""
        try:
            return measure_net(lambda: self.build(shape), shape)
        except (ConfigError, RuntimeError, ValueError) as error:
            raise ConfigError(f"cannot be built: {error}") from None

    def train_config(self, seconds: float, *, num_points: int = MAX_POINTS) -> TrainConfig:
        """Return the training with a budget of `seconds`, validated `num_points` times; a warm-up keeps its share."""
        warmup = self.train.warmup_epochs * num_points / self.train.epochs
        changes = {"epochs": num_points, "warmup_epochs": warmup, "budget": BudgetConfig(seconds=seconds)}
        return self.train.model_copy(update=changes)

    def data_config(self, data: DataConfig) -> DataConfig:
        """Return the data of the race with the augmentation of the entrant."""
        return data if self.augment is None else data.model_copy(update={"augment": self.augment})

    def settings(self, seconds: float, data: DataConfig) -> dict[str, Any]:
        """Return all settings of a run on the race's data that change its accuracy, as JSON values."""
        train = self.train_config(seconds).model_dump(mode="json", exclude={"cuda_graph", "epochs"})
        network = self.network
        model = network.model_dump(mode="json") if isinstance(network, ModelConfig) else network
        return {"data": self.data_config(data).model_dump(mode="json"), "model": model, "train": train}


def choose_entrants(
    train: TrainConfig,
    shape: ImageShape,
    *,
    networks: Sequence[str],
    optimizers: Sequence[str],
    rates: Sequence[float],
    configs: Path | None,
) -> list[Entrant]:
    """Return the named networks, each with every optimiser at every rate, and all configurations of the export.

    The networks have the other settings of `train`, with the one-cycle schedule; a configuration has its own. Raises
    ConfigError for unknown names, for rates that no training can have, for configurations of other images, and where
    nobody takes part.
    """
    if not optimizers:
        raise ConfigError(f"--optimizers: names none; allowed: {', '.join(OPTIMIZERS)}, several joined by commas")
    entrants = []
    ways = list(itertools.product(choose_names(optimizers, OPTIMIZERS, flag="--optimizers"), dict.fromkeys(rates)))
    for name in choose_names(networks, NETWORKS, flag="--networks"):
        for optimizer, rate in ways:
            own = _for_race(train, optimizer=optimizer, learning_rate=rate, schedule="one_cycle", warmup_epochs=0.0)
            entrants.append(_network(name, own, shape))
    if configs is not None:
        entrants += _exported(configs, shape)
    if not entrants:
        raise ConfigError("--networks: nobody takes part; name networks, or an export with --configs")
    return entrants


def _network(name: str, train: TrainConfig, shape: ImageShape) -> Entrant:
    if name in NET_NAMES:
        net = name
        return Entrant(name=name, note=_note(net, shape), train=train, network=net)
    try:
        model, change = fit_size(SIZES[name], shape)
    except RunError:  # its runs fail with the reason
        model, change = SIZES[name], ""
    return Entrant(name=name, note=f"FractalBrainNet, the documented size{change}", train=train, network=model)


def _note(net: NetName, shape: ImageShape) -> str:
    try:
        return describe_net(net, image_size=shape.image_size)
    except ConfigError as error:  # its runs fail with this reason
        return str(error)


def _exported(path: Path, shape: ImageShape) -> list[Entrant]:
    export = load_export(path)
    for config in export.configs:
        if config.shape != shape:
            raise ConfigError(
                f"{path}: rank {config.rank}: is for {config.shape} images of {config.num_classes} classes, the "
                f"study's are {shape} of {shape.num_classes}; --configs takes an export of a search on the same data"
            )
    return [
        Entrant(
            name=f"rank {config.rank}",
            note=f"trial {config.trial} of the study {export.study}",
            train=_for_race(config.train),
            augment=config.data.augment,
            network=config.model,
        )
        for config in sorted(export.configs, key=lambda config: config.rank)
    ]


def _for_race(train: TrainConfig, **changes: Any) -> TrainConfig:
    """Return a training whose last weights count, and which writes nothing of its own."""
    values = train.model_dump() | {
        "budget": None,
        "early_stopping": None,
        "keep_best": False,
        "tensorboard": None,
    }
    try:
        return TrainConfig.model_validate(values | changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--rates: train.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
