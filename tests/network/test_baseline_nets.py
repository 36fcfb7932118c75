"""The networks to compare with: what they take and give, and what they weigh."""

from typing import get_args

import pytest
import torch
from torch import nn

from fbsearch.messages import ImageShape
from fbsearch.network.baselines import NetName, build_baseline_net, describe_net
from fbsearch.training.requirements import measure_net


@pytest.mark.parametrize("name", get_args(NetName))
@pytest.mark.parametrize(("image_size", "in_channels"), [(8, 1), (32, 3)])
def test_baseline_net_maps_images_to_logits(name: NetName, image_size: int, in_channels: int) -> None:
    net = build_baseline_net(name, ImageShape(num_classes=7, in_channels=in_channels, image_size=image_size)).eval()
    assert net(torch.rand(2, in_channels, image_size, image_size)).shape == (2, 7)


def test_resnet18_is_the_published_one_but_for_its_stem() -> None:
    shape = ImageShape(num_classes=10, in_channels=3, image_size=32)
    net = build_baseline_net("resnet18", shape)
    cost = measure_net(lambda: net.to("meta"), shape)
    # 11,173,962 is the size of the ResNet-18 for CIFAR-10 with a 3x3 stem; torchvision's 7x7 has 7,680 weights more.
    assert cost.num_parameters == 11_173_962
    assert cost.flops == pytest.approx(2 * 0.5554e9, rel=0.01)
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))


def test_describe_net_states_the_width() -> None:
    assert describe_net("fractalnet", image_size=8) == "3 blocks of 3 columns, 64-128-256 channels"
    assert describe_net("fractalnet", image_size=32) == "5 blocks of 3 columns, 64-128-256-512-512 channels"
