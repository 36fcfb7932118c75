"""A model takes images of any size, type and colour as it was trained on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fbsearch
from fbsearch.api.model import Model, prepare_images
from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig
from fbsearch.data.arrays import crop_square
from fbsearch.data.dataset import resize
from fbsearch.errors import ConfigError, DataError
from fbsearch.winners.checkpoint import ModelCard, TrainedModel, build_net


def make_model(
    *,
    channels: int = 3,
    class_names: tuple[str, ...] = ("cat", "dog"),
    value_range: tuple[float, float] | None = None,
    source: Any = "folder",
) -> Model:
    """A small network that has learned nothing, which does not matter to what it is given."""
    card = ModelCard(
        rank=1, trial=0, value=0.5, num_parameters=1, num_classes=len(class_names), in_channels=channels, image_size=8,
        seed=0, data=DataConfig(name=source, value_range=value_range), train=TrainConfig(precision="fp32"),
        model=ModelConfig(fractal_levels=(1,), base_channels=4, stem="conv3", pattern_resolution=8),
        study="small", keep_validation=True, class_names=class_names, mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip
    torch.manual_seed(0)
    return Model(TrainedModel(Path("none"), card, build_net(card).eval()))


@pytest.fixture
def colour() -> Model:
    return make_model()


@pytest.fixture
def pixels() -> np.ndarray:
    """Five images of 8 x 8, as the network takes them."""
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def seen(model: Model, images: object) -> np.ndarray:
    """What the network is given, [N, H, W, C], before it is normalised."""
    return prepare_images(images, model.card).permute(0, 2, 3, 1).numpy()  # type: ignore[arg-type]


def test_images_in_every_form_are_the_same(colour: Model, pixels: np.ndarray, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image_HWC in zip(paths, pixels, strict=True):
        Image.fromarray(image_HWC).save(path)
    forms = {
        "bytes": pixels,
        "floats": pixels / 255,
        "channels first": pixels.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 255),
        "list of arrays": list(pixels),
        "paths": paths,
        "texts": tuple(map(str, paths)),
        "folder": tmp_path,
        "PIL": [Image.open(path) for path in paths],
        "mixed": [paths[0], pixels[1], Image.open(paths[2]), pixels[3] / 255, str(paths[4])],
    }
    for form, images in forms.items():
        assert np.array_equal(seen(colour, images), pixels), form
    assert np.array_equal(seen(colour, paths[0]), pixels[:1])
    assert np.array_equal(seen(colour, Image.open(paths[0])), pixels[:1])


def test_images_are_cropped_and_resized_as_those_of_training(colour: Model, photos: list[Image.Image]) -> None:
    wide = [photo.resize((40, 24)) for photo in photos]
    arrays = np.stack([np.asarray(photo) for photo in wide])
    of_files = seen(colour, wide)
    assert of_files.shape == (2, 8, 8, 3)
    assert np.array_equal(seen(colour, arrays), of_files)
    assert np.array_equal(seen(colour, arrays[..., 0]), seen(colour, [photo.getchannel(0) for photo in wide]))
    of_arrays = seen(make_model(source="arrays"), arrays)
    assert np.array_equal(of_arrays, resize(torch.from_numpy(crop_square(arrays).copy()), 8).numpy())


def test_grey_and_colour_become_what_the_network_takes(colour: Model, pixels: np.ndarray) -> None:
    grey = np.stack([np.asarray(Image.fromarray(image_HWC).convert("L")) for image_HWC in pixels])
    assert np.array_equal(seen(make_model(channels=1), pixels)[..., 0], grey)
    assert np.array_equal(seen(make_model(channels=1), [Image.fromarray(one) for one in pixels])[..., 0], grey)
    assert np.array_equal(seen(colour, grey), np.repeat(grey[..., None], 3, axis=3))


def test_pil_image_is_turned_upright_and_put_on_white(colour: Model, pixels: np.ndarray) -> None:
    turned = Image.fromarray(pixels[0])
    turned.getexif()[0x0112] = 3  # by 180 degrees
    assert np.array_equal(seen(colour, turned)[0], pixels[0, ::-1, ::-1])
    clear = Image.fromarray(np.dstack([pixels[0], np.zeros((8, 8), dtype=np.uint8)]))
    assert (seen(colour, clear) == 255).all()


def test_arrays_are_scaled_as_those_of_training() -> None:
    model = make_model(value_range=(0, 16), channels=1)
    assert seen(model, np.full((1, 8, 8), 16.0)).max() == 255
    assert seen(model, [np.full((8, 8), 8.0)]).max() == 128
    assert seen(model, np.full((1, 8, 8), 16, dtype=np.uint8)).max() == 16


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        pytest.param([], "there is none", id="nothing"),
        pytest.param(np.zeros((8, 8)), "has the shape", id="one array"),
        pytest.param(np.full((1, 8, 8), 300.0), "give uint8, or floats", id="range"),
        pytest.param(np.array([["a"]]), "has the shape", id="text"),
        pytest.param(np.array([[["a"]]]), "must be finite numbers", id="characters"),
        pytest.param("nowhere.png", "nowhere.png: cannot be opened", id="no file"),
        pytest.param([__file__], "test_model.py: cannot be read: in no format", id="no image"),
    ],
)
def test_what_is_no_image_is_refused(colour: Model, images: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        colour.predict(images)  # type: ignore[arg-type]


def test_predictions_agree_with_each_other(colour: Model, pixels: np.ndarray) -> None:
    shares = colour.predict_proba(pixels)
    assert shares.shape == (5, 2) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    said = colour.predict(pixels)
    assert said.tolist() == [("cat", "dog")[place] for place in shares.argmax(axis=1)]
    assert colour.score(pixels, said) == 1 and colour.score(pixels[:1], ["cat" if said[0] == "dog" else "dog"]) == 0
    assert colour.predict_proba(pixels[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("0", "1", "10"), [0, 1, 10]),
        (("-1", "1"), [-1, 1]),
        (("00", "1"), ["00", "1"]),
        (("\u00b2", "1"), ["\u00b2", "1"]),
    ],
)
def test_classes_are_integers_where_all_names_are(names: tuple[str, ...], expected: list[object]) -> None:
    assert make_model(class_names=names).classes_.tolist() == expected


def test_score_refuses_labels_that_are_no_classes(colour: Model, pixels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"labels: '3' is none of the classes cat, dog"):
        colour.score(pixels, [3] * 5)
    with pytest.raises(DataError, match=r"have the shape \(2,\), and there are 5 images"):
        colour.score(pixels, ["cat", "dog"])


def test_saved_model_is_the_same(colour: Model, pixels: np.ndarray, tmp_path: Path) -> None:
    opened = fbsearch.load_model(colour.save(tmp_path / "model"))
    assert np.array_equal(opened.predict_proba(pixels), colour.predict_proba(pixels))
    assert opened.card == colour.card and repr(opened) == "<Model 'small', rank 1, seed 0: 2 classes>"
    colour.save(tmp_path / "model")  # over itself
    (tmp_path / "model" / "model.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="is there already, and is no trained model of fbsearch; name another"):
        colour.save(tmp_path / "model")


def test_model_is_exported_by_its_ending(colour: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in none of \.onnx, \.pt2"):
        colour.export(tmp_path / "model.h5")
    (tmp_path / "model.pt2").write_text("mine")
    with pytest.raises(ConfigError, match="is no exported model of fbsearch"):
        colour.export(tmp_path / "model.pt2")
