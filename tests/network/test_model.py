"""FractalBrainNet against the statements of its specification. Suffixes as in the model's file."""

import copy
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fbsearch.config.models import Activation, FractalPatternType, ModelConfig
from fbsearch.errors import ConfigError
from fbsearch.network.activations import AdaptivePiecewiseLinear, Maxout, make_activation
from fbsearch.network.blocks import (
    AdaptiveScaleProcessor,
    CerebralDynamicsModule,
    FractalMask,
    FractalNeuralBlock,
    draw_local_factors,
)
from fbsearch.network.model import SIZES, FractalBrainNet, create_fractal_brain_net, load_reference_state_dict
from fbsearch.network.patterns import generate_pattern

DROP_PATHS = ["none", "local", "global", "mixed", "channel"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_net(*, num_classes: int = 10, in_channels: int = 3, image_size: int = 8, **fields) -> FractalBrainNet:
    config = ModelConfig(**{"fractal_levels": (1, 2), "base_channels": 8, "pattern_resolution": 8, **fields})
    return FractalBrainNet(config, num_classes=num_classes, in_channels=in_channels, image_size=image_size)


def make_mask(resolution: int = 8) -> FractalMask:
    return FractalMask(generate_pattern(FractalPatternType.MANDELBROT, resolution, resolution))


def settle(net: nn.Module) -> nn.Module:
    """Give every norm statistics and weights of its own, so that no part is the identity; return it in eval mode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_leaf_convolutions(module: nn.Module) -> int:
    """Every leaf of a fractal is a convolution with a dynamics module of its own."""
    return sum(isinstance(part, CerebralDynamicsModule) for part in module.modules())


# The mask


@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (16, 32), (4, 1), (1, 4), (1, 1)])
def test_mask_any_map_size_is_resized_bilinearly_into_four_bands(shape):
    mask = make_mask()
    m_HW = F.interpolate(mask.pattern_HW[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
    expected_4HW = torch.stack([m_HW, 1 - m_HW, m_HW * 0.5, torch.sin(math.pi * m_HW)])
    factor_CHW = mask(torch.empty(2, 8, *shape))
    torch.testing.assert_close(factor_CHW, expected_4HW.repeat_interleave(2, dim=0), rtol=0, atol=0)


def test_mask_second_forward_reads_the_same_buffer():
    mask = make_mask()
    first_CHW = mask(torch.empty(1, 8, 4, 4))
    assert mask(torch.empty(3, 8, 4, 4)) is first_CHW
    assert any(buffer is first_CHW for buffer in mask.buffers())


def test_mask_of_a_net_is_one_module_outside_the_state_dict():
    net = make_net(fractal_levels=(2, 3))
    net(torch.randn(2, 3, 8, 8))
    assert len([part for part in net.modules() if isinstance(part, FractalMask)]) == 1
    assert len(list(net.mask.buffers())) == 2
    assert not [key for key in net.state_dict() if "mask" in key or "pattern" in key]
    assert not list(net.mask.parameters())


def test_mask_moved_without_change_keeps_its_buffers():
    mask = make_mask()
    factor_CHW = mask(torch.empty(1, 8, 4, 4))
    mask.to("cpu").float()
    assert mask(torch.empty(1, 8, 4, 4)) is factor_CHW


@pytest.mark.parametrize(
    "change",
    [
        lambda net: copy.deepcopy(net),
        lambda net: net.bfloat16().float(),
        lambda net: net.double().float(),
        lambda net: net.to("meta").to_empty(device="cpu"),
    ],
    ids=["deepcopy", "bfloat16", "double", "to_empty"],
)
def test_mask_after_a_change_of_the_net_is_unharmed(change):
    mask = make_mask()
    expected_CHW = mask(torch.empty(1, 8, 4, 4)).clone()
    changed = change(nn.Sequential(mask))[0]
    torch.testing.assert_close(changed(torch.empty(1, 8, 4, 4)), expected_CHW, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mask_follows_the_dtype_of_the_map(dtype):
    mask = make_mask()
    factor_CHW = mask(torch.empty(1, 8, 4, 4, dtype=dtype))
    assert factor_CHW.dtype == dtype
    torch.testing.assert_close(factor_CHW, mask(torch.empty(1, 8, 4, 4)).to(dtype))


def test_mask_first_seen_in_inference_mode_can_be_trained_with():
    net = make_net()
    with torch.inference_mode():
        net(torch.randn(2, 3, 8, 8))
    net(torch.randn(2, 3, 8, 8)).sum().backward()


@pytest.mark.parametrize("pattern_HW", [torch.zeros(3), torch.full((2, 2), 1.5), torch.full((2, 2), math.nan)])
def test_mask_not_a_map_of_0_to_1_is_refused(pattern_HW):
    with pytest.raises(ConfigError, match=r"allowed: \[h, w\] with values in \[0, 1\]"):
        FractalMask(pattern_HW)


# The parts


def dynamics_by_hand(module: CerebralDynamicsModule, x_BCHW: Tensor, m_HW: Tensor) -> Tensor:
    """The specification's formula, one position at a time."""
    out_BCHW = x_BCHW.clone()
    for y in range(x_BCHW.shape[2]):
        for x in range(x_BCHW.shape[3]):
            m, point_BC = m_HW[y, x], x_BCHW[:, :, y, x]
            factors = {"alpha": m, "beta": 1 - m, "gamma": m * 0.5, "theta": torch.sin(math.pi * m)}
            bands = []
            for name, factor in factors.items():
                conv = getattr(module, f"{name}_processing")
                bands.append(F.linear(point_BC, conv.weight[:, :, 0, 0], conv.bias) * factor)
            integrated_BC = F.linear(
                torch.cat(bands, 1), module.integration.weight[:, :, 0, 0], module.integration.bias
            )
            out_BCHW[:, :, y, x] += module.normalization(integrated_BC)
    return out_BCHW


@pytest.mark.parametrize("as_what", [lambda array: array, torch.tensor, FractalMask], ids=["array", "tensor", "module"])
def test_dynamics_any_kind_of_mask_follows_the_formula(as_what):
    pattern_HW = generate_pattern(FractalPatternType.JULIA, 5, 3).copy()
    module = settle(CerebralDynamicsModule(8, as_what(pattern_HW)).double())
    x_BCHW = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    expected_BCHW = dynamics_by_hand(module, x_BCHW, torch.tensor(pattern_HW).double())
    torch.testing.assert_close(module(x_BCHW), expected_BCHW, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 4, 1), (1, 8, 1, 4), (2, 8, 1, 1)])
