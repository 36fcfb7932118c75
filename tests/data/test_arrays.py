"""Images as arrays: the same pixels as files of them give, and a file that worker processes read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fbsearch.config.models import DataConfig
from fbsearch.data.arrays import crop_square, find_value_range, read_arrays, to_bytes, to_channels, write_arrays
from fbsearch.data.dataset import load_dataset
from fbsearch.data.sources import check_source, has_test_split, peek_shape
from fbsearch.data.summary import summarise
from fbsearch.errors import DataError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 10, 14, 3), dtype=np.uint8)
LABELS = np.array(["cat", "dog", "emu"] * 4)


def write(folder: Path, **content: np.ndarray) -> DataConfig:
    np.savez(folder / "images.npz", **{"images": COLOUR, "labels": LABELS} | content)  # type: ignore[arg-type]
    return DataConfig(name="arrays", root=str(folder / "images.npz"))


@pytest.mark.parametrize(
    ("images", "value_range", "expected"),
    [
        pytest.param(np.uint8([0, 7, 255]), None, [0, 7, 255], id="uint8"),
        pytest.param(np.uint8([0, 7, 16]), (0, 16), [0, 7, 16], id="uint8 is never scaled"),
        pytest.param(np.array([False, True]), None, [0, 255], id="bool"),
        pytest.param(np.float32([0, 0.5, 1]), None, [0, 128, 255], id="unit"),
        pytest.param(np.float64([0, 8, 16]), (0, 16), [0, 128, 255], id="digits"),
        pytest.param(np.float64([-9, -1, 1, 9]), (-1, 1), [0, 0, 255, 255], id="clipped"),
        pytest.param(np.int64([0, 99, 255]), (0, 255), [0, 99, 255], id="integers"),
    ],
)
def test_bytes_of_values(images: np.ndarray, value_range: tuple[float, float] | None, expected: list[int]) -> None:
    found = to_bytes(images.reshape(1, 1, -1), value_range)
    assert found.dtype == np.uint8 and found.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.uint8([0, 16]), None),
        (np.array([True]), None),
        (np.float64([0, 0.3]), None),
        (np.float64([0, 16]), (0.0, 16.0)),
        (np.float64([-3, 0.5]), (-3.0, 0.5)),
        (np.int64([0, 16]), (0.0, 255.0)),
        (np.uint16([0, 4000]), (0.0, 4000.0)),
        (np.float64([7.0, 7.0]), (7.0, 8.0)),
    ],
)
def test_value_range_is_found(values: np.ndarray, expected: tuple[float, float] | None) -> None:
    assert find_value_range(values) == expected


def test_layouts_give_the_same_images() -> None:
    first = to_bytes(COLOUR, None)
    assert np.array_equal(to_bytes(COLOUR.transpose(0, 3, 1, 2), None), first)
    grey = COLOUR[..., 0]
    assert np.array_equal(to_bytes(grey, None), grey[..., None])
    assert np.array_equal(to_bytes(grey[:, None], None), grey[..., None])


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 5, 4), (4, 5, 5, 2), (4, 0, 5, 3), (1, 2, 3, 4, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="has the shape"):
        to_bytes(np.zeros(shape, dtype=np.uint8), None)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0, -0.1])
def test_floats_outside_of_the_range_are_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"finite numbers|give uint8, or floats"):
        to_bytes(np.full((1, 2, 2), value), None)


def test_channels_and_squares_are_pillows() -> None:
    for image_HWC, grey_HWC in zip(COLOUR, to_channels(COLOUR, 1), strict=True):
        assert np.array_equal(np.asarray(Image.fromarray(image_HWC).convert("L")), grey_HWC[..., 0])
    assert np.array_equal(to_channels(COLOUR[..., :1], 3), np.repeat(COLOUR[..., :1], 3, axis=3))
    assert np.array_equal(crop_square(COLOUR), COLOUR[:, :, 2:12])
    assert np.array_equal(crop_square(COLOUR.transpose(0, 2, 1, 3)), COLOUR.transpose(0, 2, 1, 3)[:, 2:12])


def test_dataset_of_arrays(tmp_path: Path) -> None:
    config = write(tmp_path, test_images=COLOUR[:2], test_labels=LABELS[1:3])
    data = load_dataset(config)
    assert data.info.class_names == ("cat", "dog", "emu")
    assert (data.info.num_train, data.info.num_val, data.info.num_test) == (9, 3, 2)
    assert data.info.shape == peek_shape(config) and data.info.image_size == 10
    seen = torch.cat([data.train.images_NCHW, data.val.images_NCHW])
    labels = torch.cat([data.train.labels_N, data.val.labels_N])
    number_of = {image.tobytes(): number for image, number in zip(crop_square(COLOUR), [0, 1, 2] * 4, strict=True)}
    found = {x.permute(1, 2, 0).numpy().tobytes(): int(y) for x, y in zip(seen, labels, strict=True)}
    assert found == number_of
    assert data.test is not None and data.test.labels_N.tolist() == [1, 2]
    assert has_test_split(config) and not has_test_split(write(tmp_path))
    check_source(config)
    assert "3 classes, 9 / 3 / 0 images to train / validate / test, 10 x 10 colour" in summarise(config, notice=print)


def test_dataset_is_resized_and_knows_other_images(tmp_path: Path) -> None:
    config = write(tmp_path)
    data = load_dataset(config.model_copy(update={"image_size": 5}))
    assert data.train.images_NCHW.shape == (9, 3, 5, 5)
    others = load_dataset(write(tmp_path, images=COLOUR[::-1]))
    assert others.info.fingerprint != data.info.fingerprint == load_dataset(write(tmp_path)).info.fingerprint


def test_written_file_is_named_after_its_content(tmp_path: Path) -> None:
    first = write_arrays(tmp_path / "new", {"images": COLOUR, "labels": LABELS})
    before = first.stat().st_mtime_ns
    assert write_arrays(tmp_path / "new", {"images": COLOUR, "labels": LABELS}) == first
    assert first.stat().st_mtime_ns == before
    assert write_arrays(tmp_path / "new", {"images": COLOUR, "labels": LABELS[::-1]}) != first
    assert read_arrays(DataConfig(name="arrays", root=str(first)))["labels"].tolist() == [0, 1, 2] * 4


def test_named_classes_keep_their_numbers(tmp_path: Path) -> None:
    found = read_arrays(write(tmp_path, labels=np.array([2, 0, 1] * 4), class_names=np.array(["z", "y", "x"])))
    assert found["class_names"] == ("z", "y", "x") and found["labels"].tolist() == [2, 0, 1] * 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"labels": LABELS[:3]}, "labels has the shape"),
        ({"images": COLOUR[..., :2]}, "images: has the shape"),
        ({"images": COLOUR * 1.5}, "without data.value_range"),
        ({"test_images": COLOUR}, "both or none"),
        ({"test_images": COLOUR[:1], "test_labels": np.array(["fox"])}, "others than the 3 classes"),
        ({"labels": np.array([3] * 12), "class_names": np.array(["a", "b"])}, "others than the 2 classes"),
        ({"labels": np.array([{}] * 12)}, "no .npz file of numpy, or damaged"),
        ({"labels": np.array(["only"] * 11 + ["one"])}, "'one' has 1 training image"),
        ({"test_images": COLOUR[:1, :, :, :1], "test_labels": LABELS[:1]}, "different shapes"),
    ],
)
def test_files_that_cannot_be_used_are_named(content: dict[str, np.ndarray], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        check_source(write(tmp_path, **content))


def test_no_file_and_another_file_are_named(tmp_path: Path) -> None:
    config = DataConfig(name="arrays", root=str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match=r"there is no file .*none.npz"):
        check_source(config)
    (tmp_path / "none.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(DataError, match=r"is no \.npz file"):
        check_source(config)
    np.save(tmp_path / "one.npy", COLOUR)
    with pytest.raises(DataError, match=r"is no \.npz file"):
        check_source(config.model_copy(update={"root": str(tmp_path / "one.npy")}))
    np.savez(tmp_path / "few.npz", images=COLOUR)
    with pytest.raises(DataError, match="no array named labels"):
        check_source(config.model_copy(update={"root": str(tmp_path / "few.npz")}))


def test_value_range_that_is_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="the lower value first"):
        DataConfig(name="arrays", value_range=(1, 1))
