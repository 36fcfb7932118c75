"""The network under CUDA's autocast, on fake tensors: what is computed in bfloat16 stays in it."""

from typing import Any

import pytest
import torch
from fake_kernels import CUDA, Written, fake_gpu

from fbsearch.config.models import ModelConfig
from fbsearch.network.fused_ops import layer_norm
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.requirements import _make_fake
from fbsearch.training.step import autocast_forward

# Fewer than a map of 64 images has here, more than a kernel or the deviations of a norm.
FEW = 50_000


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"activation": "silu", "scale_processor": "full", "drop_path": "channel"},
        {"join": "mean", "dynamics": "last", "downsample": "pool"},
        {"join": "mean", "drop_path": "local"},
        {"join": "mean", "drop_path": "global", "continuous_learning": False},
        {"activation": "mish"},
        {"activation": "maxout", "stem": "pool3"},
    ],
    ids=str,
)
def test_maps_stay_in_bfloat16_under_cudas_autocast(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"stem": "conv3", "global_attention": "none"} | parts
    config = ModelConfig(fractal_levels=(2, 2), base_channels=16, pattern_resolution=8, **options)
    with torch.device("meta"):
        net = FractalBrainNet(config, image_size=16).train()
    with fake_gpu(monkeypatch):
        _make_fake(net, CUDA)
        x_BCHW = torch.empty(64, 3, 16, 16, device=CUDA).contiguous(memory_format=torch.channels_last)
        autocast_forward(net, x_BCHW, dtype=torch.bfloat16)  # makes the masks
        with Written() as written:
            autocast_forward(net, x_BCHW, dtype=torch.bfloat16)
    maps = [(name, dtype) for name, dtype, count in written.tensors if count > FEW]
    assert len([name for name, dtype in maps if dtype == torch.bfloat16]) > 10
    assert [name for name, dtype in maps if dtype == torch.float32] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm_computes_what_the_module_computes(dtype: torch.dtype) -> None:
    """On CUDA the weights take the input's dtype: up to its rounding that changes nothing."""
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(24)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(1000, 24)
    expected = norm(x).detach()
    rounded = torch.nn.functional.layer_norm(
        x.to(dtype), (24,), norm.weight.detach().to(dtype), norm.bias.detach().to(dtype), norm.eps
    )
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(rounded.float(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer_norm(norm, x), expected)
