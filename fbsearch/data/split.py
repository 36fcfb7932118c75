"""Stratified selection of images by their labels, from the study file's seed, the same on every machine.

Shapes: N images, K classes.
"""

import numpy as np

from fbsearch.config.models import DataConfig
from fbsearch.data.image_tree import Ints
from fbsearch.errors import DataError

LIMIT_STREAM, VALIDATION_STREAM = 0, 1  # random streams of the split's seed


def choose_training(labels_N: Ints, config: DataConfig, *, names: tuple[str, ...], least: int) -> Ints:
    """Return the places of the training images that `config.limit` selects, at least `least` of each class."""
    counts_K = np.bincount(labels_N, minlength=len(names))
    if counts_K.min() < least:
        few = int(counts_K.argmin())
        raise DataError(
            f"data.root: class {names[few]!r} has {counts_K[few]} training image(s) that can be read; at least "
            f"{least} are needed. Add some, or remove the class{'' if least == 1 else ', or provide a val/ folder'}."
        )
    if config.limit is None or config.limit >= len(labels_N):
        return np.arange(len(labels_N))
    if config.limit < least * len(names):
        raise DataError(
            f"data.limit: {config.limit} is too few for {len(names)} classes: write at least {least * len(names)}, "
            "or null for all images."
        )
    rng = np.random.default_rng([config.seed, LIMIT_STREAM])
    return draw_stratified(labels_N, config.limit, low=least, spare=0, rng=rng)


def choose_validation(labels_N: Ints, config: DataConfig) -> Ints:
    """Return the places of the validation images; each class keeps at least one image in both splits."""
    num_classes, num_images = len(np.unique(labels_N)), len(labels_N)
    total = min(max(round(num_images * config.validation_share), num_classes), num_images - num_classes)
    rng = np.random.default_rng([config.seed, VALIDATION_STREAM])
    return draw_stratified(labels_N, total, low=1, spare=1, rng=rng)


def draw_stratified(labels_N: Ints, total: int, *, low: int, spare: int, rng: np.random.Generator) -> Ints:
    """Return the places of `total` stratified random images, ascending.

    Select at least `low` of each class and leave at least `spare`. scikit-learn's train_test_split has no such bounds
    (it fails on a class of one) and takes 2 s to import.
    """
    counts_K = np.bincount(labels_N)
    quotas_K = _quotas(counts_K, total, low=low, spare=spare)
    picks = [rng.permutation(np.flatnonzero(labels_N == k))[:quota] for k, quota in enumerate(quotas_K)]
    picked: Ints = np.sort(np.concatenate(picks))
    return picked


def _quotas(counts_K: Ints, total: int, *, low: int, spare: int) -> Ints:
    """Divide `total` in proportion to the counts by largest remainders, each from `low` to its count - `spare`."""
    high_K = counts_K - spare
    assert low * len(counts_K) <= total <= high_K.sum() and (high_K >= low).all(), "checked by the callers"
    share_K = counts_K * (total / counts_K.sum())
    quotas_K: Ints = np.clip(np.floor(share_K).astype(np.int64), low, high_K)
    while missing := total - quotas_K.sum():
        step = 1 if missing > 0 else -1
        can_K = quotas_K < high_K if missing > 0 else quotas_K > low
        quotas_K[np.argmax(np.where(can_K, step * (share_K - quotas_K), -np.inf))] += step
    return quotas_K