def test_dynamics_width_or_height_1_keeps_the_shape(shape):
    assert CerebralDynamicsModule(8, make_mask())(torch.randn(shape)).shape == shape


def test_block_level_1_is_convolution_norm_dynamics_activation():
    block = settle(FractalNeuralBlock(1, 4, 8, make_mask()))
    x_BCHW = torch.randn(2, 4, 6, 6)
    expected_BCHW = F.gelu(block.cerebral_dynamics(block.norm(block.base_conv(x_BCHW))))
    torch.testing.assert_close(block(x_BCHW), expected_BCHW)


def test_block_level_2_joins_deep_and_shallow_through_its_gates():
    block = settle(FractalNeuralBlock(2, 4, 8, make_mask()))
    x_BCHW = torch.randn(2, 4, 6, 6)
    deep_BCHW = block.deep_branch[1](block.deep_branch[0](x_BCHW))
    conv, dynamics, norm, activation = block.shallow_branch
    shallow_BCHW = activation(norm(dynamics(conv(x_BCHW))))
    gates_B2HW = block.fractal_attention(torch.cat([deep_BCHW, shallow_BCHW], dim=1))
    a_B1HW, b_B1HW = gates_B2HW[:, :1], gates_B2HW[:, 1:]
    torch.testing.assert_close(block(x_BCHW), a_B1HW * deep_BCHW + b_B1HW * shallow_BCHW)
    assert gates_B2HW.min() > 0
    assert gates_B2HW.max() < 1


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_block_level_n_has_2_to_the_n_minus_1_leaves_and_columns_of_powers_of_2(level):
    block = FractalNeuralBlock(level, 4, 8, make_mask())
    assert count_leaf_convolutions(block) == 2**level - 1
    assert [count_leaf_convolutions(block.column(depth)) for depth in range(1, level + 1)] == [
        2**depth for depth in range(level)
    ]


def test_scale_processor_is_linear_in_a_row_up_to_its_norm():
    module = settle(AdaptiveScaleProcessor(4))
    x_BCHW = torch.randn(2, 4, 7, 7)
    fuse, norm, activation = module.scale_fusion
    weights = fuse.weight[:, :, 0, 0].split(4, dim=1)
    kernel, bias = torch.zeros(4, 4, 5, 5), fuse.bias.clone()
    for weight, conv in zip(
        weights, [module.local_processor, module.regional_processor, module.global_processor], strict=True
    ):
        margin = (5 - conv.kernel_size[0]) // 2
        kernel += F.pad(torch.einsum("om,mihw->oihw", weight, conv.weight), [margin] * 4)
        bias += weight @ conv.bias
    expected_BCHW = activation(norm(F.conv2d(x_BCHW, kernel, bias, padding=2))) + x_BCHW
    torch.testing.assert_close(module(x_BCHW), expected_BCHW, rtol=1e-4, atol=1e-5)


# Activations


