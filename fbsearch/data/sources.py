"""Sources of images: digits, image trees, arrays, torchvision. Each yields uint8 arrays with labels on the host.

Shapes: N images, M selected rows, C channels, H height, W width.
"""

import hashlib
import importlib.util
import socket
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fbsearch.config.models import DataConfig
from fbsearch.data.arrays import CLASS_NAMES, IMAGES, LABELS, TEST_IMAGES, TEST_LABELS, read_arrays
from fbsearch.data.decode import Bytes, probe
from fbsearch.data.image_cache import ProgressCallback, cache_lock, load_images
from fbsearch.data.image_tree import ImageFiles, ImageTree, Ints, resolve_root, scan_tree
from fbsearch.data.split import choose_training, choose_validation, draw_stratified
from fbsearch.errors import DataError
from fbsearch.messages import ImageShape

DIGITS_TEST = 360
DIGITS_TEST_SEED = 1797  # fixed, so that the 360 test images do not depend on the study's seed
DIGITS_SHAPE = (10, 1, 8)  # classes, channels, side in pixels
TORCHVISION = {  # torchvision's class, and the same three numbers
    "mnist": ("MNIST", (10, 1, 28)),
    "fashion_mnist": ("FashionMNIST", (10, 1, 28)),
    "kmnist": ("KMNIST", (10, 1, 28)),
    "cifar10": ("CIFAR10", (10, 3, 32)),
    "cifar100": ("CIFAR100", (100, 3, 32)),
    "svhn": ("SVHN", (10, 3, 32)),
}
DOWNLOAD_TIMEOUT_SECONDS = 30.0


def peek_shape(config: DataConfig) -> ImageShape:
    """Return the shape that `load_dataset(config).info` will have, without decoding, downloading or writing anything.

    The shapes of `digits` and of torchvision's data sets are known without their files. A folder is scanned and headers
    of its training images are read as in loading: one in a colour tree, all in a grey one (40,000 a second from a local
    disk). Broken images and images of another size than the first are not noticed.

    Raise DataError as `load_dataset` does for a folder that is no image tree, has too few images or none that can be
    opened, or whose first image is not square with `image_size` null, and for a file of arrays that cannot be used.
    """
    if config.name == "folder":
        tree = _scan_folder(config)
        names = [file.name for file in tree.train.files]
        target, _ = probe(tree.train.folder, names, image_size=config.image_size, channels=None)
        num_classes, in_channels, side = len(tree.class_names), target.channels, target.side
    elif config.name == "arrays":
        found = read_arrays(config)
        num_classes, in_channels, side = len(found[CLASS_NAMES]), found[IMAGES].shape[3], found[IMAGES].shape[1]
    else:
        num_classes, in_channels, side = DIGITS_SHAPE if config.name == "digits" else TORCHVISION[config.name][1]
    return ImageShape(num_classes=num_classes, in_channels=in_channels, image_size=config.image_size or side)


def check_source(config: DataConfig) -> None:
    """Raise DataError as `load_dataset` would, where the names of the files and the header of one image tell it.

    Arrays are read whole. Other data sets are not looked at.
    """
    if config.name == "folder":
        tree = _scan_folder(config)
        probe(tree.train.folder, [file.name for file in tree.train.files], image_size=config.image_size, channels=1)
    elif config.name == "arrays":
        split_validation(_read_arrays(config), config)


def has_test_split(config: DataConfig) -> bool:
    """Return True if the data set has test images. Raise DataError for a folder or file that cannot be used."""
    if config.name == "arrays":
        return TEST_IMAGES in read_arrays(config)
    return config.name != "folder" or _scan_folder(config).test is not None


@dataclass(frozen=True, eq=False)
class HostSplit:
    """Selected rows (ascending) of uint8 images on the host, which may be mapped from disk, and the rows' labels."""

    images_NHWC: Bytes
    rows_M: Ints
    labels_M: Ints

    @classmethod
    def of_all(cls, images_NHWC: Bytes, labels_N: Ints) -> "HostSplit":
        """Select all rows."""
        return cls(images_NHWC, np.arange(len(labels_N)), labels_N)

    def take(self, places: Ints) -> "HostSplit":
        """Select only these of the selected rows."""
        return replace(self, rows_M=self.rows_M[places], labels_M=self.labels_M[places])


