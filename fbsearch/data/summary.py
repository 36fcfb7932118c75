"""The summary of a data set in one line: what there is in it, and what its owner may not know. Loads no torch.

Shapes: N images, K classes.
"""

import hashlib

import numpy as np

from fbsearch.config.models import DataConfig
from fbsearch.data.image_cache import ProgressCallback
from fbsearch.data.sources import HostDataset, read_dataset, split_validation
from fbsearch.errors import DataError

NUM_NAMED = 5


def summarise(config: DataConfig, *, notice: ProgressCallback) -> str:
    """Read every image, the test split's too, and return a line of text. Torchvision's data sets are not read.

    Decoded images stay in the cache, where a search finds them. Raise DataError as `load_dataset`, but name several
    broken images, and those of the test split.
    """
    if config.name not in ("folder", "digits"):
        return f"{config.name} in {config.root}, not read: it is checked, and downloaded if it is not there, by `run`"
    lenient = config.model_copy(update={"skip_broken": True})
    source = split_validation(read_dataset(lenient, with_test=True, notice=notice), config)
    if source.broken and not config.skip_broken:
        number, named = len(source.broken), ", ".join(source.broken[:NUM_NAMED])
        named += f" and {number - NUM_NAMED:,} more" if number > NUM_NAMED else ""
        raise DataError(
            f"data.root: {number:,} broken image{'s' if number > 1 else ''}: {named}. Repair or remove "
            "them, or write `skip_broken: true` under `data:` to go on without such files."
        )
    return _describe(source, side=config.image_size)


def _describe(source: HostDataset, *, side: int | None) -> str:
    assert source.val is not None, "it was split"
    counts_K = np.bincount(source.train.labels_M)
    least = int(counts_K.argmin())
    side = side or source.train.images_NHWC.shape[1]
    colour = "colour" if source.train.images_NHWC.shape[-1] == 3 else "grey"
    return (
        f"{len(counts_K):,} classes, {len(source.train.rows_M):,} / {len(source.val.rows_M):,} / {source.num_test:,} "
        f"images to train / validate / test, {side} x {side} {colour}, smallest class {source.class_names[least]!r}: "
        f"{counts_K[least]:,} to train, {len(source.broken):,} broken, {_count_ambiguous(source):,} duplicates in two "
        "classes"
    )


def _count_ambiguous(source: HostDataset) -> int:
    """Return the number of different images, by their pixels as decoded, that are in more than one class."""
    label_of: dict[bytes, int] = {}
    ambiguous = set()
    for part in filter(None, (source.train, source.val, source.test)):
        for row, label in zip(part.rows_M, part.labels_M, strict=True):
            content = hashlib.blake2b(part.images_NHWC[row].tobytes(), digest_size=16).digest()
            if label_of.setdefault(content, int(label)) != label:
                ambiguous.add(content)
    return len(ambiguous)
