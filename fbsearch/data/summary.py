"""The inventory of a data set: what there is in it, and what its owner may not know. Loads no torch.

Shapes: N images, K classes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fbsearch.config.models import DataConfig
from fbsearch.data.decode import measure_side
from fbsearch.data.image_cache import ProgressCallback
from fbsearch.data.image_tree import scan_tree
from fbsearch.data.sources import HostDataset, read_dataset, split_validation
from fbsearch.errors import DataError

NUM_NAMED = 5
# Headers that are read to learn how large a folder's images are, spread over all of them.
NUM_MEASURED = 500


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a data set holds. `smallest` is the class with the fewest training images, `ambiguous` counts different
    images, by their pixels as decoded, that are in more than one class."""

    num_classes: int
    num_train: int
    num_val: int
    num_test: int
    side: int
    is_colour: bool
    smallest: str
    num_smallest: int
    broken: tuple[str, ...]
    num_ambiguous: int

    def __str__(self) -> str:
        return (
            f"{self.num_classes:,} classes, {self.num_train:,} / {self.num_val:,} / {self.num_test:,} "
            f"images to train / validate / test, {self.side} x {self.side} {'colour' if self.is_colour else 'grey'}, "
            f"smallest class {self.smallest!r}: {self.num_smallest:,} to train, {len(self.broken):,} broken, "
            f"{self.num_ambiguous:,} duplicates in two classes"
        )


def summarise(config: DataConfig, *, notice: ProgressCallback) -> str:
    """Read every image, the test split's too, and return a line of text. Torchvision's data sets are not read.

    Raise DataError as `load_dataset`, but name several broken images, and those of the test split.
    """
    if config.name not in ("folder", "digits", "arrays"):
        return f"{config.name} in {config.root}, not read: it is checked, and downloaded if it is not there, by `run`"
    found = take_inventory(config, notice=notice)
    if found.broken and not config.skip_broken:
        raise DataError(
            f"data.root: {name_broken(found.broken)}. Repair or remove "
            "them, or write `skip_broken: true` under `data:` to go on without such files."
        )
    return str(found)


def take_inventory(config: DataConfig, *, notice: ProgressCallback) -> Inventory:
    """Read every image of a folder or of the digits, the test split's too, and count; broken images are no error.

    Decoded images stay in the cache, where a search with the same settings finds them.
    """
    lenient = config.model_copy(update={"skip_broken": True})
    source = split_validation(read_dataset(lenient, with_test=True, notice=notice), config)
    assert source.val is not None, "it was split"
    counts_K = np.bincount(source.train.labels_M)
    least = int(counts_K.argmin())
    return Inventory(
        num_classes=len(counts_K),
        num_train=len(source.train.rows_M),
        num_val=len(source.val.rows_M),
        num_test=source.num_test,
        side=config.image_size or source.train.images_NHWC.shape[1],
        is_colour=source.train.images_NHWC.shape[-1] == 3,
        smallest=source.class_names[least],
        num_smallest=int(counts_K[least]),
        broken=tuple(source.broken),
        num_ambiguous=_count_ambiguous(source),
    )


def measure_folder(root: str) -> int:
    """Return the median of the shorter sides of a folder's training images, in pixels. DataError as `load_dataset`."""
    files = scan_tree(root).train
    step = -(-len(files.files) // NUM_MEASURED) or 1
    return measure_side(files.folder, [file.name for file in files.files[::step]])


def name_broken(broken: Sequence[str]) -> str:
    """Return the number of broken images and the first of their names."""
    number, named = len(broken), ", ".join(broken[:NUM_NAMED])
    named += f" and {number - NUM_NAMED:,} more" if number > NUM_NAMED else ""
    return f"{number:,} broken image{'s' if number > 1 else ''}: {named}"


def _count_ambiguous(source: HostDataset) -> int:
    """Return `Inventory.num_ambiguous`."""
    label_of: dict[bytes, int] = {}
    ambiguous = set()
    for part in filter(None, (source.train, source.val, source.test)):
        for row, label in zip(part.rows_M, part.labels_M, strict=True):
            content = hashlib.blake2b(part.images_NHWC[row].tobytes(), digest_size=16).digest()
            if label_of.setdefault(content, int(label)) != label:
                ambiguous.add(content)
    return len(ambiguous)