@dataclass(frozen=True, eq=False)
class HostDataset:
    """A data set on the host; `val` is None if it is still to be split off from `train`.

    `fingerprint` is of the images and labels of both, as read; `broken` are the files that were skipped.
    """

    class_names: tuple[str, ...]
    train: HostSplit
    val: HostSplit | None
    test: HostSplit | None
    num_test: int
    fingerprint: str
    broken: tuple[str, ...] = ()


def read_dataset(config: DataConfig, *, with_test: bool, notice: ProgressCallback) -> HostDataset:
    """Read the data set of a configuration. `load_dataset` describes the arguments and errors."""
    if config.name == "digits":
        return _read_digits()
    if config.name == "folder":
        return _read_folder(config, with_test=with_test, notice=notice)
    if config.name == "arrays":
        return _read_arrays(config)
    return _read_torchvision(config, notice=notice)


def split_validation(source: HostDataset, config: DataConfig) -> HostDataset:
    """Return the data set with the training images that `limit` selects and a validation split; DataError if few."""
    least = 1 if source.val else 2
    train = source.train.take(choose_training(source.train.labels_M, config, names=source.class_names, least=least))
    val = source.val
    if val is None:
        val_M = choose_validation(train.labels_M, config)
        train, val = train.take(np.setdiff1d(np.arange(len(train.rows_M)), val_M)), train.take(val_M)
    return replace(source, train=train, val=val)


def _read_digits() -> HostDataset:
    """Read scikit-learn's 1,797 digits, 8x8, grey, 0..16 scaled to 0..255.

    The file is read directly, in 2 ms: importing sklearn.datasets takes 2 s (scipy, pandas).
    """
    spec = importlib.util.find_spec("sklearn")
    assert spec and spec.submodule_search_locations, "scikit-learn is a dependency"
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    images_NHWC = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    whole = HostSplit.of_all(images_NHWC, table[:, -1])
    rng = np.random.default_rng(DIGITS_TEST_SEED)
    test_M = draw_stratified(whole.labels_M, DIGITS_TEST, low=1, spare=1, rng=rng)
    train = whole.take(np.setdiff1d(whole.rows_M, test_M))
    names = tuple(str(digit) for digit in range(10))
    fingerprint = _fingerprint((zlib.crc32(images_NHWC.data), whole.labels_M))
    return HostDataset(
        names, train=train, val=None, test=whole.take(test_M), num_test=DIGITS_TEST, fingerprint=fingerprint
    )


def _scan_folder(config: DataConfig) -> ImageTree:
    """Scan the image tree; keep only the training images that `limit` selects."""
    tree = scan_tree(config.root)
    least = 1 if tree.val else 2
    rows = choose_training(tree.train.labels_N, config, names=tree.class_names, least=least)
    return replace(tree, train=tree.train.take(rows))


def _read_folder(config: DataConfig, *, with_test: bool, notice: ProgressCallback) -> HostDataset:
    """Read an image tree, from the cache or decoded; `limit` is applied before decoding."""
    tree = _scan_folder(config)

    checksums: list[tuple[int, Ints]] = []
    broken: list[str] = []

    def load(files: ImageFiles, channels: int | None) -> HostSplit:
        decoded = load_images(
            files,
            image_size=config.image_size,
            channels=channels,
            skip_broken=config.skip_broken,
            max_pixels=config.max_pixels,
            notice=notice,
        )
        checksums.append((decoded.crc32, files.labels_N))
        broken.extend(str(files.folder / files.files[row].name) for row in decoded.broken_M)
        part = HostSplit.of_all(decoded.images_NHWC, files.labels_N)
        part = part.take(np.setdiff1d(part.rows_M, decoded.broken_M))
        if not len(part.rows_M):
            raise DataError(f"data.root: every image under {files.folder} is broken.")
        return part

    train = load(tree.train, None)
    channels = train.images_NHWC.shape[-1]
    val = load(tree.val, channels) if tree.val else None
    fingerprint = _fingerprint(*checksums)
    test = load(tree.test, channels) if tree.test and with_test else None
    _check_sizes(train, val=val, test=test)
    num_test = len(test.rows_M) if test else len(tree.test.files) if tree.test else 0
    return HostDataset(
        tree.class_names, train, val, test, num_test=num_test, fingerprint=fingerprint, broken=tuple(broken)
    )