@pytest.mark.parametrize("name", get_args(Activation))
def test_activation_every_name_keeps_the_shape_and_has_gradients(name):
    net = make_net(activation=name)
    net(torch.randn(4, 3, 8, 8)).square().sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    x_BCHW = torch.randn(2, 8, 4, 1)
    assert make_activation(name, 8)(x_BCHW).shape == x_BCHW.shape


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("swish", F.silu),
        ("softmax", lambda x_BCHW: x_BCHW.softmax(dim=1)),
        ("threshold", lambda x_BCHW: torch.where(x_BCHW > 1, x_BCHW, 0)),
        ("apl", F.relu),
    ],
)
def test_activation_fresh_is_its_documented_function(name, function):
    x_BCHW = torch.randn(2, 8, 4, 4) * 2
    torch.testing.assert_close(make_activation(name, 8)(x_BCHW), function(x_BCHW))


def test_maxout_is_the_larger_of_two_linear_maps_and_keeps_the_mean_square():
    module = Maxout(64)
    nn.init.kaiming_normal_(module.pieces.weight, mode="fan_out")
    nn.init.zeros_(module.pieces.bias)
    x_BCHW = torch.randn(64, 64, 4, 4)
    pieces_BCHW = module.pieces(x_BCHW)
    torch.testing.assert_close(module(x_BCHW), pieces_BCHW[:, :64].maximum(pieces_BCHW[:, 64:]))
    assert module(x_BCHW).detach().square().mean().item() == pytest.approx(1, rel=0.1)


def test_adaptive_piecewise_linear_adds_a_slope_below_each_hinge():
    module = AdaptivePiecewiseLinear(1)
    with torch.no_grad():
        module.slopes_SC.copy_(torch.tensor([[0.5], [-2.0]]))
        module.hinges_SC.copy_(torch.tensor([[1.0], [0.0]]))
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    expected = torch.tensor([0.5 * 3 - 2 * 2, 0.5, 0.5 + 0.25, 3.0])
    torch.testing.assert_close(module(x[:, None, None, None])[:, 0, 0, 0], expected)


# Drop-path


@given(prob=st.floats(0, 0.99))
@settings(max_examples=20, deadline=None)
def test_local_factors_keep_one_input_and_the_expectation(prob):
    factors_B2 = draw_local_factors(50_000, prob, torch.device("cpu"))
    keep = 1 - prob + prob**2 / 2
    assert (factors_B2.sum(dim=1) > 0).all()
    assert factors_B2.unique().tolist() in ([pytest.approx(1 / keep)], [0, pytest.approx(1 / keep)])
    # Five standard deviations of a mean over 50,000 draws; a factor's variance is at most 1.
    assert factors_B2.mean(dim=0).tolist() == pytest.approx([1, 1], abs=5 / math.sqrt(50_000))


def train_joins_only(block: FractalNeuralBlock) -> FractalNeuralBlock:
    """Drop-path active at this block's join, everything below in eval mode."""
    settle(block).training = True
    return block


def test_drop_path_local_keeps_the_expectation_of_a_join():
    block = train_joins_only(FractalNeuralBlock(2, 4, 8, make_mask(), "local", drop_path_prob=0.4))
    x_BCHW = torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        mean_CHW = block(x_BCHW.expand(20_000, -1, -1, -1)).mean(dim=0)
        torch.testing.assert_close(mean_CHW, block.eval()(x_BCHW)[0], rtol=0.02, atol=0.02)


def test_drop_path_local_drops_whole_paths_of_single_samples():
    block = train_joins_only(FractalNeuralBlock(2, 4, 8, make_mask(), "local", drop_path_prob=0.4))
    x_BCHW = torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        out_BCHW = block(x_BCHW.expand(200, -1, -1, -1))
        deep_BCHW, shallow_BCHW = block.column(2)(x_BCHW), block.column(1)(x_BCHW)
        a_B1HW, b_B1HW = block.fractal_attention(torch.cat([deep_BCHW, shallow_BCHW], dim=1)).chunk(2, dim=1)
    deep_BCHW, shallow_BCHW = a_B1HW * deep_BCHW / 0.68, b_B1HW * shallow_BCHW / 0.68
    allowed = [deep_BCHW, shallow_BCHW, deep_BCHW + shallow_BCHW]
    matches = torch.stack([((out_BCHW - one_BCHW).abs() < 1e-5).flatten(1).all(dim=1) for one_BCHW in allowed])
    assert (matches.sum(dim=0) == 1).all()
    assert matches.any(dim=1).all()


@pytest.mark.parametrize("drop_path", ["global", "mixed"])
def test_drop_path_global_keeps_each_column_alone_for_its_share_of_half(drop_path):
    net = make_net(fractal_levels=(1, 3, 2), drop_path=drop_path)
    images_BCHW = torch.empty(20_000, 3, 8, 8)
    columns_B = net._draw_columns(images_BCHW)
    shares = columns_B.bincount(minlength=4) / len(columns_B)
    assert shares.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.02)
    assert net.eval()._draw_columns(images_BCHW) is None


