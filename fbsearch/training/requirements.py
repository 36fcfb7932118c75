"""Memory, parameters and FLOPs that a network needs, computed without building it on the device.

Memory is that of one step on fake tensors, which have a shape, strides and a device, but no data: forward, backward
and optimiser run on them, and the bytes of the storages that live at the same time are added up.

Shapes: B batch, C channels, H height, W width.
"""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fbsearch.config.models import FractalPatternType, ModelConfig, TrainConfig, TrialConfig
from fbsearch.config.study_file import MAX_CORNERS, StudyConfig
from fbsearch.data.dataset import VALIDATION_BATCH
from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_device, choose_dtype
from fbsearch.training.optimizers import make_optimizer
from fbsearch.training.step import autocast_forward, train_batch


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that counts the bytes of the live tensors created inside it or given to `add`.

    The figures equal those of torch.distributed's MemTracker (a test compares them), in a third of its time, since
    nothing is attributed to modules.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def add(self, value: object) -> None:
        """Count the storage of a tensor, once."""
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.num_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.num_bytes -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            self.add(value)
        return out


def estimate_memory(
    config: TrialConfig,
    shape: ImageShape,
    *,
    device: torch.device,
    dtype: torch.dtype,
    validation_batch: int = VALIDATION_BATCH,
) -> float:
    """Return the peak memory (MiB) that training and validating a configuration will hold on `device`.

    Includes network, gradients, the optimiser's state, kept weights, one batch and its activations in `dtype`, but
    neither the data set nor the allocator's reserve nor the libraries' workspaces. Configurations that differ only in
    what needs no memory are estimated once. Raise ConfigError if the network cannot be built.
    """
    train = config.train
    alike = TrainConfig(
        batch_size=train.batch_size, optimizer=train.optimizer, momentum=0.9 if train.momentum else 0.0,
        keep_best=train.keep_best,
    )  # fmt: skip
    model = config.model.model_copy(update={"pattern": FractalPatternType.MANDELBROT})
    return _estimate_memory(model, alike, shape, device, dtype, validation_batch=validation_batch)


@functools.lru_cache(maxsize=4096)
def _estimate_memory(
    model_config: ModelConfig,
    train_config: TrainConfig,
    shape: ImageShape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    validation_batch: int,
) -> float:
    with torch.device("meta"):
        model = FractalBrainNet.for_images(model_config, shape).train()

    def images(batch: int) -> torch.Tensor:
        size = (batch, shape.in_channels, shape.image_size, shape.image_size)
        return torch.empty(size, dtype=torch.uint8, device=device)

    # The weights that are drawn next must not depend on whether this estimate was cached.
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), LiveStorages() as live:
        _make_fake(model, device)
        kept_bytes = sum(parameter.nbytes for parameter in model.parameters()) if train_config.keep_best else 0
        optimizer = make_optimizer(model, train_config)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # creates its state
        _step(model, optimizer, images(train_config.batch_size), dtype)
        _validate(model, images(validation_batch), dtype)
    return float(live.peak_bytes + kept_bytes) / 2**20


def _make_fake(model: nn.Module, device: torch.device) -> None:
    """Replace the tensors of a model on the meta device by fake ones, which `Module.to` cannot do."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                strided = torch.empty_strided(parameter.shape, parameter.stride(), device=device)
                module._parameters[name] = nn.Parameter(strided)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images_BCHW: torch.Tensor, dtype: torch.dtype) -> None:
    labels_B = torch.zeros(len(images_BCHW), dtype=torch.int64, device=images_BCHW.device)
    train_batch(model, optimizer, _to_float(images_BCHW), labels_B, dtype=dtype)


@torch.no_grad()
def _validate(model: nn.Module, images_BCHW: torch.Tensor, dtype: torch.dtype) -> None:
    """Validate one batch while the gradients of the last step are still there, as in a run."""
    autocast_forward(model.eval(), _to_float(images_BCHW), dtype=dtype)


def _to_float(images_BCHW: torch.Tensor) -> torch.Tensor:
    return images_BCHW.to(torch.float32, memory_format=torch.channels_last)


@dataclass(frozen=True)
class Cost:
    """Size of a network; `flops` are those of one image's forward pass in eval mode, a multiply-add counted as two."""

    num_parameters: int
    flops: int


def measure_cost(config: ModelConfig, shape: ImageShape) -> Cost:
    """Return the cost of a network: build it on the meta device and run one image through it.

    Each cost is measured once for all patterns, which make no difference. Raise ConfigError if the network cannot be
    built or the image is too small for its stages.
    """
    drawn_alike = config.model_copy(update={"pattern": FractalPatternType.MANDELBROT})
    return _measure_cost(drawn_alike, shape)


@functools.lru_cache(maxsize=4096)
def _measure_cost(config: ModelConfig, shape: ImageShape) -> Cost:
    return measure_net(lambda: FractalBrainNet.for_images(config, shape), shape)


def measure_net(build: Callable[[], nn.Module], shape: ImageShape) -> Cost:
    """Return the cost of any network of square images; `build` is called with the meta device as default."""
    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, shape.in_channels, shape.image_size, shape.image_size))
    return Cost(sum(p.numel() for p in model.parameters()), int(counter.get_total_flops()))


UNITS = {"parameters": "parameters", "flops": "FLOPs an image", "memory_mib": "MiB to train (estimated)"}


def describe_corners(config: StudyConfig, shape: ImageShape) -> list[str]:
    """Return lines of text on the costs of the corners and on each limit.

    Raise ConfigError if a corner cannot be built, or if none of all corners is within a limit: then no trial is.
    """
    costs = [measure_cost(trial.model, shape) for trial in config.corners()]
    many = f"the first {MAX_CORNERS:,}" if len(costs) == MAX_CORNERS else str(len(costs))
    smallest, largest = (choose(cost.num_parameters for cost in costs) for choose in (min, max))
    lines = [
        f"{many} corners of the space build on {shape} images: {smallest:,} to "
        f"{largest:,} parameters, up to {max(cost.flops for cost in costs):,} FLOPs an image"
    ]
    for key, limit in config.search.limits.model_dump(exclude_none=True).items():
        values = _values(key, config, costs, shape)
        num_within = sum(value <= limit for value in values)
        line = (
            f"search.limits.{key} {limit:,.0f}: {num_within} of {len(values)} corners are within, which have "
            f"{min(values):,.0f} to {max(values):,.0f} {UNITS[key]}"
        )
        if not num_within and len(costs) < MAX_CORNERS:
            raise ConfigError(f"{line}; raise the limit, or search smaller networks")
        lines.append(line)
    return lines


def _values(key: str, config: StudyConfig, costs: list[Cost], shape: ImageShape) -> list[float]:
    if key != "memory_mib":
        return [cost.num_parameters if key == "parameters" else cost.flops for cost in costs]
    device = choose_device("auto")
    return [
        estimate_memory(trial, shape, device=device, dtype=choose_dtype(trial.train.precision, device))
        for trial in config.corners()
    ]
