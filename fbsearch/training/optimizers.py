"""Optimisers and learning-rate schedules of a configuration, on a GPU in a form that a CUDA graph can replay."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fbsearch.config.models import TrainConfig

# The default of OneCycleLR, written down because it decides results.
ONE_CYCLE_WARMUP_SHARE = 0.3


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a configuration; weights decay, biases and normalisation do not.

    On CUDA it never reads a tensor back to the host, so that a graph can hold its step (see `DeviceRates`).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr, momentum, on_cuda = config.learning_rate, config.momentum, parameters[0].is_cuda
    match config.optimizer:
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
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of the learning rate, stepped once a batch; `config.learning_rate` is its highest value."""
    schedulers = torch.optim.lr_scheduler
    total = config.epochs * steps_per_epoch
    if config.schedule == "one_cycle":
        return schedulers.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=total + 1,
            pct_start=ONE_CYCLE_WARMUP_SHARE,
            cycle_momentum=cycles_beta(config),
        )
    warmup = round(config.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "halving":  # FractalNet's: 400 epochs drop after 200, 300, 350, 375 ...
            epochs_left = config.epochs - min(step // steps_per_epoch, config.epochs - 1)
            return 0.1 ** int(math.log2(config.epochs / epochs_left))
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return schedulers.LambdaLR(optimizer, factor)


class CycledAdam(torch.optim.Adam):
    """Adam or AdamW whose learning rate and first beta may be tensors on the device.

    torch's fused kernel takes the betas as Python numbers, which a CUDA graph would keep for ever, and its foreach
    form reads a tensor beta back to the host, which a capture forbids. The result is the same up to rounding. All
    parameters of a group are stepped together from the start, so that they share one step count.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter group once."""
        assert closure is None
        for group in self.param_groups:
            lists: list[list[torch.Tensor]] = [[] for _ in range(6)]
            self._init_group(group, *lists)  # type: ignore[no-untyped-call]
            params, grads, means, squares, _, counts = lists
            if params:
                _step_adam(group, params, grads, means, squares, counts)


def _step_adam(
    group: dict[str, Any],
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    means: list[torch.Tensor],
    squares: list[torch.Tensor],
    counts: list[torch.Tensor],
) -> None:
    lr, (beta1, beta2) = group["lr"], group["betas"]
    torch._foreach_add_(counts, 1)
    if group["weight_decay"] and group["decoupled_weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    elif group["weight_decay"]:
        grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, torch._foreach_mul(grads, 1 - beta1))
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_div_(divisors, (1 - beta2 ** counts[0]).sqrt())
    torch._foreach_add_(divisors, group["eps"])
    torch._foreach_mul_(divisors, (beta1 ** counts[0] - 1) / lr)
    torch._foreach_addcdiv_(params, means, divisors)


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
