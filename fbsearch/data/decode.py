"""One image file's bytes to uint8 pixels, and what its header tells before that.

Must not know where the files come from (trees, classes, labels), where the pixels go (the cache), or torch.

Shapes: H height, W width, C channels (1 grey, 3 RGB).
"""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fbsearch.errors import DataError

Bytes: TypeAlias = npt.NDArray[np.uint8]

GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})


class Target(NamedTuple):
    """What every image becomes. `resize` is False where all must have this side already."""

    side: int
    channels: int
    resize: bool


def probe(folder: Path, names: Sequence[str], *, image_size: int | None, channels: int | None) -> tuple[Target, int]:
    """What the files `folder/<name>` become, and the pixels (width x height) of the first; only headers are read.

    A tree is grey until one file is not: in a colour tree one header is read, in a grey one all of them. Files that
    Pillow cannot open are passed over.

    Args:
        image_size: Side in pixels. None: the first image's, which must be square.
        channels: 1 or 3. None: 1 if every file is grey by its mode (not by its pixels), else 3.

    Raises DataError where no file can be opened, or for a first image that is not square with `image_size` None.
    """
    first: tuple[str, int, int] | None = None
    colour = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of large images: what cannot be decoded raises
        for name in names:
            try:
                with Image.open(folder / name) as image:
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


def _is_colour(image: Image.Image) -> bool:
    if image.mode != "P":
        return image.mode not in GREY_MODES
    palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    return bool((palette != palette[:, :1]).any())


def decode_file(path: Path, target: Target, *, skip_broken: bool) -> Bytes | None:
    """The file's pixels, uint8 [side, side, channels]; None if they cannot be decoded and that is allowed.

    Raises DataError for a file that cannot be opened, is broken, or is not of the target's size without `resize`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:  # the disk's or the user's fault, not the image's: never skipped
        raise DataError(f"data.root: cannot open {path} ({error.strerror}).") from error
    try:
        image_HWC = decode_image(content, side=target.side if target.resize else None, channels=target.channels)
    except MemoryError as error:  # never skipped either: the cache would remember it
        raise DataError(f"data.root: there is not enough memory to decode {path}.") from error
    except Exception as error:  # Pillow's readers let through whatever a damaged file leads them to
        if skip_broken:
            return None
        unknown = isinstance(error, UnidentifiedImageError)  # its text names a buffer's address
        raise broken_image(path, "in no format that Pillow reads" if unknown else str(error)) from error
    if image_HWC.shape[:2] != (target.side, target.side):
        raise _size_error(path, image_HWC.shape, f"is not {target.side} x {target.side} as the first")
    return image_HWC


def decode_image(content: bytes, *, side: int | None, channels: int) -> Bytes:
    """One image file's bytes as uint8 [H, W, C], turned upright as its EXIF orientation says.

    With a side, the largest centred square is resized to it (bicubic, antialiased); None keeps the image's size. Of an
    animation the first frame. 16 bits keep their high byte, transparency becomes white, CMYK and palettes become RGB;
    colour profiles are ignored. Raises whatever Pillow raises where the content is damaged, ValueError for pixels
    without a known range (float, integers beyond 16 bits).
    """
    with Image.open(BytesIO(content)) as opened:
        if side is not None:
            opened.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
        ImageOps.exif_transpose(opened, in_place=True)
        image = _to_eight_bits(opened, mode="RGB" if channels == 3 else "L")
    if side is not None and image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _to_eight_bits(image: Image.Image, *, mode: str) -> Image.Image:
    """The image in mode `L` or `RGB`."""
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
    """The error that names a broken image and both ways out."""
    return DataError(
        f"data.root: {path} is a broken image ({reason}). "
        "Repair or remove it, or write `skip_broken: true` under `data:` to go on without such files."
    )


def _size_error(path: Path, shape: Sequence[int], what: str) -> DataError:
    return DataError(
        f"data.image_size: null takes images as they are, so all must be squares of one size; {path} ({shape[1]} x "
        f"{shape[0]}) {what}. Write a size in pixels, such as `image_size: {min(shape[:2])}`, to have them resized."
    )
