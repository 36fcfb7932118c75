"""One training step and one pass of validation: kernel by kernel, or on a GPU as one captured CUDA graph.

Both ways compute the same.

Shapes: B batch, C channels, H height, W width, N images of a split, K classes.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fbsearch.config.models import TrainConfig
from fbsearch.messages import Execution
from fbsearch.training.cuda_graph import CaptureError, capture, restore_afterwards
from fbsearch.training.optimizers import DeviceRates

# The label of images that only fill up a batch; the default `ignore_index` of cross_entropy.
PADDING = -100

Normalise = Callable[[torch.Tensor], torch.Tensor]


def autocast_forward(model: nn.Module, x_BCHW: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Return the logits [B, K]; matrix products and convolutions are computed in `dtype`, and so may be the logits."""
    with torch.autocast(x_BCHW.device.type, dtype, enabled=dtype != torch.float32):
        logits_BK: torch.Tensor = model(x_BCHW)
    return logits_BK


def train_batch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_BCHW: torch.Tensor,
    labels_B: torch.Tensor,
    *,
    dtype: torch.dtype,
    label_smoothing: float = 0.0,
    clip_grad_norm: float | None = None,
    loss_scale: float = 1.0,
    rates: DeviceRates | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one optimiser step on normalised images; return the mean loss (nats) and the logits [B, K], detached.

    `loss_scale` multiplies the loss before the backward pass only. `rates` stand in the optimiser during its step.
    """
    logits_BK = autocast_forward(model, x_BCHW, dtype=dtype)
    loss = F.cross_entropy(logits_BK.float(), labels_B, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    (loss if loss_scale == 1.0 else loss * loss_scale).backward()  # type: ignore[no-untyped-call]
    if clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
    with rates.inserted() if rates else nullcontext():
        optimizer.step()
    return loss.detach(), logits_BK.detach()


def reason_for_eager(device: torch.device, config: TrainConfig, *, num_processes: int = 1) -> str | None:
    """Return why a run on this device does not capture its step as a CUDA graph; None if it does."""
    if device.type != "cuda":
        return f"there are no CUDA graphs on {device.type}"
    if not config.cuda_graph:
        return "train.cuda_graph is false"
    if num_processes > 1:
        return "the gradients of several processes are averaged in between"
    return None


def describe_execution(execution: Execution) -> str:
    """Return how a run computes its steps, as text for people."""
    how = {"graph": "steps are replayed as a CUDA graph", "eager": "steps run kernel by kernel"}[execution.mode]
    return f"{how}: {execution.reason}" if execution.reason else how


@dataclass
class Totals:
    """Sums over batches, on the device: the loss in nats and the number of correct images.

    They change in place, so that a CUDA graph can add to them.
    """

    loss: torch.Tensor
    num_correct: torch.Tensor

    @classmethod
    def on(cls, device: torch.device) -> "Totals":
        """Return zeros on a device."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64))

    def reset(self) -> None:
        """Set both to zero."""
        self.loss.zero_()
        self.num_correct.zero_()

    def add(self, loss: torch.Tensor, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> None:
        """Add a batch; `loss` is the sum over its images."""
        self.loss += loss
        self.num_correct += (logits_BK.argmax(dim=1) == labels_B).sum()


@dataclass
class TrainStep:
    """Normalisation, `train_batch`, schedule and totals of a batch, launched kernel by kernel.

    `model` maps normalised images to logits; with several processes it is the wrapper that averages gradients.
    """

    model: nn.Module
    config: TrainConfig
    optimizer: torch.optim.Optimizer
    normalise: Normalise
    device: torch.device
    dtype: torch.dtype
    execution: Execution
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None  # None while steps are only measured
    totals: Totals = field(init=False)
    rates: DeviceRates | None = field(init=False)

    def __post_init__(self) -> None:
        self.totals = Totals.on(self.device)
        # On CUDA without a graph too, so that both ways round alike.
        self.rates = DeviceRates(self.optimizer, self.device) if self.device.type == "cuda" else None

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *, loss_scale: float = 1.0) -> None:
        """Train on uint8 images and their labels; never wait for the device."""
        self._load_rates()
        self.compute(images_BCHW, labels_B, loss_scale=loss_scale)
        self._advance()

    def compute(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *, loss_scale: float = 1.0) -> None:
        """Compute what a graph holds: the whole step except the schedule."""
        loss, logits_BK = train_batch(
            self.model,
            self.optimizer,
            self.normalise(images_BCHW),
            labels_B,
            dtype=self.dtype,
            label_smoothing=self.config.label_smoothing,
            clip_grad_norm=self.config.clip_grad_norm,
            loss_scale=loss_scale,
            rates=self.rates,
        )
        self.totals.add(loss * len(labels_B), logits_BK, labels_B)

    def close(self) -> None:
        """Free the device memory that the run holds beside model and optimiser."""
        self.optimizer.zero_grad(set_to_none=True)

    def _advance(self) -> None:
        if self.scheduler is not None:
            self.scheduler.step()

    def _load_rates(self) -> None:
        if self.rates is not None:
            self.rates.load()


