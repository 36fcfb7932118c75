"""The cache of decoded images on disk: each set of files is decoded once, by one of all the processes that need it.

An entry is a folder `<cache>/<key>` with `images.npy` (mapped into memory, so that workers share its pages) and
`entry.json`; the key is a hash of everything that determines the pixels. Entries are never deleted: delete the folder
to free the disk.

Shapes: N images, M broken ones, H height, W width, C channels (1 grey, 3 RGB).
"""

import hashlib
import json
import os
import shutil
import stat
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from fbsearch.config.models import USUAL_PIXELS
from fbsearch.data.decode import Bytes, broken_image, decode_file, probe
from fbsearch.data.image_tree import ImageFile, ImageFiles, Ints
from fbsearch.errors import DataError
from fbsearch.files import expand_home

ProgressCallback: TypeAlias = Callable[[str], None]

FORMAT_VERSION = 1  # part of every key: increase it when the same files would give other pixels
# Images of fewer pixels are decoded in one thread: Python takes longer than the decoder, so threads compete for the GIL
# (two cores, CIFAR's 32x32 JPEG: 63 us an image with one thread, 111 with two; from 64x64 on two are up to 2x as fast).
THREADS_FROM_PIXELS = 64 * 64
BATCH_BYTES = 2**25
BATCH_IMAGES = 1000
NOTICE_SECONDS = 1.0


@dataclass(frozen=True)
class DecodedImages:
    """The pixels of one part, one row for each file, and their checksum; rows `broken_M` of broken files are zeros."""

    images_NHWC: Bytes
    broken_M: Ints
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The pixels that are wanted of files; None where the files decide."""

    image_size: int | None
    channels: int | None
    max_pixels: int

    def is_shape(self, shape: tuple[int, ...], *, num_files: int) -> bool:
        """Return whether an array of this shape can be those pixels."""
        return (
            len(shape) == 4
            and shape[0] == num_files
            and shape[1] == shape[2]
            and shape[1] == (self.image_size or shape[1])
            and shape[3] == (self.channels or shape[3])
            and shape[3] in (1, 3)
        )


def load_images(
    files: ImageFiles,
    *,
    image_size: int | None,
    channels: int | None,
    skip_broken: bool,
    notice: ProgressCallback,
    max_pixels: int = USUAL_PIXELS,
) -> DecodedImages:
    """Return the pixels of `files`, uint8 [N, H, W, C] with H = W, from the cache or decoded into it.

    Args:
        image_size, channels: As in `decode.probe` and `decode.decode_image`.
        skip_broken: Leave zeros for files that cannot be decoded instead of raising.
        max_pixels: Files of more pixels cannot be decoded.
        notice: Called with one-line texts about progress, about once a second.

    If several processes need the same images at once, one decodes and the others wait. Raise DataError for a broken
    image, sizes that differ while `image_size` is None, or a cache that cannot be written.
    """
    wanted = Wanted(image_size=image_size, channels=channels, max_pixels=max_pixels)
    key = _key(files, wanted)
    decoded = _read_entry(cache_folder() / key, wanted, num_files=len(files.files), notice=notice)
    if decoded is None:
        waiting = f"another process is decoding {files.folder.name} images: waiting for it"
        with cache_lock(key, waiting=waiting, notice=notice) as folder:
            decoded = _read_entry(folder / key, wanted, num_files=len(files.files), notice=notice)
            if decoded is None:
                _build_entry(folder / key, files, wanted, skip_broken=skip_broken, notice=notice)
                decoded = _read_entry(folder / key, wanted, num_files=len(files.files), notice=notice)
    assert decoded is not None, "an entry that was just written must be readable"
    if len(decoded.broken_M) and not skip_broken:
        first = files.files[decoded.broken_M[0]]
        raise broken_image(files.folder / first.name, "it could not be decoded")
    return decoded


def cache_folder() -> Path:
    """Return the folder of decoded images and locks: `$FBSEARCH_CACHE`, else `~/.cache/fbsearch`."""
    return expand_home(os.environ.get("FBSEARCH_CACHE") or "~/.cache/fbsearch")


@contextmanager
def cache_lock(name: str, *, waiting: str, notice: ProgressCallback) -> Iterator[Path]:
    """Create and yield the cache folder while holding its lock `name`; the lock of a killed process is free."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notice(waiting)
            lock.acquire()
    except OSError as error:
        raise _cache_error(folder, error) from error
    try:
        yield folder
    finally:
        lock.release()


def _cache_error(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the cache of decoded images in {folder} ({error.strerror or error}). "
        "Make room there, or set the environment variable FBSEARCH_CACHE to a folder that can be written."
    )