@pytest.mark.parametrize("drop_path", ["none", "local", "channel"])
def test_drop_path_other_than_global_keeps_no_column_alone(drop_path):
    assert make_net(drop_path=drop_path)._draw_columns(torch.empty(4, 3, 8, 8)) is None


def test_drop_path_global_samples_of_a_batch_take_their_own_columns(monkeypatch):
    net = settle(make_net(fractal_levels=(3, 1), drop_path="global", dropout=0))
    x_BCHW = torch.randn(4, 3, 8, 8)
    expected_BK = torch.cat([net(x_BCHW)[:1], *(net.column(depth)(x_BCHW)[depth, None] for depth in (1, 2, 3))])
    monkeypatch.setattr(net, "_draw_columns", lambda _: torch.arange(4))
    torch.testing.assert_close(net(x_BCHW), expected_BK, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_column_equals_the_net_where_global_drop_path_keeps_it(monkeypatch, depth):
    net = make_net(fractal_levels=(1, 3, 2), drop_path="mixed", dropout=0)
    column = net.column(depth)
    x_BCHW = torch.randn(8, 3, 8, 8)
    monkeypatch.setattr(net, "_draw_columns", lambda _: torch.full((8,), depth))
    torch.testing.assert_close(net(x_BCHW), column(x_BCHW), rtol=1e-4, atol=1e-4)


def test_column_shares_the_parameters_and_leaves_out_other_columns():
    net = make_net(fractal_levels=(1, 3))
    own = set(net.parameters())
    for depth, leaves in [(1, 2), (2, 3), (3, 5)]:
        column = net.column(depth)
        assert set(column.parameters()) < own
        assert count_leaf_convolutions(column) == leaves


@pytest.mark.parametrize("depth", [0, 4, -1])
def test_column_depth_out_of_range_is_refused(depth):
    with pytest.raises(ConfigError, match=f"depth is {depth}; allowed: 1 to 3"):
        make_net(fractal_levels=(1, 3)).column(depth)


def test_drop_path_channel_drops_whole_channels_after_every_block():
    net = make_net(fractal_levels=(1, 3), drop_path="channel", drop_path_prob=0.5)
    blocks = [part for part in net.modules() if isinstance(part, FractalNeuralBlock)]
    assert len(blocks) == 1 + 7
    assert all(isinstance(block.drop_path, nn.Dropout2d) and block.drop_path.p == 0.5 for block in blocks)
    out_BCHW = blocks[0](torch.randn(64, 8, 4, 4))
    is_zero_BC = (out_BCHW == 0).flatten(2).all(dim=2)
    assert is_zero_BC.float().mean().item() == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("drop_path", DROP_PATHS)
def test_drop_path_same_seed_draws_the_same_in_training_and_nothing_in_eval(drop_path):
    net = make_net(fractal_levels=(2, 3), drop_path=drop_path)
    x_BCHW = torch.randn(8, 3, 8, 8)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(net(x_BCHW))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    state = torch.get_rng_state()
    net.eval()
    assert torch.equal(net(x_BCHW), net(x_BCHW))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("drop_path", DROP_PATHS)
def test_drop_path_in_a_cuda_graph_draws_afresh_at_every_replay(drop_path):
    net = make_net(fractal_levels=(2, 3), drop_path=drop_path).cuda()
    x_BCHW = torch.randn(16, 3, 8, 8, device="cuda")
    graph, side_stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad():
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            net(x_BCHW)
        torch.cuda.current_stream().wait_stream(side_stream)
        with torch.cuda.graph(graph):
            logits_BK = net(x_BCHW)
    graph.replay()
    first_BK = logits_BK.clone()
    graph.replay()
    assert first_BK.isfinite().all()
    assert not torch.equal(first_BK, logits_BK)


# The whole net


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    base_channels=st.sampled_from([4, 8, 12]),
    stem=st.sampled_from(["conv3", "conv7"]),
    attention=st.sampled_from(["spatial", "pooled", "none"]),
    margin=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_net_any_configuration_gives_logits_and_maps(levels, base_channels, stem, attention, margin):
    net = make_net(
        fractal_levels=levels, base_channels=base_channels, stem=stem, global_attention=attention, num_classes=7
    )
    smallest = 2 ** (len(levels) - (stem == "conv3"))
    height, width = smallest + margin[0], smallest + margin[1]
    logits_BK, maps = net(torch.randn(3, 3, height, width), return_attention_maps=True)
    assert logits_BK.shape == (3, 7)
    strides = [2 ** (min(i + 1, len(levels) - 1) + (stem == "conv7")) for i in range(len(levels))]
    assert [tuple(one.shape) for one in maps] == [
        (3, 1, math.ceil(height / stride), math.ceil(width / stride)) for stride in strides
    ]


def test_net_channels_double_in_each_of_the_next_four_stages():
    net = make_net(fractal_levels=(1,) * 6, base_channels=4)
    assert [stage[0].base_conv.out_channels for stage in net.fractal_stages] == [4, 8, 16, 32, 64, 64]
    assert isinstance(net.fractal_stages[-1][2], nn.Identity)


@pytest.mark.parametrize(
    ("stem", "image_size", "expected"),
    [("auto", 32, "conv3"), ("auto", 33, "conv7"), ("auto", None, "conv7"), ("conv3", 224, "conv3")],
)
def test_net_stem_auto_is_resolved_by_the_image_size(stem, image_size, expected):
    net = FractalBrainNet(ModelConfig(fractal_levels=(1,), base_channels=4, stem=stem), image_size=image_size)
    assert net.config.stem == expected
    conv = net.stem[0]
    assert (conv.kernel_size[0], conv.stride[0]) == ((3, 1) if expected == "conv3" else (7, 2))


@pytest.mark.parametrize(("stem", "smallest"), [("conv3", 4), ("conv7", 8)])
def test_net_images_too_small_name_the_size_that_works(stem, smallest):
    net = make_net(fractal_levels=(1, 1, 1), stem=stem)
    net(torch.randn(2, 3, smallest, smallest))
    for shape in [(2, 3, smallest - 1, smallest), (2, 3, smallest, smallest - 1)]:
        with pytest.raises(ConfigError, match=f"H and W of {smallest} or more"):
            net(torch.randn(shape))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8)])
