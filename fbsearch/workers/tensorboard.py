"""Curves and hyper-parameters for TensorBoard, as an option: each trial writes a run of its own.

Knows nothing of training: it is given what has been measured.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fbsearch.config.models import Strict, TrialConfig
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
    """What to call after every epoch of a trial; does nothing unless `train.tensorboard` names a folder.

    Writes <folder>/trial-<number>, the curves at once, the hyper-parameters with the last validation accuracy when
    the trial ends in whatever way. ConfigError if the package is not there or the folder cannot be written.
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
    """The configuration as TensorBoard's table takes it: dotted names, numbers and texts."""
    sections: dict[str, Strict] = {"model": config.model, "train": config.train}
    flat = {
        f"{section}.{field}": value if isinstance(value, (bool, int, float)) else str(value)
        for section, part in sections.items()
        for field, value in part.model_dump(mode="json").items()
    }
    return flat | {"seed": config.seed}
