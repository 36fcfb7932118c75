"""Predictions as `fbsearch train` stores them, drawn at random, of networks that are right as often as they say."""

import numpy as np

from fbsearch.winners.predictions import Predictions, most_confident_mistakes


def make_predictions(
    num_images: int, *, class_names: tuple[str, ...] = ("cat", "dog", "fox"), seed: int = 0, channels: int = 3,
    sureness: float = 2.0,
) -> Predictions:  # fmt: skip
    """The labels are the same for every seed; the larger `sureness`, the more is right."""
    num_classes = len(class_names)
    labels_N = np.random.default_rng(99).integers(0, num_classes, num_images).astype(np.int32)
    rng = np.random.default_rng(seed)
    # Probabilities by Bayes' rule from a noisy sign of the label: calibrated by their making.
    signs_NK = sureness * np.eye(num_classes)[labels_N] + rng.normal(0, 1, (num_images, num_classes))
    powers_NK = np.exp(sureness * signs_NK)
    shares_NK = (powers_NK / powers_NK.sum(axis=1, keepdims=True)).astype(np.float32)
    said_N, confidence_N = shares_NK.argmax(axis=1).astype(np.int32), shares_NK.max(axis=1)
    rows_M = most_confident_mistakes(labels_N, said_N, confidence_N)
    pictures_NHWC = np.random.default_rng(98).integers(0, 256, (num_images, 8, 8, channels), dtype=np.uint8)
    return Predictions(
        class_names=class_names, scored_on="test", labels_N=labels_N, said_N=said_N, confidence_N=confidence_N,
        shares_NK=shares_NK.astype(np.float16), rows_M=rows_M, pictures_MHWC=pictures_NHWC[rows_M],
    )  # fmt: skip
