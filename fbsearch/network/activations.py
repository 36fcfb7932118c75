"""The activation functions of `model.activation`, as modules for feature maps [B, C, H, W].

Torch's own modules with their default constants; maxout and adaptive piecewise linear units, which torch lacks, are
implemented here. Suffixes: B batch, C channels, H height, W width, S hinges.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbsearch.config.models import Activation

# Thresholded ReLU: theta of Konda, Memisevic and Krueger 2015 (arXiv 1402.3337), also Keras's default.
THRESHOLD = 1.0

# Hinges of an adaptive piecewise linear unit; Agostinelli et al. use 1 to 5, chosen on validation data.
NUM_HINGES = 2


class Maxout(nn.Module):
    """Maxout (Goodfellow et al. 2013): the larger of two learned linear maps of the channels, [B, C, H, W] -> same.

    One 1x1 convolution C -> 2C computes both pieces. With weights of variance 1/C (He, fan-out) the output has the
    mean square of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pieces = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the larger piece of each unit."""
        first_BCHW, second_BCHW = self.pieces(x_BCHW).chunk(2, dim=1)
        return torch.maximum(first_BCHW, second_BCHW)


class AdaptivePiecewiseLinear(nn.Module):
    """APL (Agostinelli et al. 2014, arXiv 1412.6830), [B, C, H, W] -> same, for each channel

        max(0, x) + sum over s of slope_s * max(0, hinge_s - x),   slopes and hinges learned.

    Initialised as ReLU: slopes 0, hinges spaced evenly over [-1, 1].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.slopes_SC = nn.Parameter(torch.zeros(NUM_HINGES, channels))
        self.hinges_SC = nn.Parameter(torch.linspace(-1, 1, NUM_HINGES)[:, None].repeat(1, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the piecewise linear function of each channel."""
        y_BCHW = F.relu(x_BCHW)
        for slope_C, hinge_C in zip(self.slopes_SC, self.hinges_SC, strict=True):
            y_BCHW = y_BCHW + slope_C[:, None, None] * F.relu(hinge_C[:, None, None] - x_BCHW)
        return y_BCHW


def make_activation(name: Activation, channels: int) -> nn.Module:
    """Return a new activation module for feature maps [B, channels, H, W]; it keeps their shape.

    `swish` is `silu`; `softmax` is over the channels; `threshold` is x where x > 1, else 0; `prelu`, `maxout` and
    `apl` have parameters for each channel; `rrelu` draws random slopes in training.
    """
    makers: dict[Activation, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "prelu": lambda: nn.PReLU(channels),
        "rrelu": nn.RReLU,
        "elu": nn.ELU,
        "selu": nn.SELU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "swish": nn.SiLU,
        "mish": nn.Mish,
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "softplus": nn.Softplus,
        "softsign": nn.Softsign,
        "threshold": lambda: nn.Threshold(THRESHOLD, 0.0),
        "softmax": lambda: nn.Softmax(dim=1),
        "maxout": lambda: Maxout(channels),
        "apl": lambda: AdaptivePiecewiseLinear(channels),
    }
    return makers[name]()
