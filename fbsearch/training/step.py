"""One training step and one pass of validation: kernel by kernel, or on a GPU as captured CUDA graphs.

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
from fbsearch.training.cuda_graph import CaptureError, capture, capture_stream
from fbsearch.training.optimizers import DeviceRates

# The label of images that only fill up a batch; the default `ignore_index` of cross_entropy.
PADDING = -100
# Batches of validation before its capture, which takes about as long as some of them (estimated, not measured).
EAGER_BATCHES = 4

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
    targets_BK: torch.Tensor | None = None,
    *,
    dtype: torch.dtype,
    label_smoothing: float = 0.0,
    clip_grad_norm: float | None = None,
    loss_scale: float = 1.0,
    rates: DeviceRates | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one optimiser step on normalised images; return the mean loss (nats) and the logits [B, K], detached.

    `targets_BK` (float32) stand in the loss for the labels and their smoothing. `loss_scale` multiplies the loss before
    the backward pass only. `rates` stand in the optimiser during its step.
    """
    logits_BK = autocast_forward(model, x_BCHW, dtype=dtype)
    if targets_BK is None:
        loss = F.cross_entropy(logits_BK.float(), labels_B, label_smoothing=label_smoothing)
    else:
        loss = F.cross_entropy(logits_BK.float(), targets_BK)
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
        return "several processes average their gradients in between; one GPU with a graph may be faster for small nets"
    return None


def describe_execution(execution: Execution) -> str:
    """Return how a run computes its steps, as text for people."""
    how = {"graph": "steps are replayed as a CUDA graph", "eager": "steps run kernel by kernel"}[execution.mode]
    return f"{how}: {execution.reason}" if execution.reason else how


