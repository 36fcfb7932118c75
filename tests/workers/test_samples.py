"""The pictures of a few training images, which a worker sends with the data set."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fbsearch.config.models import DataConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.messages import ClassSample
from fbsearch.workers.samples import take_samples


def pixels_of(one: ClassSample) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(one.picture))) as picture:
        return np.asarray(picture)


def test_samples_of_digits_are_training_images_of_each_class() -> None:
    data = load_dataset(DataConfig())
    images_NHW, labels_N = data.train.images_NCHW[:, 0].numpy(), data.train.labels_N.numpy()
    found = take_samples(data)
    assert [one.label for one in found.classes] == list(range(10))
    for one in found.classes:
        of_class = {image_HW.tobytes() for image_HW in images_NHW[labels_N == one.label]}
        parts = np.split(pixels_of(one), 3, axis=1)
        assert one.count == (labels_N == one.label).sum() and {part.tobytes() for part in parts} <= of_class
    assert found.num_smallest == min(one.count for one in found.classes)
    assert found.classes[found.smallest].count == found.num_smallest


def test_samples_of_many_classes_of_photos_stay_small(make_tree: Callable[..., Path]) -> None:
    tree = make_tree(train={f"{i:02}": 2 + (i != 6) for i in range(40)}, size=(80, 80))
    found = take_samples(load_dataset(DataConfig(name="folder", root=str(tree), image_size=64)))
    assert (len(found.classes), found.smallest, found.num_smallest) == (12, 6, 1)
    assert {(one.count, pixels_of(one).shape) for one in found.classes} == {(2, (32, 64, 3))}
    assert sum(len(one.picture) for one in found.classes) < 80_000
