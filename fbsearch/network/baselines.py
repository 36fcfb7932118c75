"""The networks to compare with: the CNN of the tutorials, ResNet-8, FractalNet and torchvision's ResNet-18.

FractalNet is implemented from its paper: Larsson, Maire, Shakhnarovich, "FractalNet: Ultra-Deep Neural Networks without
Residuals", ICLR 2017 (arXiv 1605.07648). f_1 is one convolution; f_{C+1} joins two f_C in sequence with one convolution
parallel to them. All columns that end at the same place are joined by one mean, as the paper draws it. Column c of C,
counted from the shallowest, is a chain of 2^(c - 1) convolutions.

Deviations: one dropout in each block, before its pooling (the paper leaves the place open); dropped paths are drawn on
the device as weights of 0 or 1 / survivors, so they are still computed; small images pass fewer blocks.

Suffixes: B batch, C channels, H height, W width, K classes, P paths into a join.
"""

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape

# The paper's network for 32 x 32 images: channels and dropout of its five blocks, columns, drop-path.
CHANNELS = (64, 128, 256, 512, 512)
DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4)
NUM_COLUMNS = 3
DROP_PATH_PROB = 0.15
# The share of the batches with global drop-path; the others have local drop-path.
GLOBAL_SHARE = 0.5

# The channels of the stages of the tutorials' CNN and of ResNet-8; of the CNN also the width of its hidden layer.
PLAIN_CHANNELS = (32, 64, 128)
CNN_HIDDEN = 128


class Join(nn.Module):
    """Mean of the surviving paths, [B, C, H, W] each; the paths belong to the `num_paths` deepest columns."""

    column_P: Tensor

    def __init__(self, num_paths: int, *, num_columns: int, drop_path_prob: float) -> None:
        super().__init__()
        self.num_paths, self.drop_path_prob = num_paths, drop_path_prob
        columns_P = torch.arange(num_columns - num_paths + 1, num_columns + 1)
        self.register_buffer("column_P", columns_P, persistent=False)

    def forward(self, paths: Sequence[Tensor], column: Tensor | None) -> Tensor:
        """Return the mean; `column` None keeps all paths, an int64 scalar that column only, or 0 a random choice."""
        assert len(paths) == self.num_paths
        if len(paths) == 1:
            return paths[0]
        if column is None:
            return sum(paths[1:], paths[0]) / len(paths)
        keep_P = torch.where(column == 0, self._draw_local(), self.column_P == column)
        # A join outside the kept column leads only into paths that are dropped later.
        keep_P = keep_P | ~keep_P.any()
        weights_P = (keep_P / keep_P.sum()).to(paths[0].dtype)
        return sum((weights_P[i] * path for i, path in enumerate(paths[1:], start=1)), weights_P[0] * paths[0])

    def _draw_local(self) -> Tensor:
        """Draw the surviving paths, bool [P]: each is dropped with `drop_path_prob`, but one at least is kept."""
        device = self.column_P.device
        keep_P = torch.rand(self.num_paths, device=device) >= self.drop_path_prob
        survivor = torch.randint(self.num_paths, (), device=device)
        return keep_P | (~keep_P.any() & (torch.arange(self.num_paths, device=device) == survivor))


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class Fractal(nn.Module):
    """f_C without its last join: [B, in, H, W] to a list of C paths [B, out, H, W], from the shallowest on."""

    def __init__(
        self, depth: int, in_channels: int, out_channels: int, *, num_columns: int, drop_path_prob: float
    ) -> None:
        super().__init__()
        self.shallow = _convolution(in_channels, out_channels)
        self.depth = depth
        if depth > 1:
            half = functools.partial(Fractal, depth - 1, num_columns=num_columns, drop_path_prob=drop_path_prob)
            self.first = half(in_channels, out_channels)
            self.join = Join(depth - 1, num_columns=num_columns, drop_path_prob=drop_path_prob)
            self.second = half(out_channels, out_channels)

    def forward(self, x_BCHW: Tensor, column: Tensor | None) -> list[Tensor]:
        """Return the paths; `column` as in `Join`."""
        paths = [self.shallow(x_BCHW)]
        if self.depth > 1:
            paths += self.second(self.join(self.first(x_BCHW, column), column), column)
        return paths


class Block(nn.Module):
    """A fractal, its last join, dropout and a 2x2 max-pool: [B, in, H, W] to [B, out, H // 2, W // 2]."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_columns: int, drop_path_prob: float, dropout: float
    ) -> None:
        super().__init__()
        self.fractal = Fractal(
            num_columns, in_channels, out_channels, num_columns=num_columns, drop_path_prob=drop_path_prob
        )
        self.join = Join(num_columns, num_columns=num_columns, drop_path_prob=drop_path_prob)
        self.rest = nn.Sequential(nn.Dropout(dropout), nn.MaxPool2d(2))

    def forward(self, x_BCHW: Tensor, column: Tensor | None) -> Tensor:
        """Return the pooled map; `column` as in `Join`."""
        out_BCHW: Tensor = self.rest(self.join(self.fractal(x_BCHW, column), column))
        return out_BCHW


class FractalNet(nn.Module):
    """The whole network: images [B, in_channels, H, W] of at least `shape.image_size` pixels to logits [B, K].

    It has the first of the paper's five blocks, one for each time the image can be halved. In training, half of the
    batches have local drop-path (a path into a join is dropped with `drop_path_prob`, but one at least survives), the
    others global (one column, drawn uniformly, in the whole net). Raise ConfigError for images below 2 pixels.
    """

    def __init__(
        self, shape: ImageShape, *, num_columns: int = NUM_COLUMNS, drop_path_prob: float = DROP_PATH_PROB
    ) -> None:
        super().__init__()
        num_blocks = count_blocks(shape.image_size)
        in_channels = shape.in_channels
        self.num_columns = num_columns
        self.blocks = nn.ModuleList()
        make_block = functools.partial(Block, num_columns=num_columns, drop_path_prob=drop_path_prob)
        for channels, dropout in zip(CHANNELS[:num_blocks], DROPOUT, strict=False):
            self.blocks.append(make_block(in_channels, channels, dropout=dropout))
            in_channels = channels
        self.classifier = nn.Linear(in_channels, shape.num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits; in training, draw the batch's drop-path."""
        return self.keep(x_BCHW, self._draw_column(x_BCHW.device) if self.training else None)

    def keep(self, x_BCHW: Tensor, column: Tensor | None) -> Tensor:
        """Return the logits; `column` as in `Join`."""
        for block in self.blocks:
            x_BCHW = block(x_BCHW, column)
        logits_BK: Tensor = self.classifier(x_BCHW.mean(dim=(2, 3)))
        return logits_BK

    def _draw_column(self, device: torch.device) -> Tensor:
        column = torch.randint(1, self.num_columns + 1, (), device=device)
        return column * (torch.rand((), device=device) < GLOBAL_SHARE)


