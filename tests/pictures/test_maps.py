"""Pictures of patterns, masks and attention maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fbsearch.config.models import ModelConfig
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures.maps import Samples, draw_attention, draw_masks, draw_patterns

SHAPE = {"in_channels": 1, "image_size": 8}


def make_net(**fields: object) -> FractalBrainNet:
    torch.manual_seed(0)
    config = {"fractal_levels": (1, 2), "base_channels": 4, "pattern": "julia", "pattern_resolution": 16}
    return FractalBrainNet(ModelConfig.model_validate(config | fields), **SHAPE)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_masks_picture_shows_each_stages_bands(tmp_path):
    net = make_net(pattern="sierpinski", pattern_resolution=8, base_channels=8)
    draw_masks(tmp_path / "new" / "masks.png", net, image_size=8)
    pixels = pixels_of(tmp_path / "new" / "masks.png")
    # Sierpinski's 27 of 64 pixels: bright in alpha, dark in beta; at 8 x 8 a tile's square is 14 pixels.
    brightest = (pixels == [252, 253, 191]).all(axis=2).sum()
    assert brightest >= (27 + 27 + 37) * 14 * 14


@pytest.mark.parametrize("stem", ["conv3", "conv7"])
def test_masks_picture_has_the_sizes_that_the_stages_see(tmp_path, stem):
    net = make_net(stem=stem, fractal_levels=(1, 1))
    seen = []
    for stage in net.fractal_stages:
        stage[0].register_forward_pre_hook(lambda _block, args: seen.append(args[0].shape[-1]))
    sides = []
    net.mask.register_forward_pre_hook(lambda _mask, args: sides.append(args[0].shape[-1]))
    net.eval()(torch.zeros(1, 1, 9, 9))
    sides.clear()
    draw_masks(tmp_path / "masks.png", net, image_size=9)
    assert sides == seen


def make_samples(count: int, channels: int = 1) -> Samples:
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
    names = ("a [b] <i>", "x" * 300, *"cdefghij")
    return Samples(torch.randn(count + 2, channels, 8, 8), images_NHWC, names[:count], names)


def test_attention_picture_has_a_row_an_image_and_a_column_a_map(tmp_path):
    net, samples = make_net(), make_samples(2)
    analysis = net.analyze_fractal_patterns(samples.x_BCHW)
    path, shapes = tmp_path / "attention.png", []
    for nets in (2, 3):
        draw_attention(path, net, samples, [("trained", analysis)] * nets)
        shapes.append(pixels_of(path).shape)
    assert shapes[1][1] - shapes[0][1] == 2 * 124  # two stages more
    draw_attention(path, net, make_samples(3), [("trained", analysis)] * 2)
    assert pixels_of(path).shape[0] - shapes[0][0] == 124


def test_attention_picture_of_a_constant_map_is_dark(tmp_path):
    net, samples = make_net(), make_samples(1)
    flat = net.analyze_fractal_patterns(samples.x_BCHW) | {"attention_maps": [torch.full((3, 1, 4, 4), 7.0)]}
    draw_attention(tmp_path / "attention.png", net, samples, [("flat", flat)])
    pixels = pixels_of(tmp_path / "attention.png")
    assert (pixels == [0, 0, 4]).all(axis=2).sum() >= 112 * 112


def test_patterns_picture_has_the_five_side_by_side(tmp_path):
    draw_patterns(tmp_path / "patterns.png", size=64)
    assert pixels_of(tmp_path / "patterns.png").shape == (64 + 24 + 28, 5 * (64 + 12) + 12, 3)
