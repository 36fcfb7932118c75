"""The cache of decoded images on disk: each set of files is decoded once, however many processes ask for it.

Must not know how a tree is laid out (`folder`), how a file is decoded (`decode`), splits or torch. One entry is a
folder `<cache>/<key>` with `images.npy` (mapped by its readers, so that workers share its pages) and `entry.json`; the
key is a hash of everything that decides the pixels. Entries are never thrown away: delete the folder to free the disk.

Shapes: N images, M of them, H height, W width, C channels (1 grey, 3 RGB).
"""

import hashlib
import json
import os
import shutil
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

from fbsearch.data.decode import Bytes, broken_image, decode_file, probe
from fbsearch.data.image_tree import ImageFile, ImageFiles, Ints
from fbsearch.errors import DataError

Notice: TypeAlias = Callable[[str], None]

FORMAT_VERSION = 1  # part of every key: raise it when the same files would give other pixels
# Below this many pixels Python's part outweighs the decoder's and threads only fight for the GIL (two cores, CIFAR's
# 32x32 JPEG: 63 us an image with one thread, 111 with two; from 64x64 on two threads are up to twice as fast).
THREADS_FROM_PIXELS = 64 * 64
BATCH_BYTES = 2**25
BATCH_IMAGES = 1000
NOTICE_SECONDS = 1.0


@dataclass(frozen=True)
class DecodedImages:
    """One part's pixels, one row a file. The rows `broken_M` are zeros: their files could not be decoded."""

    images_NHWC: Bytes
    broken_M: Ints


def load_images(
    files: ImageFiles, *, image_size: int | None, channels: int | None, skip_broken: bool, notice: Notice
) -> DecodedImages:
    """The pixels of `files`, uint8 [N, H, W, C] with H = W, from the cache or decoded into it.

    Args:
        image_size: Side in pixels. Larger or smaller images are resized (bicubic, antialiased) so that their shorter
            side fits, and cropped around the centre. None: all images must be squares of one size.
        channels: 1 or 3. None: 1 if every file is grey by its mode (not by its pixels), else 3.
        skip_broken: Leave zeros for files that cannot be decoded instead of raising.
        notice: Gets one-line texts about progress, about once a second.

    Of several processes that ask for the same images at once, one decodes and the others wait for it. Raises
    DataError for a broken image, sizes that differ with `image_size` None, or a cache that cannot be written.
    """
    key = _key(files, image_size=image_size, channels=channels)
    decoded = _read_entry(cache_folder() / key, num_files=len(files.files), notice=notice)
    if decoded is None:
        waiting = f"another process is decoding {files.folder.name} images: waiting for it"
        with cache_lock(key, waiting=waiting, notice=notice) as folder:
            decoded = _read_entry(folder / key, num_files=len(files.files), notice=notice)
            if decoded is None:
                _build_entry(folder / key, files, (image_size, channels), skip_broken=skip_broken, notice=notice)
                decoded = _read_entry(folder / key, num_files=len(files.files), notice=notice)
    assert decoded is not None, "an entry that was just written must be readable"
    if len(decoded.broken_M) and not skip_broken:
        first = files.files[decoded.broken_M[0]]
        raise broken_image(files.folder / first.name, "it could not be decoded")
    return decoded


def cache_folder() -> Path:
    """Where decoded images and locks live: `$FBSEARCH_CACHE`, else `~/.cache/fbsearch`."""
    return Path(os.environ.get("FBSEARCH_CACHE") or "~/.cache/fbsearch").expanduser()


@contextmanager
def cache_lock(name: str, *, waiting: str, notice: Notice) -> Iterator[Path]:
    """Hold the lock `name` of the cache folder, which is made and given; a killed holder's lock is free at once."""
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


def _key(files: ImageFiles, *, image_size: int | None, channels: int | None) -> str:
    parts = [FORMAT_VERSION, str(files.folder), image_size, channels, files.files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read_entry(entry: Path, *, num_files: int, notice: Notice) -> DecodedImages | None:
    """The entry's images, mapped; None where there is no such entry or what is there is not whole."""
    if not os.path.exists(entry):  # noqa: PTH110 (Path.exists raises where the cache may not be entered)
        return None
    try:
        index = json.loads((entry / "entry.json").read_bytes())
        images_NHWC = np.load(entry / "images.npy", mmap_mode="r", allow_pickle=False)
        whole = images_NHWC.dtype == np.uint8 and images_NHWC.ndim == 4 and len(images_NHWC) == num_files
        if whole and zlib.crc32(images_NHWC.data) == index["crc32"]:
            return DecodedImages(images_NHWC, np.array(index["broken"], dtype=np.int64))
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        pass  # every way to be damaged has the same cure
    notice(f"the cache entry {entry} is damaged: decoding again")
    return None


def _build_entry(
    entry: Path, files: ImageFiles, shape: tuple[int | None, int | None], *, skip_broken: bool, notice: Notice
) -> None:
    """Decode into `<entry>.partial` and rename: a kill at any moment leaves either no entry or a whole one.

    The caller holds the entry's lock, so a partial folder that is already there has lost its writer.
    """
    partial = entry.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with (partial / "images.npy").open("wb") as file, warnings.catch_warnings():
            # Pillow warns of odd metadata and of palettes that are handled here; what cannot be decoded raises.
            warnings.simplefilter("ignore")
            index = _write_images(file, files, shape, skip_broken=skip_broken, notice=notice)
            _to_disk(file)
        with (partial / "entry.json").open("wb") as file:
            file.write(json.dumps(index).encode())
            _to_disk(file)
        if entry.exists():
            shutil.rmtree(entry)
        partial.replace(entry)
    except OSError as error:
        raise _cache_error(entry.parent, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_images(
    out: BinaryIO, files: ImageFiles, shape: tuple[int | None, int | None], *, skip_broken: bool, notice: Notice
) -> dict[str, Any]:
    """Write all images as one .npy, batch by batch; returns their checksum and the rows that are broken."""
    names = [file.name for file in files.files]
    target, pixels = probe(files.folder, names, image_size=shape[0], channels=shape[1])
    row_shape = (target.side, target.side, target.channels)
    num_files = len(files.files)
    header = {"descr": "|u1", "fortran_order": False, "shape": (num_files, *row_shape)}
    np.lib.format.write_array_header_1_0(out, header)

    def decode(file: ImageFile) -> Bytes | None:
        return decode_file(files.folder / file.name, target, skip_broken=skip_broken)

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