class GraphStep(TrainStep):
    """The same step as one CUDA graph, captured at the first batch and replayed for every other batch of its size.

    Batches of another size (the last of an epoch) run kernel by kernel. If the capture fails, all batches do, and
    `execution` has the reason. The graph draws random numbers from the device's generator, which every replay
    advances as the kernels would: same seed, same numbers, either way. The gradients lie in the graph's memory and
    every replay overwrites them, so they need no reset.
    """

    _graph: torch.cuda.CUDAGraph | None = None
    _images_BCHW: torch.Tensor
    _labels_B: torch.Tensor

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *, loss_scale: float = 1.0) -> None:
        """Train on uint8 images and their labels; once the graph is captured, never wait for the device."""
        assert loss_scale == 1.0, "a captured step has its whole batch"
        if self._graph is None and self.execution.mode == "graph":
            self._capture(images_BCHW, labels_B)
        if self._graph is None or images_BCHW.shape != self._images_BCHW.shape:
            super().__call__(images_BCHW, labels_B)
            return
        self._load_rates()
        self._images_BCHW.copy_(images_BCHW)
        self._labels_B.copy_(labels_B)
        self._graph.replay()
        self._advance()

    def pool(self) -> Any:
        """Return the graph's memory pool, for a graph that never runs at the same time; None without a graph."""
        return None if self._graph is None else self._graph.pool()

    def close(self) -> None:
        """Return the graph and its memory to torch's allocator."""
        super().close()
        if self._graph is not None:
            torch.cuda.synchronize(self.device)
            self._graph.reset()
            self._graph = None
            del self._images_BCHW, self._labels_B
        self.execution = Execution("eager", "the run has ended")

    def _capture(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> None:
        self._images_BCHW, self._labels_B = images_BCHW.clone(), labels_B.clone()
        self._load_rates()
        totals = [self.totals.loss, self.totals.num_correct]
        try:
            with restore_afterwards(self.model, self.optimizer, self.device, also=totals):
                self._graph = capture(
                    lambda: self.compute(self._images_BCHW, self._labels_B),
                    device=self.device,
                    between=lambda: self.optimizer.zero_grad(set_to_none=True),
                )
        except CaptureError as error:
            self.execution = Execution("eager", str(error))


class GraphEvaluation:
    """A pass over a split in eval mode with one CUDA graph for its batches; the last batch is filled up with PADDING.

    Raise CaptureError if the batch cannot be captured; the model's weights are unchanged then.
    """

    def __init__(
        self, model: nn.Module, images_NCHW: torch.Tensor, *, normalise: Normalise, dtype: torch.dtype, batch_size: int,
        pool: Any,
    ) -> None:  # fmt: skip
        self._model, self._normalise, self._dtype = model.eval(), normalise, dtype
        self._device = images_NCHW.device
        self._totals = Totals.on(self._device)
        self._images_BCHW = images_NCHW[:batch_size].clone()
        self._labels_B = torch.full((len(self._images_BCHW),), PADDING, device=self._device)
        self._graph = capture(self._compute, device=self._device, pool=pool)

    @torch.inference_mode()
    def _compute(self) -> None:
        add_evaluation(self._totals, self._model, self._normalise(self._images_BCHW), self._labels_B, dtype=self._dtype)

    def __call__(self, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> Totals:
        """Return the totals over a split whose images have the shape of those at the start."""
        self._model.eval()
        self._totals.reset()
        size = len(self._labels_B)
        for images_BCHW, labels_B in zip(torch.split(images_NCHW, size), torch.split(labels_N, size), strict=True):
            self._images_BCHW[: len(images_BCHW)].copy_(images_BCHW)
            self._labels_B[: len(labels_B)].copy_(labels_B)
            self._labels_B[len(labels_B) :].fill_(PADDING)
            self._graph.replay()
        return self._totals

    def close(self) -> None:
        """Return the graph and its memory to torch's allocator."""
        torch.cuda.synchronize(self._device)
        self._graph.reset()


def add_evaluation(
    totals: Totals, model: nn.Module, x_BCHW: torch.Tensor, labels_B: torch.Tensor, *, dtype: torch.dtype
) -> None:
    """Add a batch's summed cross-entropy and correct answers; images of label PADDING do not count."""
    logits_BK = autocast_forward(model, x_BCHW, dtype=dtype).float()
    totals.add(F.cross_entropy(logits_BK, labels_B, reduction="sum", ignore_index=PADDING), logits_BK, labels_B)