def test_net_images_of_other_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"allowed: \[B, 3, H, W\]"):
        make_net()(torch.randn(shape))


@pytest.mark.parametrize(("base_channels", "num_heads"), [(4, 4), (8, 8), (12, 6), (20, 5), (28, 7), (44, 4)])
def test_net_attention_heads_are_the_largest_divisor_up_to_8(base_channels, num_heads):
    net = make_net(fractal_levels=(1,), base_channels=base_channels)
    assert net.global_attention.num_heads == num_heads


def attend_by_hand(net: FractalBrainNet, tokens_BNC: Tensor) -> Tensor:
    """Multi-head self-attention over the tokens, one head at a time, then their mean; [B, C]."""
    attention = net.global_attention
    queries, keys, values = F.linear(tokens_BNC, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=2)
    heads = []
    for query, key, value in zip(
        *(one.split(attention.head_dim, dim=2) for one in (queries, keys, values)), strict=True
    ):
        weights_BNN = (query @ key.transpose(1, 2) / math.sqrt(attention.head_dim)).softmax(dim=2)
        heads.append(weights_BNN @ value)
    return attention.out_proj(torch.cat(heads, dim=2)).mean(dim=1)


@pytest.mark.parametrize("kind", ["spatial", "pooled", "none"])
def test_net_head_attends_to_positions_or_one_pooled_token(kind):
    net = settle(make_net(global_attention=kind))
    features_BCHW = torch.randn(2, 16, 4, 3) * 5
    features_BC = features_BCHW.mean(dim=(2, 3))
    if kind == "spatial":
        features_BC = attend_by_hand(net, features_BCHW.flatten(2).transpose(1, 2))
    elif kind == "pooled":
        features_BC = attend_by_hand(net, features_BC[:, None])
    expected_BK = net.classifier(features_BC + 0.1 * net.meta_learner(features_BC))
    torch.testing.assert_close(net._classify(features_BCHW), expected_BK, rtol=1e-4, atol=1e-5)


def test_net_without_attention_and_continuous_learning_lacks_their_parameters():
    net = make_net(global_attention="none", continuous_learning=False)
    assert not [name for name, _ in net.named_parameters() if name.startswith(("global_attention", "meta_learner"))]
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("drop_path", DROP_PATHS)
def test_net_on_the_meta_device_builds_and_trains_without_data(drop_path):
    with torch.device("meta"):
        net = make_net(fractal_levels=(2, 3), drop_path=drop_path)
        logits_BK = net(torch.empty(4, 3, 8, 8))
    assert (logits_BK.device.type, logits_BK.shape) == ("meta", (4, 10))
    logits_BK.sum().backward()


def test_net_in_double_agrees_with_single():
    net = settle(make_net())
    x_BCHW = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(x_BCHW).double(), net.double()(x_BCHW.double()), rtol=1e-3, atol=1e-4)


def test_net_in_bfloat16_autocast_trains_and_agrees_roughly():
    net = make_net(drop_path="mixed")
    x_BCHW = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        net(x_BCHW).float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    settle(net)
    with torch.autocast("cpu", torch.bfloat16):
        low_BK = net(x_BCHW).float()
    assert F.cosine_similarity(low_BK, net(x_BCHW)).min() > 0.99