def _read_arrays(config: DataConfig) -> HostDataset:
    """Read a file of arrays. Its test images must have the size and the channels of the training images."""
    found = read_arrays(config)
    images_NHWC, labels_N = found[IMAGES], found[LABELS]
    test = HostSplit.of_all(found[TEST_IMAGES], found[TEST_LABELS]) if TEST_IMAGES in found else None
    if test is not None and test.images_NHWC.shape[1:] != images_NHWC.shape[1:]:
        sizes = " and ".join(str(images.shape[1:]) for images in (images_NHWC, test.images_NHWC))
        raise DataError(f"data.root: {config.root}: training and test images are of different shapes: {sizes}")
    return HostDataset(
        found[CLASS_NAMES],
        train=HostSplit.of_all(images_NHWC, labels_N),
        val=None,
        test=test,
        num_test=0 if test is None else len(test.rows_M),
        fingerprint=_fingerprint((zlib.crc32(np.ascontiguousarray(images_NHWC).data), labels_N)),
    )


def _check_sizes(train: HostSplit, **others: HostSplit | None) -> None:
    side = train.images_NHWC.shape[1]
    for name, part in others.items():
        if part and part.images_NHWC.shape[1] != side:
            raise DataError(
                f"data.image_size: null takes images as they are, but train/ has {side} pixels and {name}/ "
                f"{part.images_NHWC.shape[1]}. Write a size for both, such as `image_size: {side}`."
            )


def _fingerprint(*parts: tuple[int, Ints]) -> str:
    """Return 12 hexadecimal digits for the checksum of the pixels and the labels of each part."""
    content = hashlib.sha256()
    for checksum, labels_N in parts:
        content.update(checksum.to_bytes(4) + len(labels_N).to_bytes(8) + labels_N.tobytes())
    return content.hexdigest()[:12]


def _read_torchvision(config: DataConfig, *, notice: ProgressCallback) -> HostDataset:
    """Read one of torchvision's data sets, downloaded to `config.root` if absent."""
    from torchvision import datasets  # takes seconds to import

    root = resolve_root(config.root)
    kind = getattr(datasets, TORCHVISION[config.name][0])
    notice(f"looking for {config.name} in {root}; if it is not there, it is downloaded")
    waiting = f"another process may be downloading {config.name}: waiting for it"
    with cache_lock(f"download-{config.name}", waiting=waiting, notice=notice):
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # torchvision has no timeout: a dead network would hang it
        try:
            if config.name == "svhn":
                train, test = (kind(root, split=split, download=True) for split in ("train", "test"))
            else:
                train, test = (kind(root, train=train, download=True) for train in (True, False))
        except Exception as error:  # of urllib, tarfile, gzip and torchvision's own readers
            reason = " ".join(str(error).split())
            raise DataError(
                f"data.name: {config.name} is incomplete in {root} (data.root) and could not be downloaded: {reason}. "
                "If its files there are damaged, delete them. Without a network, `name: digits` (nothing to "
                "download) and `name: folder` (your own images) work."
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    names = tuple(getattr(train, "classes", map(str, range(10))))
    train_part, test_part = _torchvision_part(train), _torchvision_part(test)
    fingerprint = _fingerprint((zlib.crc32(np.ascontiguousarray(train.data).data), train_part.labels_M))
    return HostDataset(
        names, train_part, val=None, test=test_part, num_test=len(test_part.rows_M), fingerprint=fingerprint
    )


def _torchvision_part(dataset: Any) -> HostSplit:
    images = np.asarray(dataset.data)
    if images.ndim == 3:  # the MNIST family: N, H, W
        images = images[..., None]
    elif images.shape[-1] != 3:  # SVHN: N, C, H, W
        images = images.transpose(0, 2, 3, 1)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return HostSplit.of_all(images, np.asarray(labels, dtype=np.int64))
