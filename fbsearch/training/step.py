"""One training step and one pass of validation: kernel by kernel, or on a GPU as one captured CUDA graph.

Both compute the same. Must not know data sets, epochs or trials: a step gets a batch and keeps running totals.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fbsearch.config.models import TrainConfig
from fbsearch.messages import Execution
from fbsearch.training.cuda_graph import CaptureError, capture, untouched
from fbsearch.training.optimizers import DeviceRates

# The label of an image that only fills a batch up; cross_entropy's own default for what does not count.
PADDING = -100

Normalise = Callable[[torch.Tensor], torch.Tensor]
Forward = Callable[[torch.Tensor], torch.Tensor]


def why_eager(device: torch.device, config: TrainConfig, *, num_processes: int = 1) -> str | None:
    """Why a run on this device does not capture its step, in words; None where it does."""
    if device.type != "cuda":
        return f"there are no CUDA graphs on {device.type}"
    if not config.cuda_graph:
        return "train.cuda_graph is false"
    if num_processes > 1:
        return "the gradients of several processes are averaged in between"
    return None


def describe_execution(execution: Execution) -> str:
    """How a run computes its steps, for people."""
    how = {"graph": "steps are replayed as a CUDA graph", "eager": "steps run kernel by kernel"}[execution.mode]
    return f"{how}: {execution.reason}" if execution.reason else how


@dataclass
class Totals:
    """Running sums on the device, in place so that a graph may add to them: nats and images."""

    loss: torch.Tensor
    num_correct: torch.Tensor

    @classmethod
    def on(cls, device: torch.device) -> "Totals":
        """Zeros on a device."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64))

    def reset(self) -> None:
        """Begin anew."""
        self.loss.zero_()
        self.num_correct.zero_()

    def add(self, loss: torch.Tensor, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> None:
        """Count a batch whose losses sum up to `loss`."""
        self.loss += loss
        self.num_correct += (logits_BK.argmax(dim=1) == labels_B).sum()


@dataclass
class TrainStep:
    """Forward, loss, backward, clipping, optimiser, schedule and totals of a batch, launched kernel by kernel.

    `forward` maps normalised images to logits; it is `model` or something around it. `share` scales the loss where the
    batch is one process's part of a larger one.
    """

    model: nn.Module
    config: TrainConfig
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    normalise: Normalise
    device: torch.device
    dtype: torch.dtype
    forward: Forward
    execution: Execution
    totals: Totals = field(init=False)
    rates: DeviceRates | None = field(init=False)

    def __post_init__(self) -> None:
        self.totals = Totals.on(self.device)
        # On CUDA also without a graph, so that both ways round alike.
        self.rates = DeviceRates(self.optimizer, self.device) if self.device.type == "cuda" else None

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *, share: float = 1.0) -> None:
        """Train on uint8 images and their labels; never waits for the device."""
        self._load_rates()
        self.compute(images_BCHW, labels_B, share=share)
        self.scheduler.step()

    def compute(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *, share: float = 1.0) -> None:
        """What a graph holds: everything of a step but the schedule."""
        with autocast(self.device, self.dtype):
            logits_BK = self.forward(self.normalise(images_BCHW))
        loss = F.cross_entropy(logits_BK.float(), labels_B, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        (loss if share == 1.0 else loss * share).backward()  # type: ignore[no-untyped-call]
        if self.config.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        if self.rates is None:
            self.optimizer.step()
        else:
            with self.rates.inserted():
                self.optimizer.step()
        self.totals.add(loss.detach() * len(labels_B), logits_BK.detach(), labels_B)

    def close(self) -> None:
        """Let go of what the run holds on the device beside model and optimiser."""
        self.optimizer.zero_grad(set_to_none=True)

    def _load_rates(self) -> None:
        if self.rates is not None:
            self.rates.load()


class GraphStep(TrainStep):
    """The same step as one CUDA graph, captured at the first batch and replayed for every other of its size.

    Batches of another size, an epoch's rest, are stepped kernel by kernel. Where the capture fails, so is everything,
    and `execution` says why. Random numbers are drawn inside the graph from the device's generator, which every replay
    advances as the kernels would have: same seed, same numbers, either way. The gradients lie in the graph's memory,
    where every replay writes them anew, so nothing need set them to zero.
    """

    _graph: torch.cuda.CUDAGraph | None = None
    _images_BCHW: torch.Tensor
    _labels_B: torch.Tensor

    def __call__(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *, share: float = 1.0) -> None:
        """Train on uint8 images and their labels; never waits for the device once the graph is there."""
        assert share == 1.0, "a captured step has its whole batch"
        if self._graph is None and self.execution.mode == "graph":
            self._capture(images_BCHW, labels_B)
        if self._graph is None or images_BCHW.shape != self._images_BCHW.shape:
            super().__call__(images_BCHW, labels_B)
            return
        self._load_rates()
        self._images_BCHW.copy_(images_BCHW)
        self._labels_B.copy_(labels_B)
        self._graph.replay()
        self.scheduler.step()

    def pool(self) -> Any:
        """The graph's memory, for another graph that never runs at the same time; None without a graph."""
        return None if self._graph is None else self._graph.pool()

    def close(self) -> None:
        """Give the graph and its memory back to torch's allocator."""
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
        before = [self.totals.loss, self.totals.num_correct]
        try:
            with untouched(self.model, self.optimizer, self.device, also=before):
                self._graph = capture(
                    lambda: self.compute(self._images_BCHW, self._labels_B),
                    device=self.device,
                    between=lambda: self.optimizer.zero_grad(set_to_none=True),
                )
        except CaptureError as error:
            self.execution = Execution("eager", str(error))


class GraphEvaluation:
    """A pass over a split in eval mode, its batches as one CUDA graph; the last is filled up and what fills it ignored.

    CaptureError where it cannot be captured; the model is then as it was.
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
        """The totals over a split; its images have the shape of those at the start."""
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
        """Give the graph back."""
        torch.cuda.synchronize(self._device)
        self._graph.reset()


def add_evaluation(
    totals: Totals, model: nn.Module, x_BCHW: torch.Tensor, labels_B: torch.Tensor, *, dtype: torch.dtype
) -> None:
    """Add a batch's summed cross-entropy and correct answers; a label of PADDING counts for nothing."""
    with autocast(x_BCHW.device, dtype):
        logits_BK = model(x_BCHW).float()
    totals.add(F.cross_entropy(logits_BK, labels_B, reduction="sum", ignore_index=PADDING), logits_BK, labels_B)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products and convolutions in `dtype`; nothing changes for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
