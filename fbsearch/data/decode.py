"""Decoding of image files to uint8 pixels with Pillow, and reading sizes and modes from their headers.

Shapes: H height, W width, C channels (1 grey, 3 RGB).
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fbsearch.config.models import MAX_PIXELS
from fbsearch.data.image_tree import FORMATS
from fbsearch.errors import DataError

Bytes: TypeAlias = npt.NDArray[np.uint8]

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})


# The most pixels that all threads together decode at a time. A pixel takes up to 13 bytes on its way (RGBA on white).
PIXELS_IN_FLIGHT = 2**26


class Target(NamedTuple):
    """The format to which images are decoded; without `resize`, all files must have this side already."""

    side: int
    channels: int
    resize: bool


class Budget:
    """An amount that threads share: who asks for more than is left waits. One larger than all has it for itself."""

    def __init__(self, total: int) -> None:
        self._total, self._taken = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold `amount`, or all of it if that is less."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + amount <= self._total)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()


_pixels = Budget(PIXELS_IN_FLIGHT)


def probe(folder: Path, names: Sequence[str], *, image_size: int | None, channels: int | None) -> tuple[Target, int]:
    """Return the target of the files `folder/<name>`, and width x height of the first; read headers only.

    Headers are read up to the first colour image, so all of them in a grey tree. Files that Pillow cannot open are
    skipped.

    Args:
        image_size: Side in pixels. None: the first image's, which must be square.
        channels: 1 or 3. None: 1 if every file is grey by its mode (not by its pixels), else 3.

    Raise DataError if no file can be opened, or if the first image is not square and `image_size` is None.
    """
    first: tuple[str, int, int] | None = None
    colour = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about odd metadata and large images: real damage raises
        for name in names:
            try:
                with Image.open(folder / name, formats=FORMATS) as image:
                    first = first or (name, *image.size)
                    colour = channels is None and _is_colour(image)
            except Exception:  # the same file is decoded later, and named there
                continue
            if colour or channels is not None:
                break
    if first is None:
        raise DataError(f"data.root: none of the {len(names)} image files under {folder} can be decoded.")
    name, width, height = first
    if image_size is None and width != height:
        raise _size_error(folder / name, (height, width), "is not square")
    target = Target(image_size or width, channels or (3 if colour else 1), resize=image_size is not None)
    return target, width * height


def measure_side(folder: Path, names: Sequence[str]) -> int:
    """Return the median of the images' shorter sides in pixels, from headers.

    Files that Pillow cannot open are skipped. DataError if no file can be opened.
    """
    sides = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                with Image.open(folder / name, formats=FORMATS) as image:
                    sides.append(min(image.size))
            except Exception:  # the same file is decoded later, and named there
                continue
    if not sides:
        raise DataError(f"data.root: none of the {len(names)} image files under {folder} can be decoded.")
    return int(np.median(sides))


def _is_colour(image: Image.Image) -> bool:
    if image.mode != "P":
        return image.mode not in GREY_MODES
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    return bool((palette != palette[:, :1]).any())


def decode_file(path: Path, target: Target, *, skip_broken: bool, max_pixels: int = MAX_PIXELS) -> Bytes | None:
    """Return the file's pixels, uint8 [side, side, channels]; with `skip_broken`, None for a broken image.

    Raise DataError for a file that cannot be opened, is broken, or has another size than a target without `resize`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:  # a fault of the disk or the user, not of the image: never skipped
        raise DataError(f"data.root: cannot open {path} ({error.strerror}).") from error
    try:
        side = target.side if target.resize else None
        image_HWC = decode_image(content, side=side, channels=target.channels, max_pixels=max_pixels)
    except MemoryError as error:  # never skipped either: the cache would remember it
        raise DataError(f"data.root: there is not enough memory to decode {path}.") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        if skip_broken:
            return None
        unknown = isinstance(error, UnidentifiedImageError)  # its text has a buffer's address
        raise broken_image(path, f"in no format of {', '.join(FORMATS)}" if unknown else str(error)) from error
    if image_HWC.shape[:2] != (target.side, target.side):
        raise _size_error(path, image_HWC.shape, f"is not {target.side} x {target.side} as the first")
    return image_HWC


def decode_image(content: bytes, *, side: int | None, channels: int, max_pixels: int = MAX_PIXELS) -> Bytes:
    """Decode an image file's bytes to uint8 [H, W, C], upright by its EXIF orientation.

    With `side`, the largest centred square is resized to it (bicubic, antialiased); None keeps the image's size. An
    animation gives its first frame. 16 bits keep their high byte, transparency becomes white, CMYK and palettes become
    RGB; colour profiles are ignored. Raise Pillow's error for damaged content, ValueError for more than `max_pixels`
    and for pixels without a known range (float, integers beyond 16 bits).
    """
    with Image.open(BytesIO(content), formats=FORMATS) as opened:
        num_pixels = opened.width * opened.height
        if num_pixels > max_pixels:
            raise ValueError(f"it has {num_pixels:,} pixels, `data.max_pixels` is {max_pixels:,}")
        if side is not None:
            opened.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
        with _pixels.take(opened.width * opened.height):
            ImageOps.exif_transpose(opened, in_place=True)
            return fit_image(opened, side=side, channels=channels)


def fit_image(image: Image.Image, *, side: int | None, channels: int) -> Bytes:
    """Return the pixels of an upright image as `decode_image` returns those of a file. Raise ValueError as it does."""
    image = _to_eight_bits(image, mode="RGB" if channels == 3 else "L")
    if side is not None and image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _to_eight_bits(image: Image.Image, *, mode: str) -> Image.Image:
    """Convert an image to mode `L` or `RGB`."""
    if image.mode == "F":
        raise ValueError("float pixels have no agreed range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values_HW = np.asarray(image)
        if values_HW.min() < 0 or values_HW.max() >= 2**16:
            raise ValueError("its integers are beyond 16 bits: save it with 8 or 16 bits")
        image = Image.fromarray((values_HW >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == mode else image.convert(mode)


def broken_image(path: Path, reason: str) -> DataError:
    """Return the error for a broken image."""
    return DataError(
        f"data.root: {path} is a broken image ({reason}). "
        "Repair or remove it, or write `skip_broken: true` under `data:` to go on without such files."
    )


def _size_error(path: Path, shape: Sequence[int], what: str) -> DataError:
    return DataError(
        f"data.image_size: null takes images as they are, so all must be squares of one size; {path} ({shape[1]} x "
        f"{shape[0]}) {what}. Write a size in pixels, such as `image_size: {min(shape[:2])}`, to have them resized."
    )
