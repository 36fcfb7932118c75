"""A few training images of each class as small pictures, and the number of images of the smallest class, for people.

Shapes: N images, C channels, H height, W width, K classes.
"""

import base64
import io

import numpy as np
import torch
from PIL import Image

from fbsearch.data.dataset import Dataset, evenly_spaced_rows
from fbsearch.messages import ClassSample, Samples

MAX_CLASSES = 12
IMAGES_OF_A_CLASS = 3
MAX_SIDE = 32
# Pictures of larger images are JPEG, a fifth of a PNG's size. In smaller ones a reader would see its blocks.
MAX_PNG_SIDE = 16


def take_samples(data: Dataset) -> Samples:
    """Return pictures of IMAGES_OF_A_CLASS training images of at most MAX_CLASSES classes: about 30 KB."""
    labels_N = data.train.labels_N.cpu()
    counts_K = torch.bincount(labels_N, minlength=data.info.num_classes)
    smallest = int(counts_K.argmin())
    classes = []
    for label in evenly_spaced_rows(data.info.num_classes, MAX_CLASSES).tolist():
        rows_M = (labels_N == label).nonzero().flatten()
        rows_M = rows_M[evenly_spaced_rows(len(rows_M), IMAGES_OF_A_CLASS)] if len(rows_M) else rows_M
        images_MCHW = data.train.images_NCHW[rows_M.to(data.train.images_NCHW.device)].cpu()
        picture = _encode(images_MCHW.permute(0, 2, 3, 1).numpy()) if len(rows_M) else ""
        classes.append(ClassSample(label, int(counts_K[label]), picture))
    return Samples(smallest=smallest, num_smallest=int(counts_K[smallest]), classes=tuple(classes))


def _encode(images_NHWC: np.ndarray) -> str:
    """Return images side by side, reduced to MAX_SIDE, as a PNG or JPEG file in base64."""
    side = min(images_NHWC.shape[1], MAX_SIDE)
    mode = "RGB" if images_NHWC.shape[-1] == 3 else "L"
    strip = Image.new(mode, (side * len(images_NHWC), side))
    for place, image_HWC in enumerate(images_NHWC):
        image = Image.fromarray(image_HWC if mode == "RGB" else image_HWC[..., 0])
        strip.paste(image.resize((side, side), Image.Resampling.BOX), (place * side, 0))
    file = io.BytesIO()
    if side <= MAX_PNG_SIDE:
        strip.save(file, format="PNG")
    else:
        strip.save(file, format="JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()