def test_net_in_channels_last_agrees_with_contiguous():
    net = settle(make_net())
    x_BCHW = torch.randn(2, 3, 8, 8)
    expected_BK = net(x_BCHW)
    net.to(memory_format=torch.channels_last)
    actual_BK = net(x_BCHW.to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual_BK, expected_BK, rtol=1e-4, atol=1e-5)


# Initialisation


def test_init_reference_draws_the_documented_deviations():
    net = make_net(base_channels=64, init="reference")
    block = net.fractal_stages[1][0]
    deviations = {
        block.shallow_branch[0]: math.sqrt(2 / (128 * 9)),
        block.fractal_attention[0]: math.sqrt(2 / 32),
        block.shallow_branch[1].alpha_processing: math.sqrt(2 / 32),
        net.classifier[1]: 0.02,
        net.global_attention.out_proj: 0.02,
    }
    for module, deviation in deviations.items():
        assert module.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert not module.bias.any()


def test_init_fan_in_changes_gates_bands_and_head_only():
    net = make_net(base_channels=64)
    block = net.fractal_stages[1][0]
    deviations = {
        block.shallow_branch[0]: math.sqrt(2 / (128 * 9)),
        block.fractal_attention[0]: math.sqrt(2 / 256),
        block.shallow_branch[1].alpha_processing: math.sqrt(2 / 128),
        net.classifier[1]: math.sqrt(2 / 128),
        net.global_attention.out_proj: math.sqrt(2 / 128),
    }
    for module, deviation in deviations.items():
        assert module.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert not module.bias.any()


@pytest.mark.parametrize(("init", "low", "high"), [("fan_in", 0.1, 3), ("reference", 1e-5, 0.01)])
def test_init_scale_of_the_first_logits(init, low, high):
    net = FractalBrainNet(SIZES["small"].model_copy(update={"init": init}))
    assert low < net(torch.randn(16, 3, 32, 32)).detach().std().item() < high


# The documents' sizes and example


@pytest.mark.parametrize(("size", "millions"), [("small", 0.58), ("medium", 15.08), ("large", 252.48)])
def test_size_documented_has_the_reference_parameter_count(size, millions):
    with torch.device("meta"):
        net = create_fractal_brain_net(size)
    mask_copies = count_leaf_convolutions(net) * net.config.pattern_resolution**2
    assert (num_parameters(net) + mask_copies) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.slow
def test_size_xlarge_builds():
    with torch.device("meta"):
        assert create_fractal_brain_net("xlarge")(torch.empty(2, 3, 64, 64)).shape == (2, 10)


def test_size_unknown_is_refused():
    with pytest.raises(ConfigError, match="'tiny'; allowed: small, medium, large, xlarge"):
        create_fractal_brain_net("tiny")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("fractal_levels", (2, 0), "greater than or equal to 1"), ("fractal_levels", (9,), "less than or equal to 8"),
        ("fractal_levels", (), "at least 1 item"), ("base_channels", 6, "multiple of 4"),
        ("pattern_resolution", 0, "greater than or equal to 1"), ("activation", "step", "'relu', 'leaky_relu'"),
        ("pattern", "koch", "mandelbrot, sierpinski, julia"), ("stem", "conv5", "'auto', 'conv7', 'conv3', 'pool3'"),
    ],
)  # fmt: skip
def test_config_that_cannot_be_built_names_the_field_and_what_can(field, value, allowed):
    with pytest.raises(ValueError, match=rf"(?s){field}.*{allowed}"):
        make_net(**{field: value})


def test_net_without_classes_or_channels_is_refused():
    for name in ("num_classes", "in_channels"):
        with pytest.raises(ConfigError, match=f"{name} is 0; allowed: 1 or more"):
            make_net(**{name: 0})


def test_size_with_an_unknown_pattern_names_the_five():
    with pytest.raises(ConfigError, match="'koch'; allowed: mandelbrot, sierpinski, julia, cantor, dragon_curve"):
        create_fractal_brain_net("small", fractal_pattern="koch")


