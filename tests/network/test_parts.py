"""The choices of ModelConfig that leave parts of the documented network out or replace them by cheaper ones."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_model import plain_forward
from torch import nn

from fbsearch.config.models import ModelConfig
from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape
from fbsearch.network.blocks import AdaptiveScaleProcessor, CerebralDynamicsModule
from fbsearch.network.model import STEMS, FractalBrainNet, average_cells, load_reference_state_dict
from fbsearch.pictures.architecture import list_layers

CHOICES = {
    name: get_args(ModelConfig.model_fields[name].annotation)
    for name in ("dynamics", "join", "scale_processor", "downsample", "stem", "global_attention", "drop_path")
}
CHOICES["stem"] = tuple(STEMS)
CHOICES["pattern"] = ("cantor", "none")

parts = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in CHOICES.items()})


def make_net(image_size: int = 32, **fields: object) -> FractalBrainNet:
    torch.manual_seed(0)
    config = ModelConfig(**{"fractal_levels": (1, 3), "base_channels": 8, "pattern_resolution": 9, **fields})
    shape = ImageShape(num_classes=3, in_channels=3, image_size=image_size)
    return FractalBrainNet.for_images(config, shape).double()


@settings(max_examples=40, deadline=None)
@given(parts, st.booleans())
def test_any_parts_together_compute_the_plain_form(fields, training):
    net = make_net(**fields).train(training)
    x_BCHW = torch.randn(4, 3, 20, 16, dtype=torch.float64)
    torch.manual_seed(1)
    logits_BK = net(x_BCHW)
    torch.manual_seed(1)
    expected_BK = plain_forward(net, x_BCHW)
    torch.testing.assert_close(logits_BK, expected_BK, rtol=1e-9, atol=1e-9)
    (gradients,) = [torch.autograd.grad(logits_BK.sum(), net.stem[0].weight)]
    (expected,) = [torch.autograd.grad(expected_BK.sum(), net.stem[0].weight)]
    torch.testing.assert_close(gradients, expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=8, deadline=None)
@given(parts)
def test_any_parts_are_listed_with_all_parameters_and_flops(fields):
    config = ModelConfig(fractal_levels=(2, 1), base_channels=8, **fields)
    shape = ImageShape(num_classes=3, in_channels=3, image_size=32)
    layers = list_layers(config, shape)
    net = FractalBrainNet.for_images(config, shape)
    assert sum(layer.num_parameters for layer in layers) == sum(p.numel() for p in net.parameters())
    assert all(layer.flops >= 0 for layer in layers)


def count(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in net.modules())


@pytest.mark.parametrize(("dynamics", "expected"), [("all", 1 + 7), ("last", 2), ("none", 0)])
def test_dynamics_are_one_for_each_convolution_or_one_for_each_block_or_absent(dynamics, expected):
    assert count(make_net(dynamics=dynamics), CerebralDynamicsModule) == expected


@pytest.mark.parametrize(("scale_processor", "expected"), [("full", 3), ("stem", 1), ("none", 0)])
def test_scale_processors_follow_stem_and_blocks_or_the_stem_or_are_absent(scale_processor, expected):
    assert count(make_net(scale_processor=scale_processor), AdaptiveScaleProcessor) == expected


def test_dynamics_last_act_on_each_column_as_on_the_block(monkeypatch):
    net = make_net(dynamics="last", drop_path="global").train()
    monkeypatch.setattr(net, "_draw_columns", lambda x_BCHW: torch.full((len(x_BCHW),), 2))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x_BCHW = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net(x_BCHW), net.column(2)(x_BCHW))


@pytest.mark.parametrize("dynamics", ["all", "last"])
def test_init_identity_lets_dynamics_begin_as_nothing(dynamics):
    net, bare = make_net(init="identity", dynamics=dynamics).eval(), make_net(dynamics="none").eval()
    bare.load_state_dict({name: value for name, value in net.state_dict().items() if name in bare.state_dict()})
    x_BCHW = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net(x_BCHW), bare(x_BCHW))


def test_pattern_none_equals_a_mask_of_ones_everywhere():
    bare = make_net(pattern="none").eval()
    masked = make_net(pattern="cantor").eval()
    x_BCHW = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert not torch.allclose(bare(x_BCHW), masked(x_BCHW))
    assert bare.state_dict().keys() == masked.state_dict().keys()
    assert torch.equal(bare.mask(torch.empty(1, 8, 4, 4)), torch.ones(8, 4, 4))


@pytest.mark.parametrize(("growth", "expected"), [(1, [8, 8, 8]), (1.5, [8, 12, 20]), (2, [8, 16, 32])])
def test_width_growth_multiplies_the_channels_and_rounds_them_to_fours(growth, expected):
    config = ModelConfig(fractal_levels=(1, 1, 1), base_channels=8, width_growth=growth)
    assert config.stage_channels() == expected
    net = FractalBrainNet(config)
    assert [stage[0].base_conv.out_channels for stage in net.fractal_stages] == expected


@pytest.mark.parametrize("downsample", CHOICES["downsample"])
@pytest.mark.parametrize("stem", CHOICES["stem"])
def test_every_downsampling_halves_the_map_and_rounds_up(stem, downsample):
    net = make_net(fractal_levels=(1, 2, 1), stem=stem, downsample=downsample)
    side = 4 * STEMS[stem][1] + 3
    _, maps = net(torch.randn(2, 3, side, side, dtype=torch.float64), return_attention_maps=True)
    first = side // STEMS[stem][1] if stem.startswith("patch") else math.ceil(side / STEMS[stem][1])
    sides = [first, math.ceil(first / 2), math.ceil(math.ceil(first / 2) / 2)]
    after = sides if downsample == "stride" else [sides[1], sides[2], sides[2]]
    assert [one.shape[-1] for one in maps] == after


@pytest.mark.parametrize("stem", CHOICES["stem"])
def test_images_too_small_for_the_stem_name_the_smallest_size(stem):
    net = make_net(fractal_levels=(1, 1), stem=stem)
    smallest = 2 * STEMS[stem][1]
    net(torch.randn(2, 3, smallest, smallest, dtype=torch.float64))
    with pytest.raises(ConfigError, match=f"H and W of {smallest} or more"):
        net(torch.randn(2, 3, smallest - 1, smallest, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "num_heads"), [(8, 1), (16, 1), (32, 2), (64, 4), (128, 8)])
def test_coarse_attention_has_heads_of_at_least_16_channels_and_at_most_16_tokens(channels, num_heads):
    net = make_net(fractal_levels=(1,), base_channels=channels, global_attention="coarse", stem="conv3")
    assert net.global_attention.num_heads == num_heads
    tokens = {side: average_cells(torch.randn(1, 4, side, side)).shape[-1] for side in (1, 4, 5, 7, 8, 32, 33)}
    assert tokens == {1: 1, 4: 4, 5: 3, 7: 4, 8: 4, 32: 4, 33: 4}


def test_reference_weights_do_not_fit_a_network_without_its_parts():
    fields = {"stem": "conv7", "global_attention": "pooled", "activation": "gelu"}
    for name, value in {"dynamics": "last", "join": "mean", "scale_processor": "none", "downsample": "pool"}.items():
        with pytest.raises(ConfigError, match=f"model.{name} is '{value}'"):
            load_reference_state_dict(make_net(**fields, **{name: value}), {})