def count_blocks(image_size: int) -> int:
    """Return the number of blocks for an image of this side in pixels. Raise ConfigError if there is none."""
    num_blocks = min(len(CHANNELS), image_size.bit_length() - 1)
    if num_blocks < 1:
        raise ConfigError(f"image_size is {image_size}; FractalNet halves the image at least once")
    return num_blocks


class TutorialsCNN(nn.Sequential):
    """The CNN that tutorials train: [B, C, H, W] to [B, K]; raise ConfigError for images below 8 pixels.

    Three times a 3x3 convolution, BatchNorm, ReLU and the maximum of 2x2, then one hidden layer.
    """

    def __init__(self, shape: ImageShape) -> None:
        side = shape.image_size // 2 ** len(PLAIN_CHANNELS)
        if side < 1:
            raise ConfigError(f"image_size is {shape.image_size}; the CNN halves the image {len(PLAIN_CHANNELS)} times")
        layers: list[nn.Module] = []
        in_channels = shape.in_channels
        for channels in PLAIN_CHANNELS:
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            in_channels = channels
        layers += [nn.Flatten(), nn.Linear(in_channels * side**2, CNN_HIDDEN), nn.ReLU()]
        super().__init__(*layers, nn.Linear(CNN_HIDDEN, shape.num_classes))


class BasicBlock(nn.Module):
    """ResNet's basic block, [B, in, H, W] to [B, out, H / stride, W / stride]: two convolutions beside a shortcut.

    The shortcut is a 1x1 convolution where shapes differ (He et al., "Deep Residual Learning", 2016, option B).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.first = _normed(in_channels, out_channels, kernel_size=3, stride=stride)
        self.second = _normed(out_channels, out_channels, kernel_size=3, stride=1)
        is_same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if is_same else _normed(in_channels, out_channels, kernel_size=1, stride=stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the map."""
        return F.relu(self.second(F.relu(self.first(x_BCHW))) + self.shortcut(x_BCHW))


def _normed(in_channels: int, out_channels: int, *, kernel_size: int, stride: int) -> nn.Sequential:
    """Return a convolution and its BatchNorm, initialised as torchvision's ResNets are."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class ResNet8(nn.Sequential):
    """A ResNet of eight layers for small images, [B, C, H, W] to [B, K]: a 3x3 stem and three stages of one block."""

    def __init__(self, shape: ImageShape, *, channels: Sequence[int] = PLAIN_CHANNELS) -> None:
        stem = nn.Sequential(_normed(shape.in_channels, channels[0], kernel_size=3, stride=1), nn.ReLU())
        blocks = [
            BasicBlock(before, after, stride=1 if stage == 0 else 2)
            for stage, (before, after) in enumerate(zip((channels[0], *channels), channels, strict=False))
        ]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], shape.num_classes))
        super().__init__(stem, *blocks, *head)


NetName = Literal["cnn", "resnet8", "fractalnet", "resnet18"]
NET_NAMES: tuple[NetName, ...] = get_args(NetName)


def build_baseline_net(name: NetName, shape: ImageShape) -> nn.Module:
    """Return the network for images of `shape`, [B, C, H, W] -> logits [B, K], weights from torch's generator.

    Raise ConfigError if the images are too small for it.
    """
    match name:
        case "cnn":
            return TutorialsCNN(shape)
        case "resnet8":
            return ResNet8(shape)
        case "fractalnet":
            return FractalNet(shape)
        case "resnet18":
            return _resnet18(shape)


def _resnet18(shape: ImageShape) -> nn.Module:
    """Return torchvision's ResNet-18 for small images: a 3x3 stem of stride 1 without pooling, not pretrained."""
    from torchvision.models import resnet18  # takes seconds to import

    net: nn.Module = resnet18(weights=None, num_classes=shape.num_classes)
    net.conv1 = nn.Conv2d(shape.in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def describe_net(name: NetName, *, image_size: int) -> str:
    """Return a short description of the network, for a table."""
    widths = "-".join(map(str, PLAIN_CHANNELS))
    match name:
        case "cnn":
            return f"3 x (conv 3x3, BatchNorm, ReLU, max-pool), {widths} channels, a hidden layer of {CNN_HIDDEN}"
        case "resnet8":
            return f"3 basic blocks, {widths} channels, stem 3x3"
        case "resnet18":
            return "torchvision's, stem 3x3 without pooling"
        case "fractalnet":
            num_blocks = count_blocks(image_size)
            channels = "-".join(map(str, CHANNELS[:num_blocks]))
            return f"{num_blocks} blocks of {NUM_COLUMNS} columns, {channels} channels"
