"""The networks to compare with: what they take and give, and what they weigh."""

from typing import get_args

import pytest
import torch
from torch import nn

from fbsearch.errors import ConfigError
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


def test_cnn_is_the_tutorials() -> None:
    shape = ImageShape(num_classes=10, in_channels=3, image_size=32)
    net = build_baseline_net("cnn", shape)
    kinds = [type(module).__name__ for module in net.children()]
    assert kinds == 3 * ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] + ["Flatten", "Linear", "ReLU", "Linear"]
    assert [module.out_channels for module in net.children() if isinstance(module, nn.Conv2d)] == [32, 64, 128]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in ((3, 32), (32, 64), (64, 128)))
    head = 4 * 4 * 128 * 128 + 128 + 128 * 10 + 10
    assert measure_net(lambda: net.to("meta"), shape).num_parameters == convolutions + head


def test_cnn_odd_sides_are_rounded_down_and_too_small_images_refused() -> None:
    net = build_baseline_net("cnn", ImageShape(num_classes=3, in_channels=1, image_size=28)).eval()
    assert net(torch.rand(2, 1, 28, 28)).shape == (2, 3)
    with pytest.raises(ConfigError, match="image_size is 7; the CNN halves the image 3 times"):
        build_baseline_net("cnn", ImageShape(num_classes=3, in_channels=1, image_size=7))


def test_resnet8_halves_the_map_in_its_second_and_third_block() -> None:
    shape = ImageShape(num_classes=10, in_channels=3, image_size=32)
    net = build_baseline_net("resnet8", shape).eval()
    sides = []
    for module in net.children():
        module.register_forward_hook(lambda _module, _inputs, output: sides.append(tuple(output.shape[1:])))
    net(torch.rand(1, 3, 32, 32))
    assert sides[:4] == [(32, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8)]
    kernels = 9 * (3 * 32 + 2 * 32**2 + 32 * 64 + 64**2 + 64 * 128 + 128**2) + 32 * 64 + 64 * 128
    norms = 2 * (32 + 2 * 32 + 3 * 64 + 3 * 128)
    assert measure_net(lambda: net.to("meta"), shape).num_parameters == kernels + norms + 128 * 10 + 10


def test_describe_net_states_the_width() -> None:
    assert describe_net("fractalnet", image_size=8) == "3 blocks of 3 columns, 64-128-256 channels"
    assert describe_net("resnet8", image_size=32) == "3 basic blocks, 32-64-128 channels, stem 3x3"
    assert describe_net("cnn", image_size=32).endswith("32-64-128 channels, a hidden layer of 128")
    assert describe_net("fractalnet", image_size=32) == "5 blocks of 3 columns, 64-128-256-512-512 channels"