def _key(files: ImageFiles, wanted: Wanted) -> str:
    parts: list[Any] = [FORMAT_VERSION, str(files.folder), wanted.image_size, wanted.channels, files.files]
    if wanted.max_pixels != USUAL_PIXELS:  # entries of the version without this setting stay
        parts.append(wanted.max_pixels)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read_entry(entry: Path, wanted: Wanted, *, num_files: int, notice: ProgressCallback) -> DecodedImages | None:
    """Return the entry's images, mapped into memory; None if the entry does not exist or is damaged."""
    if not os.path.exists(entry):  # noqa: PTH110 (Path.exists raises if the cache may not be entered)
        return None
    try:
        _check_owner(entry)
        index = json.loads((entry / "entry.json").read_bytes())
        images_NHWC = np.lib.format.open_memmap(entry / "images.npy", mode="r")  # never a zip file, never a pickle
        broken_M = np.array(index["broken"], dtype=np.int64)
        whole = images_NHWC.dtype == np.uint8 and images_NHWC.flags.c_contiguous
        whole = whole and wanted.is_shape(images_NHWC.shape, num_files=num_files)
        whole = whole and bool(np.isin(broken_M, np.arange(num_files)).all()) and broken_M.ndim == 1
        if whole and zlib.crc32(images_NHWC.data) == index["crc32"]:
            return DecodedImages(images_NHWC, broken_M, index["crc32"])
    except DataError:
        raise
    except Exception:  # damage makes the readers raise almost anything, and has always the same remedy
        pass
    notice(f"the cache entry {entry} is damaged: decoding again")
    return None


def _check_owner(entry: Path) -> None:
    """Raise DataError for an entry that anybody could have put there: pixels decide what is searched and found."""
    folder, found = entry.parent.stat(), entry.lstat()
    if folder.st_mode & stat.S_IWOTH and found.st_uid not in (0, folder.st_uid, os.geteuid()):
        raise DataError(
            f"{entry} is another user's, in a cache folder where everybody may write. "
            "Set the environment variable FBSEARCH_CACHE to a folder of your own or of your group."
        )


def _build_entry(
    entry: Path, files: ImageFiles, wanted: Wanted, *, skip_broken: bool, notice: ProgressCallback
) -> None:
    """Decode into `<entry>.partial` and rename it: a kill at any moment leaves either no entry or a complete one.

    The caller holds the entry's lock, so an existing partial folder has no writer any more.
    """
    partial = entry.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with (partial / "images.npy").open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about odd metadata and palettes: real damage raises
            index = _write_images(file, files, wanted, skip_broken=skip_broken, notice=notice)
            file.flush()
            os.fsync(file.fileno())
        with (partial / "entry.json").open("w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        if entry.exists():
            shutil.rmtree(entry)
        partial.replace(entry)
    except OSError as error:
        raise _cache_error(entry.parent, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_images(
    out: BinaryIO,
    files: ImageFiles,
    wanted: Wanted,
    *,
    skip_broken: bool,
    notice: ProgressCallback,
) -> dict[str, Any]:
    """Write all images as one .npy, batch by batch; return their checksum and the rows of broken ones."""
    names = [file.name for file in files.files]
    target, pixels = probe(files.folder, names, image_size=wanted.image_size, channels=wanted.channels)
    row_shape = (target.side, target.side, target.channels)
    num_files = len(files.files)
    header = {"descr": "|u1", "fortran_order": False, "shape": (num_files, *row_shape)}
    np.lib.format.write_array_header_1_0(out, header)

    def decode(file: ImageFile) -> Bytes | None:
        path = files.folder / file.name
        return decode_file(path, target, skip_broken=skip_broken, max_pixels=wanted.max_pixels)

    checksum, broken = 0, []
    last_notice = time.monotonic()
    batch = min(BATCH_IMAGES, max(1, BATCH_BYTES // int(np.prod(row_shape))))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # starts its threads when first used
        decode_all: Callable[..., Iterator[Bytes | None]] = pool.map if pixels >= THREADS_FROM_PIXELS else map
        for start in range(0, num_files, batch):
            rows = list(decode_all(decode, files.files[start : start + batch]))
            broken += [start + i for i, row in enumerate(rows) if row is None]
            content = np.stack([np.zeros(row_shape, np.uint8) if row is None else row for row in rows])
            out.write(content.data)
            checksum = zlib.crc32(content.data, checksum)
            if time.monotonic() - last_notice >= NOTICE_SECONDS:
                notice(f"decoding {files.folder.name} images: {start + len(rows):,} of {num_files:,}")
                last_notice = time.monotonic()
    notice(f"decoded {num_files - len(broken):,} {files.folder.name} images")
    return {"crc32": checksum, "broken": broken}
