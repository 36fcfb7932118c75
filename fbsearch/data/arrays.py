"""Images that are arrays: their conversion to uint8, and the .npz file in which worker processes find them.

Shapes: N images, H height, W width, C channels (1 grey, 3 RGB).
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fbsearch.config.models import DataConfig
from fbsearch.data.decode import Bytes
from fbsearch.data.image_tree import Ints, resolve_root
from fbsearch.errors import DataError
from fbsearch.files import write_whole

ValueRange: TypeAlias = tuple[float, float]

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS, CLASS_NAMES = "images", "labels", "test_images", "test_labels", "class_names"
# Pillow's weights of red, green and blue (ITU-R 601-2) for grey, in units of 2**-16.
GREY_WEIGHTS = np.array([19595, 38470, 7471], dtype=np.uint32)


def find_value_range(images: npt.NDArray[Any]) -> ValueRange | None:
    """Return the lowest and the highest value of images that are neither uint8 nor within [0, 1]; None for those.

    Raise DataError for values that are no finite numbers.
    """
    if images.dtype in (np.uint8, np.bool_) or not images.size:
        return None
    if images.dtype.kind not in "iuf" or not np.isfinite(images).all():
        raise DataError("images: must be finite numbers: uint8, float in [0, 1], or others with data.value_range")
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return None
    return (0.0, 255.0) if images.dtype.kind != "f" and low >= 0 and high <= 255 else (low, max(high, low + 1))


def to_bytes(images: npt.NDArray[Any], value_range: ValueRange | None, *, name: str = IMAGES) -> Bytes:
    """Return images as uint8 [N, H, W, C]. They are [N, H, W], [N, H, W, C] or [N, C, H, W], with C 1 or 3.

    uint8 stays, booleans become 0 and 255, and other values are scaled so that `value_range` becomes 0 to 255; what is
    outside is clipped. Without a range floats must be in [0, 1]. Raise DataError for other shapes and values.
    """
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(
            f"{name}: has the shape {images.shape}; needed is [N, H, W] or [N, H, W, C], with 1 or 3 channels"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255)
    if value_range is None and find_value_range(images) is not None:
        raise DataError(
            f"{name}: has {images.dtype} values from {images.min():g} to {images.max():g}; without data.value_range "
            "give uint8, or floats in [0, 1]"
        )
    low, high = value_range or (0.0, 1.0)
    scaled: Bytes = np.rint((images.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)
    return scaled


def crop_square(images_NHWC: Bytes) -> Bytes:
    """Return the largest centred square of images."""
    height, width = images_NHWC.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images_NHWC[:, top : top + side, left : left + side]


def to_channels(images_NHWC: Bytes, channels: int) -> Bytes:
    """Return images with 1 or 3 channels; grey is weighted as Pillow does it."""
    if images_NHWC.shape[-1] == channels:
        return images_NHWC
    if channels == 3:
        return np.repeat(images_NHWC, 3, axis=-1)
    grey: Bytes = ((images_NHWC @ GREY_WEIGHTS + 2**15) >> 16).astype(np.uint8)[..., None]
    return grey


def encode_labels(labels: npt.NDArray[Any]) -> tuple[Ints, tuple[str, ...]]:
    """Return labels as 0 to K - 1, and the K classes in their order as text."""
    classes_K, places_N = np.unique(labels, return_inverse=True)
    return places_N.astype(np.int64), tuple(str(one) for one in classes_K.tolist())


def write_arrays(folder: Path, content: Mapping[str, npt.NDArray[Any]]) -> Path:
    """Write arrays of the names above into a folder, once, and return the file, which is named after its content."""
    digest = hashlib.sha256()
    for name, values in content.items():
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode() + np.ascontiguousarray(values).tobytes())
    path = folder / f"arrays-{digest.hexdigest()[:12]}.npz"
    if not path.exists():
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **content)
        write_whole(path, buffer.getbuffer(), way_out="; `storage` names a database in another folder")
    return path


def read_arrays(config: DataConfig) -> dict[str, Any]:
    """Return the arrays of `config.root`: images and test_images as uint8 [N, H, H, C], labels, class_names as text.

    Raise DataError, which names the file and the array, for one that is absent, damaged or does not fit the others.
    """
    path = resolve_root(config.root)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = dict(archive)
    except FileNotFoundError:
        raise DataError(
            f"data.root: there is no file {path}; `fbsearch.search((images, labels))` in Python writes one, and so "
            "does numpy.savez(FILE, images=images, labels=labels)"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:  # TypeError: a single array
        raise DataError(f"data.root: {path} is no .npz file of numpy, or damaged ({error})") from None
    if missing := {IMAGES, LABELS} - found.keys():
        raise DataError(f"data.root: {path} has no array named {' and none named '.join(sorted(missing))}")
    if (TEST_IMAGES in found) != (TEST_LABELS in found):
        raise DataError(f"data.root: {path} has one of {TEST_IMAGES} and {TEST_LABELS}; both or none are needed")
    for images, labels in ((IMAGES, LABELS), (TEST_IMAGES, TEST_LABELS)):
        if images in found:
            found[images] = crop_square(
                to_bytes(found[images], config.value_range, name=f"data.root: {path}: {images}")
            )
            if found[labels].shape != (len(found[images]),):
                raise DataError(
                    f"data.root: {path}: {labels} has the shape {found[labels].shape}, and there are "
                    f"{len(found[images])} {images}; one label for each is needed"
                )
    return _number_classes(found, path)


def _number_classes(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Replace labels by numbers from 0 and name the classes, unless the file does both. DataError if they clash."""
    if CLASS_NAMES in found:
        names = tuple(map(str, found[CLASS_NAMES].tolist()))
    else:
        found[LABELS], names = encode_labels(found[LABELS])
        number_of = {name: number for number, name in enumerate(names)}
        tested = map(str, found.get(TEST_LABELS, np.array([])).tolist())
        found |= {TEST_LABELS: np.array([number_of.get(name, -1) for name in tested])} if TEST_LABELS in found else {}
    for labels in {LABELS, TEST_LABELS} & found.keys():
        values = found[labels]
        if values.dtype.kind not in "iu" or (len(values) and not 0 <= values.min() <= values.max() < len(names)):
            raise DataError(
                f"data.root: {path}: {labels} has others than the {len(names)} classes of the training images"
            )
        found[labels] = values.astype(np.int64)
    return found | {CLASS_NAMES: names}