# Section "Exemplo Básico" of the documents, to the letter; only the imports are this project's.
DOCUMENTED_EXAMPLE = r"""
import torch
from fbsearch.config.models import FractalPatternType
from fbsearch.network.model import FractalBrainNet, create_fractal_brain_net

# Criar um modelo de tamanho médio com padrão Mandelbrot
model = create_fractal_brain_net(model_size='medium', 
                                 num_classes=10, 
                                 fractal_pattern=FractalPatternType.MANDELBROT)

# Exibir a arquitetura do modelo
print(model)

# Criar um tensor de entrada dummy (ex: lote de 2 imagens RGB 64x64)
dummy_input = torch.randn(2, 3, 64, 64)

# Realizar um forward pass
output = model(dummy_input)
print(f"\nShape da saída do modelo: {output.shape}")

# Analisar padrões emergentes
analysis_results = model.analyze_fractal_patterns(dummy_input)
print("\n--- Análise de Padrões Emergentes ---")
print(f"Complexidade dos padrões por nível: {analysis_results['pattern_complexity']}")
print(f"Organização hierárquica (correlação entre níveis): {analysis_results['hierarchical_organization']['correlation']:.4f}")
print(f"Score de Hierarquia (1 - correlação): {analysis_results['hierarchical_organization']['hierarchy_score']:.4f}")

# Calcular o número total de parâmetros
total_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"\nTotal de parâmetros treináveis no modelo: {total_params:,}")
"""  # noqa: E501, W291


def test_documented_example_runs_as_written(capsys):
    exec(DOCUMENTED_EXAMPLE, {})
    printed = capsys.readouterr().out
    assert "Shape da saída do modelo: torch.Size([2, 10])" in printed
    assert "Total de parâmetros treináveis no modelo: 15,053,808" in printed


# The reference's state dict


def reference_state_dict(net: FractalBrainNet, pattern_HW: Tensor) -> dict[str, Tensor]:
    """The net's weights under the reference's names: with a copy of the mask in every dynamics module."""
    state_dict = dict(net.state_dict())
    for name, module in net.named_modules():
        if isinstance(module, CerebralDynamicsModule):
            state_dict[f"{name}.fractal_pattern"] = pattern_HW.clone()
    return state_dict


def make_reference_like(size: str = "small", **fields) -> FractalBrainNet:
    return FractalBrainNet(SIZES[size].model_copy(update={"global_attention": "pooled", **fields}))


def test_reference_state_dict_brings_weights_and_mask():
    julia_HW = torch.tensor(generate_pattern("julia", 16, 16))
    source = settle(make_reference_like(pattern=FractalPatternType.JULIA))
    model = make_reference_like().eval()
    state_dict = reference_state_dict(source, julia_HW)
    assert "fractal_stages.0.0.shallow_branch.1.fractal_pattern" in state_dict
    assert "fractal_stages.0.0.deep_branch.1.cerebral_dynamics.fractal_pattern" in state_dict
    load_reference_state_dict(model, state_dict)
    x_BCHW = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x_BCHW), source(x_BCHW), rtol=0, atol=0)
    assert torch.equal(model.fractal_pattern, julia_HW)


def test_reference_state_dict_after_a_forward_replaces_the_mask():
    source = settle(make_reference_like(pattern=FractalPatternType.CANTOR))
    model = make_reference_like().eval()
    x_BCHW = torch.randn(2, 3, 32, 32)
    model(x_BCHW)
    load_reference_state_dict(model, reference_state_dict(source, source.fractal_pattern))
    torch.testing.assert_close(model(x_BCHW), source(x_BCHW), rtol=0, atol=0)


def test_reference_state_dict_without_masks_keeps_the_nets_own():
    model = make_reference_like(pattern=FractalPatternType.CANTOR)
    load_reference_state_dict(model, make_reference_like().state_dict())
    assert torch.equal(model.fractal_pattern, torch.tensor(generate_pattern("cantor", 16, 16)))


def test_reference_state_dict_names_match_the_reference():
    names = set(make_reference_like().state_dict())
    assert {
        "stem.0.weight", "stem.1.running_mean", "stem.3.scale_fusion.0.bias", "stem.3.global_processor.weight",
        "fractal_stages.0.0.deep_branch.0.base_conv.weight", "fractal_stages.0.0.deep_branch.1.norm.running_var",
        "fractal_stages.0.0.deep_branch.0.cerebral_dynamics.alpha_processing.weight",
        "fractal_stages.0.0.shallow_branch.0.weight", "fractal_stages.0.0.shallow_branch.1.integration.bias",
        "fractal_stages.0.0.shallow_branch.2.num_batches_tracked", "fractal_stages.0.0.fractal_attention.2.weight",
        "fractal_stages.1.0.deep_branch.1.deep_branch.0.cerebral_dynamics.normalization.weight",
        "fractal_stages.0.1.regional_processor.bias", "fractal_stages.0.2.0.weight", "fractal_stages.0.2.1.weight",
        "global_attention.in_proj_weight", "global_attention.out_proj.bias", "meta_learner.0.weight",
        "meta_learner.2.bias", "classifier.1.weight", "classifier.4.bias",
    } <= names  # fmt: skip
    assert len(names) == 271


