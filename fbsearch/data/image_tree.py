"""Scan of an image tree on disk: the files of each part (train, val, test) and class. No file is opened.

Shapes: N images.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from fbsearch.errors import ConfigError, DataError
from fbsearch.files import expand_home

Ints: TypeAlias = npt.NDArray[np.int64]

PARTS = ("train", "val", "test")
# The formats that are read, the commonest first. Pillow has more: for one it starts Ghostscript, the others are rare.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "TGA")


class ImageFile(NamedTuple):
    """An image file; `name` is relative to its part of the tree, such as `cat/0001.jpg`."""

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class ImageFiles:
    """The image files of one part (train, val, test), sorted by class, then by name."""

    folder: Path
    files: tuple[ImageFile, ...]
    labels_N: Ints

    def take(self, rows: Ints) -> "ImageFiles":
        """Select files, in the order of `rows`."""
        return replace(self, files=tuple(self.files[row] for row in rows), labels_N=self.labels_N[rows])


@dataclass(frozen=True)
class ImageTree:
    """The content of `data.root`; `class_names` are sorted, and a label is an index into them."""

    class_names: tuple[str, ...]
    train: ImageFiles
    val: ImageFiles | None
    test: ImageFiles | None


def scan_tree(root: str) -> ImageTree:
    """Find the images of `root/train/<class>/**` and, if they exist, of `root/val` and `root/test`.

    A relative root starts at the current directory. Skip hidden files and folders and files without an extension of
    FORMATS. Raise DataError if `root` has another structure.
    """
    top = resolve_root(root)
    if not _is_folder(top):
        raise DataError(
            f"data.root: there is no folder {top}, or it may not be opened. It must hold train/<class>/<images>."
        )
    if not _is_folder(top / "train"):
        found = ", ".join(_folders_in(top)[:5]) or "no folders"
        raise DataError(f"data.root: {top} has no folder train/ (found: {found}). Put the class folders into train/.")
    names = _folders_in(top / "train")
    if len(names) < 2:
        found = f"one class, {names[0]!r}" if names else "no class folders"
        raise DataError(
            f"data.root: {top / 'train'} holds {found}. It needs a folder of images for each of at least two classes."
        )
    train, val, test = (_scan_part(top / part, class_names=names) for part in PARTS)
    assert train is not None
    return ImageTree(class_names=tuple(names), train=train, val=val, test=test)


def resolve_root(root: str) -> Path:
    """Return the absolute path of `data.root`. Raise DataError for ~ of nobody, links in a circle and zero bytes."""
    try:
        return expand_home(root).resolve()
    except (ConfigError, RuntimeError, ValueError) as error:
        raise DataError(f"data.root: {root!r} cannot be used: {error}") from None


def _scan_part(folder: Path, *, class_names: list[str]) -> ImageFiles | None:
    """Return the images of one part; None if its folder does not exist."""
    if not _is_folder(folder):
        return None
    names = _folders_in(folder)
    if names != class_names:
        lacking = [f"lacks {name!r}" for name in class_names if name not in names]
        extra = [f"has {name!r} besides" for name in names if name not in class_names]
        raise DataError(
            f"data.root: {folder} must have the classes of {folder.with_name('train')}: it "
            f"{', '.join((lacking + extra)[:10])}. Make both hold the same class folders."
        )
    files: list[ImageFile] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(_images_in(folder / name, part=folder))
        if not found:
            raise DataError(
                f"data.root: the class folder {folder / name} holds no images ({', '.join(FORMATS)}). "
                f"Fill it, or remove it everywhere under {folder.parent}."
            )
        files += found
        labels += [label] * len(found)
    return ImageFiles(folder, tuple(files), np.array(labels, dtype=np.int64))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises if a parent may not be entered)


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"data.root: cannot list {folder} ({error.strerror}).") from error


def _images_in(folder: Path, *, part: Path) -> Iterator[ImageFile]:
    """Yield every image file under a class folder, in no order."""
    try:
        for entry in walk_images(folder):
            status = entry.stat()
            yield ImageFile(entry.path[len(str(part)) + 1 :], status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"data.root: cannot list {error.filename or folder} ({error.strerror}).") from error


def walk_images(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every file with an extension of FORMATS below a folder, in no order; pass over what is hidden."""
    extensions = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    for entry in walk(folder, with_hidden=False):
        if os.path.splitext(entry.name)[1].lower() in extensions and entry.is_file():  # noqa: PTH122
            yield entry


def walk(folder: Path, *, with_hidden: bool) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, at any depth, in no order. Links to folders are not followed: they could loop.

    Raise OSError for a folder that cannot be listed.
    """
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if with_hidden or not entry.name.startswith("."):
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