@dataclass
class Totals:
    """Sums over batches, on the device: the loss in nats and the number of correct images.

    `classes_3K`, where it is wanted, counts for each class the images of it, those said to be of it, and those that
    are both. All change in place, so that a CUDA graph can add to them.
    """

    loss: torch.Tensor
    num_correct: torch.Tensor
    classes_3K: torch.Tensor | None = None

    @classmethod
    def on(cls, device: torch.device, *, num_classes: int | None = None) -> "Totals":
        """Return zeros on a device; `num_classes` None counts no classes."""
        classes_3K = None if num_classes is None else torch.zeros(3, num_classes, device=device, dtype=torch.int64)
        return cls(torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64), classes_3K)

    def reset(self) -> None:
        """Set all to zero."""
        self.loss.zero_()
        self.num_correct.zero_()
        if self.classes_3K is not None:
            self.classes_3K.zero_()

    def add(self, loss: torch.Tensor, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> None:
        """Add a batch; `loss` is the sum over its images. Labels of PADDING count nowhere."""
        self.loss += loss
        said_B = logits_BK.argmax(dim=1)
        is_right_B = said_B == labels_B
        self.num_correct += is_right_B.sum()
        if self.classes_3K is not None:
            is_image_B = (labels_B != PADDING).long()
            self.classes_3K[0].scatter_add_(0, labels_B.clamp(min=0), is_image_B)
            self.classes_3K[1].scatter_add_(0, said_B, is_image_B)
            self.classes_3K[2].scatter_add_(0, said_B, is_right_B.long())


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

    def __call__(
        self,
        images_BCHW: torch.Tensor,
        labels_B: torch.Tensor,
        targets_BK: torch.Tensor | None = None,
        *,
        loss_scale: float = 1.0,
    ) -> None:
        """Train on uint8 images, their labels and `train_batch`'s targets; never wait for the device."""
        self._load_rates()
        self.compute(images_BCHW, labels_B, targets_BK, loss_scale=loss_scale)
        self._advance()

    def compute(
        self,
        images_BCHW: torch.Tensor,
        labels_B: torch.Tensor,
        targets_BK: torch.Tensor | None = None,
        *,
        loss_scale: float = 1.0,
    ) -> None:
        """Compute what a graph holds: the whole step except the schedule."""
        loss, logits_BK = train_batch(
            self.model,
            self.optimizer,
            self.normalise(images_BCHW),
            labels_B,
            targets_BK,
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


@dataclass
class _CapturedBatch:
    """A graph and the batch that it reads."""

    graph: torch.cuda.CUDAGraph
    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    targets_BK: torch.Tensor | None

    def replay(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, targets_BK: torch.Tensor | None) -> None:
        self.images_BCHW.copy_(images_BCHW)
        self.labels_B.copy_(labels_B)
        if self.targets_BK is not None:
            assert targets_BK is not None
            self.targets_BK.copy_(targets_BK)
        self.graph.replay()


class GraphStep(TrainStep):
    """The same step as CUDA graphs: one for the whole batches of an epoch, one for its last, smaller batch.

    The first batch of a size is trained kernel by kernel, which makes what a capture needs; at the second the step is
    captured, and from then on replayed. A size that comes once, as in a trial that is pruned after an epoch, costs no
    capture. If a capture fails, all batches run kernel by kernel, and `execution` has the reason.

    The graphs draw random numbers from the device's generator, which every replay advances as the kernels would: same
    seed, same numbers, either way. The gradients lie in the graphs' memory and every replay overwrites them, so they
    need no reset. The graphs share their memory: none of them runs beside another, or reads what another has left.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._captured: dict[int, _CapturedBatch] = {}
        self._seen_sizes: set[int] = set()

    def __call__(
        self,
        images_BCHW: torch.Tensor,
        labels_B: torch.Tensor,
        targets_BK: torch.Tensor | None = None,
        *,
        loss_scale: float = 1.0,
    ) -> None:
        """Train as `TrainStep` does, and wait for the device only to capture. A run has targets always or never."""
        assert loss_scale == 1.0, "a captured step has its whole batch"
        size = len(labels_B)
        if self.execution.mode == "graph" and size in self._seen_sizes and size not in self._captured:
            self._capture(images_BCHW, labels_B, targets_BK)
        if self.execution.mode == "eager":
            super().__call__(images_BCHW, labels_B, targets_BK)
            return
        self._load_rates()
        if size in self._captured:
            self._captured[size].replay(images_BCHW, labels_B, targets_BK)
        else:
            with capture_stream(self.device):
                self.compute(images_BCHW, labels_B, targets_BK)
            self._seen_sizes.add(size)
        self._advance()

    def pool(self) -> Any:
        """Return the graphs' memory pool, for a graph that never runs at the same time; None without a graph."""
        return next((captured.graph.pool() for captured in self._captured.values()), None)

    def close(self) -> None:
        """Return the graphs and their memory to torch's allocator."""
        super().close()
        self._drop_graphs()
        self.execution = Execution("eager", "the run has ended")

    def _capture(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, targets_BK: torch.Tensor | None) -> None:
        images_BCHW, labels_B = images_BCHW.clone(), labels_B.clone()
        targets_BK = None if targets_BK is None else targets_BK.clone()
        self.optimizer.zero_grad(set_to_none=True)  # the backward pass of the graph allocates its own
        try:
            graph = capture(
                lambda: self.compute(images_BCHW, labels_B, targets_BK), device=self.device, pool=self.pool()
            )
        except CaptureError as error:
            self.optimizer.zero_grad(set_to_none=True)
            self._drop_graphs()
            self.execution = Execution("eager", str(error))
            return
        self._captured[len(labels_B)] = _CapturedBatch(graph, images_BCHW, labels_B, targets_BK)

    def _drop_graphs(self) -> None:
        if self._captured:
            torch.cuda.synchronize(self.device)
        for captured in self._captured.values():
            captured.graph.reset()
        self._captured.clear()


class GraphEvaluation:
    """A pass over a split in eval mode with one CUDA graph for its batches; the last batch is filled up with PADDING.

    The first EAGER_BATCHES run kernel by kernel, so that a trial that is pruned early costs no capture.
    """

    def __init__(
        self, model: nn.Module, images_NCHW: torch.Tensor, *, normalise: Normalise, dtype: torch.dtype, batch_size: int,
        device: torch.device, pool: Callable[[], Any], num_classes: int | None = None,
    ) -> None:  # fmt: skip
        """`pool` is called before the capture and returns the memory pool of graphs that never run beside this one.

        `num_classes`: count the answers of each class, too.
        """
        self._model, self._normalise, self._dtype = model, normalise, dtype
        self._device, self._pool = device, pool
        self._totals = Totals.on(device, num_classes=num_classes)
        self._images_BCHW = images_NCHW[:batch_size].to(device, copy=True)
        self._labels_B = torch.full((len(self._images_BCHW),), PADDING, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_eager = 0

    def __call__(self, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> Totals:
        """Return the totals over a split whose images have the shape of those at the start.

        Raise CaptureError if the batch cannot be captured; the model's weights are unchanged then.
        """
        self._model.eval()
        self._totals.reset()
        size = len(self._labels_B)
        for images_BCHW, labels_B in zip(torch.split(images_NCHW, size), torch.split(labels_N, size), strict=True):
            self._images_BCHW[: len(images_BCHW)].copy_(images_BCHW)
            self._labels_B[: len(labels_B)].copy_(labels_B)
            self._labels_B[len(labels_B) :].fill_(PADDING)
            self._run()
        return self._totals

    def close(self) -> None:
        """Return the graph and its memory to torch's allocator."""
        if self._graph is not None:
            torch.cuda.synchronize(self._device)
            self._graph.reset()
            self._graph = None

    def _run(self) -> None:
        if self._graph is None and self._num_eager < EAGER_BATCHES:
            with capture_stream(self._device):
                self._compute()
            self._num_eager += 1
            return
        if self._graph is None:
            self._graph = capture(self._compute, device=self._device, pool=self._pool())
        self._graph.replay()

    @torch.inference_mode()
    def _compute(self) -> None:
        add_evaluation(self._totals, self._model, self._normalise(self._images_BCHW), self._labels_B, dtype=self._dtype)


def add_evaluation(
    totals: Totals, model: nn.Module, x_BCHW: torch.Tensor, labels_B: torch.Tensor, *, dtype: torch.dtype
) -> None:
    """Add a batch's summed cross-entropy and correct answers; images of label PADDING do not count."""
    logits_BK = autocast_forward(model, x_BCHW, dtype=dtype).float()
    totals.add(F.cross_entropy(logits_BK, labels_B, reduction="sum", ignore_index=PADDING), logits_BK, labels_B)
