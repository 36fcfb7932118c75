"""Where images come from: digits, image trees, torchvision. Each gives uint8 arrays with labels, not yet split."""

import importlib.util
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fbsearch.config.models import DataConfig
from fbsearch.data.decode import Bytes, probe
from fbsearch.data.image_cache import Notice, cache_lock, load_images
from fbsearch.data.image_tree import ImageFiles, ImageTree, Ints, scan_tree
from fbsearch.data.split import limit, pick
from fbsearch.errors import DataError
from fbsearch.messages import ImageShape

DIGITS_TEST = 360
DIGITS_TEST_SEED = 1797  # fixed: whatever the study's seed, the test images are the same 360
DIGITS_SHAPE = (10, 1, 8)  # classes, channels, pixels along a side
TORCHVISION = {  # its class, and the same three numbers
    "mnist": ("MNIST", (10, 1, 28)),
    "fashion_mnist": ("FashionMNIST", (10, 1, 28)),
    "kmnist": ("KMNIST", (10, 1, 28)),
    "cifar10": ("CIFAR10", (10, 3, 32)),
    "cifar100": ("CIFAR100", (100, 3, 32)),
    "svhn": ("SVHN", (10, 3, 32)),
}
DOWNLOAD_TIMEOUT_SECONDS = 30.0


def peek_shape(config: DataConfig) -> ImageShape:
    """The shape that `load_dataset(config).info` will have.

    Nothing is decoded, downloaded or written. The shapes of `digits` and of torchvision's data sets are known without
    their files. A folder is scanned and the headers of its training images are read by the rule of loading: one in a
    colour tree, all in a grey one (a local disk gives 40,000 a second). Broken images and sizes that differ from the
    first image's are not noticed.

    Raises DataError as `load_dataset` does for a folder that is no image tree, has too few images or none that can be
    opened, or whose first image is not square with `image_size` null.
    """
    if config.name == "folder":
        tree = _scan_folder(config)
        names = [file.name for file in tree.train.files]
        target, _ = probe(tree.train.folder, names, image_size=config.image_size, channels=None)
        num_classes, in_channels, side = len(tree.class_names), target.channels, target.side
    else:
        num_classes, in_channels, side = DIGITS_SHAPE if config.name == "digits" else TORCHVISION[config.name][1]
    return ImageShape(num_classes=num_classes, in_channels=in_channels, image_size=config.image_size or side)


def _say_nothing(_text: str) -> None:
    pass


@dataclass(frozen=True, eq=False)
class _Part:
    """Images on the host, of which `rows_M` (ascending) are meant. `images_NHWC` is uint8, maybe mapped from disk."""

    images_NHWC: Bytes
    labels_N: Ints
    rows_M: Ints

    @property
    def labels_M(self) -> Ints:
        return self.labels_N[self.rows_M]

    def take(self, places: Ints) -> "_Part":
        return replace(self, rows_M=self.rows_M[places])


@dataclass(frozen=True, eq=False)
class _Source:
    """A data set on the host; `val` is None where it is still to be split off."""

    class_names: tuple[str, ...]
    train: _Part
    val: _Part | None
    test: _Part | None
    num_test: int
    num_broken: int = 0


def _whole(images_NHWC: Bytes, labels_N: Ints) -> _Part:
    return _Part(images_NHWC, labels_N, np.arange(len(labels_N)))


def _read_digits() -> _Source:
    """scikit-learn's 1,797 digits, 8x8, grey, 0..16 scaled to 0..255.

    The file is read directly: importing sklearn.datasets takes 2 s (scipy, pandas) and the file 2 ms.
    """
    spec = importlib.util.find_spec("sklearn")
    assert spec and spec.submodule_search_locations, "scikit-learn is a dependency"
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    images_NHWC = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    whole = _whole(images_NHWC, table[:, -1])
    rng = np.random.default_rng(DIGITS_TEST_SEED)
    test_M = pick(whole.labels_M, DIGITS_TEST, low=1, spare=1, rng=rng)
    train = whole.take(np.setdiff1d(whole.rows_M, test_M))
    names = tuple(str(digit) for digit in range(10))
    return _Source(names, train=train, val=None, test=whole.take(test_M), num_test=DIGITS_TEST)


def _scan_folder(config: DataConfig) -> ImageTree:
    """The image tree with only those training images that `limit` leaves."""
    tree = scan_tree(config.root)
    least = 1 if tree.val else 2
    rows = limit(tree.train.labels_N, config, names=tree.class_names, least=least)
    return replace(tree, train=tree.train.take(rows))


def _read_folder(config: DataConfig, *, with_test: bool, notice: Notice) -> _Source:
    """An image tree, decoded or from the cache. `limit` is applied before decoding."""
    tree = _scan_folder(config)

    def load(files: ImageFiles, channels: int | None) -> tuple[_Part, int]:
        decoded = load_images(
            files, image_size=config.image_size, channels=channels, skip_broken=config.skip_broken, notice=notice
        )
        part = _whole(decoded.images_NHWC, files.labels_N)
        part = part.take(np.setdiff1d(part.rows_M, decoded.broken_M))
        if not len(part.rows_M):
            raise DataError(f"data.root: every image under {files.folder} is broken.")
        return part, len(decoded.broken_M)

    train, num_broken = load(tree.train, None)
    channels = train.images_NHWC.shape[-1]
    val = test = None
    if tree.val:
        val, num_broken_val = load(tree.val, channels)
        num_broken += num_broken_val
    if tree.test and with_test:
        test, num_broken_test = load(tree.test, channels)
        num_broken += num_broken_test
    num_test = len(test.rows_M) if test else len(tree.test.files) if tree.test else 0
    return _Source(tree.class_names, train=train, val=val, test=test, num_test=num_test, num_broken=num_broken)


def _read_torchvision(config: DataConfig, *, notice: Notice) -> _Source:
    """One of torchvision's data sets, downloaded to `config.root` if it is not there. Its import takes seconds."""
    from torchvision import datasets

    root = Path(config.root).expanduser().resolve()
    kind = getattr(datasets, TORCHVISION[config.name][0])
    notice(f"looking for {config.name} in {root}; if it is not there, it is downloaded")
    waiting = f"another process may be downloading {config.name}: waiting for it"
    with cache_lock(f"download-{config.name}", waiting=waiting, notice=notice):
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)  # torchvision sets none: a dead network would hang it
        try:
            if config.name == "svhn":
                train, test = (kind(root, split=split, download=True) for split in ("train", "test"))
            else:
                train, test = (kind(root, train=train, download=True) for train in (True, False))
        except Exception as error:  # whatever urllib, tarfile, gzip and torchvision's own readers let through
            reason = " ".join(str(error).split())
            raise DataError(
                f"data.name: {config.name} is not whole in {root} (data.root) and could not be downloaded: {reason}. "
                "If its files there are damaged, delete them. Without a network, `name: digits` (nothing to "
                "download) and `name: folder` (your own images) work."
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    names = tuple(getattr(train, "classes", map(str, range(10))))
    test_part = _torchvision_part(test)
    return _Source(names, _torchvision_part(train), val=None, test=test_part, num_test=len(test_part.rows_M))


def _torchvision_part(dataset: Any) -> _Part:
    images = np.asarray(dataset.data)
    if images.ndim == 3:  # the MNIST family: N, H, W
        images = images[..., None]
    elif images.shape[-1] != 3:  # SVHN: N, C, H, W
        images = images.transpose(0, 2, 3, 1)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return _whole(images, np.asarray(labels, dtype=np.int64))
