"""Networks to compare with, by name: FractalNet and torchvision's ResNet-18. Must not know how they are trained."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from fbsearch.network.baselines import CHANNELS, NUM_COLUMNS, FractalNet, count_blocks

NetName = Literal["fractalnet", "resnet18"]


def build_baseline_net(name: NetName, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Images [B, in_channels, image_size, image_size] -> logits [B, num_classes], weights from torch's generator.

    ConfigError where the images are too small for it.
    """
    make: dict[NetName, Callable[..., nn.Module]] = {"fractalnet": FractalNet, "resnet18": _resnet18}
    return make[name](num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def _resnet18(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-18 for small images: a 3x3 stem of stride 1 and no pooling after it, nothing pretrained."""
    del image_size  # any will do
    from torchvision.models import resnet18  # takes seconds to import

    net: nn.Module = resnet18(weights=None, num_classes=num_classes)
    net.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def describe_net(name: NetName, *, image_size: int) -> str:
    """What the network is, in a few words."""
    if name == "resnet18":
        return "torchvision's, stem 3x3 without pooling"
    num_blocks = count_blocks(image_size)
    return f"{num_blocks} blocks of {NUM_COLUMNS} columns, {'-'.join(map(str, CHANNELS[:num_blocks]))} channels"
