"""One training run, as a generator that yields after every epoch: search, retraining and benchmarks all run this one.

Knows nothing of trials, studies or processes. Stopping is closing the generator.

Shapes: B batch, C channels, H height, W width, K classes.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from fbsearch.augment import augment
from fbsearch.config import Precision, TrainConfig, TrialConfig
from fbsearch.data import Dataset, Split, batches, count_batches
from fbsearch.errors import DeviceError, TrialError
from fbsearch.events import EpochStats

# Steps between two looks at the loss: a look makes a GPU wait, a loss that is not finite stays so.
STEPS_BETWEEN_CHECKS = 16
# OneCycleLR's own defaults, written down because they decide results.
ONE_CYCLE_WARMUP_SHARE = 0.3


def choose_device(name: str) -> torch.device:
    """The device of `auto`, `cpu`, `cuda` or `cuda:N`. DeviceError says what there is."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device {name}: no such kind of device; write auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name}: cannot be used; write auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; --device cpu works")
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of matrix products and convolutions. `auto` is bfloat16 where the hardware multiplies it natively."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


class _Stopped(Exception):
    """The training steps were left because `stop_requested` said so."""


class TrainState(TypedDict):
    """All that a run needs to go on after an epoch; tensors and plain values, so that `weights_only` reads it back."""

    epoch: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    generator: torch.Tensor
    cpu_random: torch.Tensor
    cuda_random: torch.Tensor | None
    best_epoch: int
    best_accuracy: float
    best_weights: dict[str, torch.Tensor] | None


def train(
    model: nn.Module,
    config: TrialConfig,
    data: Dataset,
    *,
    stop_requested: Callable[[], bool] = lambda: False,
    resume_from: TrainState | None = None,
    save_state: Callable[[EpochStats, TrainState], None] | None = None,
) -> Iterator[EpochStats]:
    """Train `model` on the data's training split and validate it after every epoch.

    `model` maps [B, C, H, W] to [B, K] logits and lies on the data's device; it is trained in place, and with
    `keep_best` holds the best epoch's weights when the generator ends. Batches, augmentation, dropout and drop-path
    are drawn from `config.seed`: same seed, same device, same numbers. An empty validation split is allowed without
    `keep_best` and `early_stopping`; its loss and accuracy are not a number.

    Args:
        stop_requested: Asked before every step; once it is true the generator ends, in the middle of an epoch.
        resume_from: Go on after this state's epoch. On the same device every number that follows is the one that the
            run would have given without the break.
        save_state: Gets every epoch with the state after it, before the epoch is yielded. The state's tensors are the
            live ones: write or copy them before returning.

    Raises TrialError (`non_finite_loss`) as soon as the loss is seen not to be finite.
    """
    run = _Run.start(model, config, data, stop_requested)
    if resume_from is not None:
        run.restore(resume_from)
    while not run.is_over():
        try:
            stats = run.next_epoch()
        except _Stopped:
            return
        if save_state is not None:
            save_state(stats, run.state())
        yield stats
    if run.best_weights is not None:
        model.load_state_dict(run.best_weights)


def final_accuracy(history: list[EpochStats], config: TrainConfig) -> float:
    """The validation accuracy of the weights that a run of these epochs has kept."""
    if config.keep_best:
        return max(stats.val_accuracy for stats in history)
    return history[-1].val_accuracy


