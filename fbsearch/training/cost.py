"""What a network costs before it is trained: parameters and floating-point operations, without building it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fbsearch.config.models import FractalPatternType, ModelConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.network.model import FractalBrainNet


@dataclass(frozen=True)
class Cost:
    """`flops` are of one image's forward pass in eval mode, a multiply-add counted as two."""

    num_parameters: int
    flops: int


def measure_cost(config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int) -> Cost:
    """Build the network on the meta device and send one image of [1, in_channels, image_size, image_size] through it.

    ConfigError where the network cannot be built, or the image is too small for its stages. Networks that differ in
    their pattern alone cost the same, and each cost is measured once.
    """
    drawn_alike = config.model_copy(update={"pattern": FractalPatternType.MANDELBROT})
    return _measure_cost(drawn_alike, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


@functools.lru_cache(maxsize=4096)
def _measure_cost(config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int) -> Cost:
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return measure_net(lambda: FractalBrainNet(config, **shape), in_channels=in_channels, image_size=image_size)


def measure_net(build: Callable[[], nn.Module], *, in_channels: int, image_size: int) -> Cost:
    """The cost of any network of square images, built by `build` on the meta device."""
    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, in_channels, image_size, image_size))
    return Cost(sum(p.numel() for p in model.parameters()), int(counter.get_total_flops()))


def measure_corners(config: StudyConfig, *, num_classes: int, in_channels: int, image_size: int) -> list[Cost]:
    """The cost of every corner of a study's space. ConfigError names the first corner that cannot be built."""
    shape = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return [measure_cost(trial.model, **shape) for trial in config.corners()]
