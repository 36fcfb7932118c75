"""The maps that a worker takes of a trained net, what of them is stored, and the picture that is made of it."""

import base64
import dataclasses
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fbsearch.config.models import DataConfig, ModelConfig
from fbsearch.data.dataset import Dataset, evenly_spaced_rows, load_dataset
from fbsearch.messages import Attention, Pixels
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures.maps import TILE_PIXELS
from fbsearch.report.page import draw_stored_attention
from fbsearch.workers.attention import MAX_SIDE, NUM_IMAGES, take_attention


def make_net(data: Dataset) -> FractalBrainNet:
    torch.manual_seed(0)
    config = ModelConfig(fractal_levels=(1, 1), base_channels=4, pattern_resolution=8, stem="conv3")
    return FractalBrainNet.for_images(config, data.info.shape).train()


@pytest.fixture
def digits() -> Dataset:
    return load_dataset(DataConfig(limit=100), device=torch.device("cpu"), with_test=False)


def array(pixels: Pixels) -> np.ndarray:
    return np.frombuffer(base64.b64decode(pixels.base64), np.uint8).reshape(pixels.shape)


def test_attention_is_what_the_net_gives_scaled_to_each_range(digits: Dataset) -> None:
    net = make_net(digits)
    taken = take_attention(net, digits)
    rows = evenly_spaced_rows(len(digits.val.labels_N), NUM_IMAGES)
    images_NCHW = digits.val.images_NCHW[rows]
    assert (array(taken.images) == images_NCHW.permute(0, 2, 3, 1).numpy()).all()
    assert taken.labels == tuple(digits.val.labels_N[rows].tolist())
    maps = net.analyze_fractal_patterns(digits.normalise(images_NCHW))["attention_maps"]
    assert [stage.shape for stage in taken.stages] == [(NUM_IMAGES, *map_B1HW.shape[2:]) for map_B1HW in maps]
    for stage, map_B1HW in zip(taken.stages, maps, strict=True):
        for small_HW, map_HW in zip(array(stage), map_B1HW[:, 0], strict=True):
            scaled = 255 * (map_HW - map_HW.min()) / (map_HW.max() - map_HW.min())
            assert np.abs(small_HW - scaled.numpy()).max() <= 0.51
    with torch.inference_mode():
        logits_NK = net(digits.normalise(images_NCHW))
    assert taken.said == tuple(logits_NK.argmax(dim=1).tolist())
    assert taken.shares == pytest.approx(logits_NK.softmax(dim=1).amax(dim=1).tolist(), abs=1e-4)


def test_attention_is_the_same_twice_and_draws_no_random_number(digits: Dataset) -> None:
    net, state = make_net(digits), torch.get_rng_state()
    net_state = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert take_attention(net, digits) == take_attention(net, digits)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, net_state[name]) for name, value in net.state_dict().items())


def test_attention_of_large_images_stays_small_and_is_plain_data(make_tree: Callable[..., Path]) -> None:
    root = make_tree(train={"a": 8, "b": 8}, size=(70, 70))
    config = DataConfig(name="folder", root=str(root), image_size=70)
    data = load_dataset(config, device=torch.device("cpu"), with_test=False)
    taken = take_attention(make_net(data), data)
    assert taken.images.shape == (3, MAX_SIDE, MAX_SIDE, 3), "there are three validation images"
    assert max(max(stage.shape[1:]) for stage in taken.stages) == MAX_SIDE
    assert pickle.loads(pickle.dumps(taken)) == taken
    assert len(json.dumps(dataclasses.asdict(taken))) < 40_000


def test_picture_of_stored_attention_has_a_row_for_each_image(digits: Dataset) -> None:
    stored = json.loads(json.dumps(dataclasses.asdict(take_attention(make_net(digits), digits))))
    picture = Image.open(io.BytesIO(draw_stored_attention(stored, digits.info.class_names) or b""))
    assert picture.width > 3 * TILE_PIXELS and picture.height > NUM_IMAGES * TILE_PIXELS
    assert len(picture.convert("RGB").getcolors(2**24) or ()) > 50


def test_picture_of_a_map_that_is_constant_and_of_a_class_without_a_name() -> None:
    flat = Pixels((1, 2, 2), base64.b64encode(bytes(4)).decode())
    image = Pixels((1, 2, 2, 1), base64.b64encode(bytes(4)).decode())
    stored = dataclasses.asdict(Attention(image, (flat,), (7,), (8,), (0.5,)))
    assert draw_stored_attention(json.loads(json.dumps(stored)), ()) is not None


@pytest.mark.parametrize(
    "stored", [{}, {"images": 1, "stages": []}, {"images": {"shape": [9], "base64": ""}, "stages": []}]
)
def test_picture_of_what_another_version_has_stored_is_none(stored: dict[str, object]) -> None:
    assert draw_stored_attention(stored, ("a",)) is None
