"""Optimisers and learning-rate schedules of a configuration, on a GPU in a form that a CUDA graph can replay."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fbsearch.config.models import TrainConfig
from fbsearch.training.cycled_adam import CycledAdam
from fbsearch.training.muon import Muon, is_hidden_kernel

# The default of OneCycleLR, written down because it decides results.
ONE_CYCLE_WARMUP_SHARE = 0.3


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a configuration; weights decay, biases and normalisation do not.

    On CUDA it never reads a tensor back to the host, so that a graph can hold its step (see `DeviceRates`).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr, momentum, on_cuda = config.learning_rate, config.momentum, parameters[0].is_cuda
    kernels = [p for p in parameters if config.optimizer == "muon" and is_hidden_kernel(p)]
    turned = set(kernels)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1 and p not in turned], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match config.optimizer:
        case "muon":
            groups.append({"params": kernels, "orthogonal": True})
            return Muon([group for group in groups if group["params"]], lr=lr)
        case "adam" | "adamw" if on_cuda and cycles_beta(config):
            return CycledAdam(groups, lr=lr, capturable=True, decoupled_weight_decay=config.optimizer == "adamw")
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=on_cuda)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, fused=True, capturable=on_cuda)
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr, momentum=momentum, capturable=on_cuda)


def cycles_beta(config: TrainConfig) -> bool:
    """Return true if the schedule moves Adam's first beta against the learning rate; `momentum` is never moved."""
    return config.schedule == "one_cycle" and config.optimizer in ("adam", "adamw")


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, num_steps: int, position: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate for `num_steps` batches, stepped once a batch.

    `config.learning_rate` is its highest value. `position` is the number of batches before the first step, and is more
    than 0 only where an earlier schedule of the optimiser is replaced by a longer or shorter one.
    """
    schedulers = torch.optim.lr_scheduler
    if config.schedule == "one_cycle":
        return schedulers.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=num_steps + 1,
            pct_start=ONE_CYCLE_WARMUP_SHARE,
            cycle_momentum=cycles_beta(config),
            last_epoch=position - 1,
        )
    warmup = round(config.warmup_epochs * num_steps / config.epochs)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "halving":  # FractalNet's: 400 epochs drop after 200, 300, 350, 375 ...
            epochs_left = config.epochs - min(step * config.epochs // num_steps, config.epochs - 1)
            return 0.1 ** int(math.log2(config.epochs / epochs_left))
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))

    return schedulers.LambdaLR(optimizer, factor, last_epoch=position - 1)


class DeviceRates:
    """The learning rate, and the first beta of CycledAdam, as float32 scalars on the device.

    The schedule and the saved state keep Python numbers; the tensors replace them only while the optimiser computes.
    A captured graph then reads the values that `load` has written before each replay.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._lr = torch.zeros((), device=device)
        self._beta1 = torch.zeros((), device=device) if isinstance(optimizer, CycledAdam) else None

    def load(self) -> None:
        """Copy the numbers of the next step to the device, without waiting for it."""
        first = self._optimizer.param_groups[0]
        assert all(group["lr"] == first["lr"] for group in self._optimizer.param_groups), "one rate for all groups"
        self._lr.fill_(first["lr"])
        if self._beta1 is not None:
            self._beta1.fill_(first["betas"][0])

    @contextmanager
    def inserted(self) -> Iterator[None]:
        """Replace the optimiser's numbers by the tensors within the context."""
        groups = self._optimizer.param_groups
        names = ("lr",) if self._beta1 is None else ("lr", "betas")
        numbers = [{name: group[name] for name in names} for group in groups]
        for group in groups:
            group["lr"] = self._lr
            if self._beta1 is not None:
                group["betas"] = (self._beta1, group["betas"][1])
        try:
            yield
        finally:
            for group, own in zip(groups, numbers, strict=True):
                group.update(own)