@dataclass
class _Run:
    """What one training run needs from step to step."""

    model: nn.Module
    config: TrialConfig
    data: Dataset
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype
    stop_requested: Callable[[], bool]
    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_weights: dict[str, torch.Tensor] | None = None

    @classmethod
    def start(cls, model: nn.Module, config: TrialConfig, data: Dataset, stop_requested: Callable[[], bool]) -> "_Run":
        needs_validation = config.train.keep_best or config.train.early_stopping
        assert len(data.val.labels_N) or not needs_validation, "the best epoch is found on the validation split"
        device = data.train.images_NCHW.device
        torch.manual_seed(config.seed)
        model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, config.train)
        num_steps = count_batches(len(data.train.labels_N), batch_size=config.train.batch_size)
        scheduler = make_scheduler(optimizer, config.train, steps_per_epoch=num_steps)
        generator = torch.Generator(device=device).manual_seed(config.seed)
        dtype = choose_dtype(config.train.precision, device)
        return cls(model, config, data, optimizer, scheduler, generator, device, dtype, stop_requested)

    def state(self) -> TrainState:
        return TrainState(
            epoch=self.epoch,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            generator=self.generator.get_state(),
            cpu_random=torch.get_rng_state(),
            cuda_random=torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            best_epoch=self.best_epoch,
            best_accuracy=self.best_accuracy,
            best_weights=self.best_weights,
        )

    def restore(self, state: TrainState) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["cpu_random"])
        if state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.epoch, self.best_epoch = state["epoch"], state["best_epoch"]
        self.best_accuracy, self.best_weights = state["best_accuracy"], state["best_weights"]

    def is_over(self) -> bool:
        patience = self.config.train.early_stopping
        return self.epoch >= self.config.train.epochs or bool(patience and self.epoch - self.best_epoch >= patience)

    def next_epoch(self) -> EpochStats:
        stats = self._train_and_validate(self.epoch + 1)
        self.epoch = stats.epoch
        if stats.val_accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = stats.val_accuracy, stats.epoch
            if self.config.train.keep_best:
                self.best_weights = copy.deepcopy(self.model.state_dict())
        return stats

    def _train_and_validate(self, epoch: int) -> EpochStats:
        started = time.perf_counter()
        train_loss, train_accuracy, num_images = self._steps()
        stepped = time.perf_counter()
        val_loss = val_accuracy = math.nan
        if len(self.data.val.labels_N):
            val_loss, val_accuracy = evaluate(self.model, self.data, self.data.val, dtype=self.dtype)
            if not math.isfinite(val_loss):
                raise _not_finite("validation")
        ended = time.perf_counter()
        return EpochStats(
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=ended - started,
            step_seconds=stepped - started,
            val_seconds=ended - stepped,
            images_per_second=num_images / (stepped - started),
            memory_mib=memory_mib(self.device),
        )

    def _steps(self) -> tuple[float, float, int]:
        """One pass over the training images: mean loss, accuracy, number of images."""
        self.model.train()
        total_loss = torch.zeros((), device=self.device)
        num_correct = torch.zeros((), device=self.device, dtype=torch.int64)
        num_images = 0
        epoch = batches(self.data.train, batch_size=self.config.train.batch_size, generator=self.generator)
        for step, (images_BCHW, labels_B) in enumerate(epoch):
            if self.stop_requested():
                raise _Stopped
            images_BCHW = augment(images_BCHW, self.config.data.augment, generator=self.generator)
            loss, logits_BK = self._step(self.data.normalise(images_BCHW), labels_B)
            total_loss += loss * len(labels_B)
            num_correct += (logits_BK.argmax(dim=1) == labels_B).sum()
            num_images += len(labels_B)
            if step % STEPS_BETWEEN_CHECKS == 0 and not math.isfinite(total_loss.item()):
                raise _not_finite("training")
        if not math.isfinite(total_loss.item()):
            raise _not_finite("training")
        return total_loss.item() / num_images, num_correct.item() / num_images, num_images

    def _step(self, x_BCHW: torch.Tensor, labels_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits_BK = self.model(x_BCHW)
        loss = F.cross_entropy(logits_BK.float(), labels_B, label_smoothing=self.config.train.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.train.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach(), logits_BK.detach()


def _not_finite(phase: str) -> TrialError:
    return TrialError(
        f"the {phase} loss is not finite; a lower train.learning_rate or train.clip_grad_norm: 1.0 may help",
        kind="non_finite_loss",
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Dataset, split: Split, *, dtype: torch.dtype = torch.float32, batch_size: int = 256
) -> tuple[float, float]:
    """Mean cross-entropy (nats, no label smoothing) and accuracy of `model` on a split; puts it into eval mode."""
    model.eval()
    device = split.labels_N.device
    total_loss = torch.zeros((), device=device)
    num_correct = torch.zeros((), device=device, dtype=torch.int64)
    for images_BCHW, labels_B in zip(
        torch.split(split.images_NCHW, batch_size), torch.split(split.labels_N, batch_size), strict=True
    ):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits_BK = model(data.normalise(images_BCHW)).float()
        total_loss += F.cross_entropy(logits_BK, labels_B, reduction="sum")
        num_correct += (logits_BK.argmax(dim=1) == labels_B).sum()
    count = len(split.labels_N)
    return total_loss.item() / count, num_correct.item() / count


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration; weights decay, biases and normalisation do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr, momentum = config.learning_rate, config.momentum
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr, momentum=momentum)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate from step to step; `config.learning_rate` is its highest value."""
    schedulers = torch.optim.lr_scheduler
    total = config.epochs * steps_per_epoch
    if config.schedule == "one_cycle":
        # adam's first beta goes the other way round than the rate; a momentum that was chosen stays what it is.
        cycle_momentum = config.optimizer in ("adam", "adamw")
        return schedulers.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=total + 1,
            pct_start=ONE_CYCLE_WARMUP_SHARE,
            cycle_momentum=cycle_momentum,
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return schedulers.LambdaLR(optimizer, factor)


def memory_mib(device: torch.device) -> float:
    """The most memory this process has held on a CUDA device, or what it holds now of the machine's, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20
