"""Write curves and hyper-parameters for TensorBoard, one run for each trial."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fbsearch.config.models import TrialConfig
from fbsearch.config.space import SECTIONS
from fbsearch.errors import ConfigError
from fbsearch.messages import EpochStats

CURVES = {
    "loss/train": "train_loss",
    "loss/validation": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "val_accuracy",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
    "memory_mib": "memory_mib",
}


@contextlib.contextmanager
def curves(config: TrialConfig, *, trial: int) -> Iterator[Callable[[EpochStats], None]]:
    """Yield a function that writes an epoch's curves; it does nothing unless `train.tensorboard` names a folder.

    The run is <folder>/trial-<number>. When the trial ends, its hyper-parameters are written with the last validation
    accuracy. ConfigError if the package is not installed or the folder cannot be written.
    """
    if config.train.tensorboard is None:
        yield lambda _stats: None
        return
    writer = _make_writer(Path(config.train.tensorboard) / f"trial-{trial:04}")
    accuracy: list[float] = []

    def write(stats: EpochStats) -> None:
        for name, field in CURVES.items():
            writer.add_scalar(name, getattr(stats, field), stats.epoch)
        accuracy.append(stats.val_accuracy)
        writer.flush()

    try:
        yield write
    finally:
        if accuracy:
            writer.add_hparams(_flatten(config), {"val_accuracy": accuracy[-1]}, run_name=".")
        writer.close()


def _make_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("train.tensorboard needs its package: pip install 'fbsearch[tensorboard]'") from None
    try:
        return SummaryWriter(str(folder))
    except OSError as error:
        raise ConfigError(f"train.tensorboard: {folder}: cannot be written: {error.strerror}") from None


def _flatten(config: TrialConfig) -> dict[str, Any]:
    """Return the configuration as TensorBoard's table takes it: dotted names, numbers and strings."""
    content = config.model_dump(mode="json")
    sections = {name: functools.reduce(operator.getitem, name.split("."), content) for name in SECTIONS}
    flat = {
        f"{section}.{field}": value if isinstance(value, (bool, int, float)) else str(value)
        for section, part in sections.items()
        for field, value in part.items()
    }
    return flat | {"seed": config.seed}