def test_reference_state_dict_with_missing_and_extra_keys_lists_them():
    model = make_reference_like()
    state_dict = dict(model.state_dict(), unheard_of=torch.zeros(1))
    del state_dict["classifier.4.bias"]
    with pytest.raises(ConfigError, match=r"(?s)classifier\.4\.bias.*unheard_of"):
        load_reference_state_dict(model, state_dict)


def test_reference_state_dict_with_differing_masks_is_refused():
    model = make_reference_like()
    state_dict = reference_state_dict(model, torch.zeros(16, 16))
    state_dict["fractal_stages.0.0.shallow_branch.1.fractal_pattern"] += 1
    with pytest.raises(ConfigError, match="fractal_pattern copies differ"):
        load_reference_state_dict(model, state_dict)


@pytest.mark.parametrize(
    ("field", "value"), [("stem", "conv3"), ("global_attention", "spatial"), ("activation", "relu")]
)
def test_reference_state_dict_into_another_kind_of_net_is_refused(field, value):
    model = make_reference_like(**{field: value})
    with pytest.raises(ConfigError, match=rf"model\.{field} is '{value}'; allowed with a reference state dict"):
        load_reference_state_dict(model, model.state_dict())


# The analysis


def test_analysis_gives_maps_complexity_and_organization():
    net = settle(make_net(fractal_levels=(1, 2, 1)))
    x_BCHW = torch.randn(4, 3, 16, 12)
    analysis = net.analyze_fractal_patterns(x_BCHW)
    _, maps = net(x_BCHW, return_attention_maps=True)
    assert torch.equal(analysis["fractal_pattern"], torch.tensor(generate_pattern("mandelbrot", 8, 8)))
    assert [tuple(one.shape) for one in analysis["attention_maps"]] == [(4, 1, 8, 6), (4, 1, 4, 3), (4, 1, 4, 3)]
    assert all(torch.equal(one, other) for one, other in zip(analysis["attention_maps"], maps, strict=True))
    for complexity, positions in zip(analysis["pattern_complexity"], [48, 12, 12], strict=True):
        assert 0 < complexity < math.log(positions)
    organization = analysis["hierarchical_organization"]
    assert -1 < organization["correlation"] < 1
    assert organization["hierarchy_score"] == pytest.approx(1 - organization["correlation"])


def test_analysis_figures_match_their_definitions():
    net = settle(make_net())
    analysis = net.analyze_fractal_patterns(torch.randn(1, 3, 8, 8))
    above_HW, below_HW = (one[0, 0] for one in analysis["attention_maps"])
    for map_HW, complexity in zip([above_HW, below_HW], analysis["pattern_complexity"], strict=True):
        assert complexity == pytest.approx(torch.distributions.Categorical(logits=map_HW.flatten()).entropy().item())
    resized_HW = F.interpolate(below_HW[None, None], size=above_HW.shape, mode="bilinear", align_corners=False)[0, 0]
    pearson = torch.corrcoef(torch.stack([above_HW.flatten(), resized_HW.flatten()]))[0, 1].item()
    assert analysis["hierarchical_organization"]["correlation"] == pytest.approx(pearson, abs=1e-5)


def test_analysis_does_not_depend_on_the_batch_size():
    net = settle(make_net())
    x_BCHW = torch.randn(3, 3, 8, 8)
    one, many = (net.analyze_fractal_patterns(x_BCHW.repeat(times, 1, 1, 1)) for times in (1, 5))
    assert one["pattern_complexity"] == pytest.approx(many["pattern_complexity"], abs=1e-5)
    assert one["hierarchical_organization"] == pytest.approx(many["hierarchical_organization"], abs=1e-5)


def test_analysis_of_constant_maps_has_correlation_0():
    net = settle(make_net())
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    analysis = net.analyze_fractal_patterns(torch.randn(2, 3, 8, 8))
    assert analysis["hierarchical_organization"] == {"correlation": 0, "hierarchy_score": 1}
    assert analysis["pattern_complexity"] == pytest.approx([math.log(16), math.log(16)])


def test_analysis_of_a_single_stage_has_no_organization():
    analysis = make_net(fractal_levels=(1,)).analyze_fractal_patterns(torch.randn(2, 3, 8, 8))
    assert analysis["hierarchical_organization"] == {"correlation": 0, "hierarchy_score": 0}


def test_analysis_leaves_training_flags_statistics_and_gradients_alone():
    net = make_net().train()
    net.stem[1].eval()
    flags = [module.training for module in net.modules()]
    before = copy.deepcopy(net.state_dict())
    analysis = net.analyze_fractal_patterns(torch.randn(2, 3, 8, 8, requires_grad=True))
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(one.requires_grad for one in analysis["attention_maps"])
    with pytest.raises(ConfigError):
        net.analyze_fractal_patterns(torch.randn(2, 3, 1, 1))
    assert [module.training for module in net.modules()] == flags
