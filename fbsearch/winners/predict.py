"""What a trained network says: of a whole split, with how right it is there, column by column; and of image files.

Must not know how it was trained, nor where results are written.

Shapes: N images, B images of a batch, C channels, H height, W width, K classes.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from fbsearch.data.dataset import Dataset, Split
from fbsearch.data.decode import Bytes, decode_image
from fbsearch.data.image_tree import Ints
from fbsearch.errors import DataError
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_dtype
from fbsearch.winners.checkpoint import TrainedModel
from fbsearch.winners.records import ColumnScore

SCORE_BATCH = 256
PREDICT_BATCH = 64
LATENCY_REPEATS = 30
LATENCY_WARMUP = 5


@torch.inference_mode()
def answer(net: nn.Module, images_NCHW: Tensor, *, normalise: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """The logits of uint8 images, float32 [N, K], in eval mode; matrix products and convolutions in `dtype`."""
    net.eval()
    device = images_NCHW.device
    logits = []
    for images_BCHW in torch.split(images_NCHW, SCORE_BATCH):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits.append(net(normalise(images_BCHW)).float())
    return torch.cat(logits)


# ------------------------------------------------------------------------------------------------------ whole splits


@dataclass(frozen=True)
class ClassScore:
    """How right the network is about one class, each in [0, 1]; 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Scores:
    """What a network says of a split. `confusion_KK` counts images: a row for each class, a column for what was said.

    `loss` is the mean cross-entropy in nats, without label smoothing.
    """

    loss: float
    confusion_KK: Ints

    @property
    def num_images(self) -> int:
        """Images of the split."""
        return int(self.confusion_KK.sum())

    @property
    def accuracy(self) -> float:
        """Share of the images whose class is said."""
        return int(np.trace(self.confusion_KK)) / self.num_images

    def classes(self) -> list[ClassScore]:
        """The scores of each class, in the order of its label."""
        scores = []
        for label, row_K in enumerate(self.confusion_KK):
            right, support, said = int(row_K[label]), int(row_K.sum()), int(self.confusion_KK[:, label].sum())
            f1 = 2 * right / (support + said) if support + said else 0.0
            scores.append(ClassScore(right / said if said else 0.0, right / support if support else 0.0, f1, support))
        return scores


def score(net: nn.Module, data: Dataset, split: Split, *, dtype: torch.dtype) -> Scores:
    """Score a network on a split; it is left in eval mode."""
    logits_NK = answer(net, split.images_NCHW, normalise=data.normalise, dtype=dtype)
    num_classes = data.info.num_classes
    pairs_N = split.labels_N * num_classes + logits_NK.argmax(dim=1)
    counts = torch.bincount(pairs_N, minlength=num_classes**2).view(num_classes, num_classes)
    return Scores(F.cross_entropy(logits_NK, split.labels_N).item(), counts.cpu().numpy())


def score_columns(net: FractalBrainNet, data: Dataset, split: Split, *, dtype: torch.dtype) -> list[ColumnScore]:
    """Score every column and then the whole net: the anytime property of nets trained with global drop-path."""
    depths = range(1, 1 + max(net.config.fractal_levels))
    found = []
    for depth, part in [*((depth, net.column(depth)) for depth in depths), (0, net)]:
        accuracy = score(part, data, split, dtype=dtype).accuracy
        latency_ms = _latency_ms(part, data.normalise(split.images_NCHW[:1]), dtype=dtype)
        num_parameters = sum(p.numel() for p in part.parameters())
        found.append(ColumnScore(depth=depth, accuracy=accuracy, latency_ms=latency_ms, num_parameters=num_parameters))
    return found


@torch.inference_mode()
def _latency_ms(net: nn.Module, x_1CHW: Tensor, *, dtype: torch.dtype) -> float:
    """Median time of one image's forward, in milliseconds."""
    device = x_1CHW.device
    times = []
    for _ in range(LATENCY_WARMUP + LATENCY_REPEATS):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            net(x_1CHW)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[LATENCY_WARMUP:])


# ------------------------------------------------------------------------------------------------------- image files


@dataclass(frozen=True)
class Answer:
    """What the network says of one file: classes with their probabilities, likeliest first; or why it cannot."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        if self.error is not None:
            return {"image": str(self.path), "error": self.error}
        classes = [{"class": name, "probability": share} for name, share in self.classes]
        return {"image": str(self.path), "classes": classes}


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the images under the folders among them, sorted within each.

    In folders, hidden files and those without an extension that Pillow reads are passed over; a path that is not there
    stays, to be named when it is opened. Raises DataError for a folder without images.
    """
    Image.init()
    extensions = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside: list[Path] = []
        for folder, names, files in os.walk(path):
            names[:] = [name for name in names if not name.startswith(".")]
            inside += [Path(folder, name) for name in files if not name.startswith(".")]
        inside = sorted(file for file in inside if file.suffix.lower() in extensions)
        if not inside:
            raise DataError(f"{path}: there is no image that Pillow reads in this folder")
        found += inside
    return found


def predict(model: TrainedModel, paths: Sequence[Path], *, top: int) -> Iterator[Answer]:
    """The `top` likeliest classes of each file, in order; files that cannot be read get an `error`.

    An image is prepared as those of training were: upright, the largest centred square, resized to the network's size
    (one that has this size is left as it is), grey or colour as the network was trained.
    """
    device = next(model.net.parameters()).device
    dtype = choose_dtype(model.card.train.precision, device)
    for start in range(0, len(paths), PREDICT_BATCH):
        chunk = paths[start : start + PREDICT_BATCH]
        images = [_read_image(path, model) for path in chunk]
        readable = [torch.from_numpy(image_HWC) for image_HWC in images if not isinstance(image_HWC, str)]
        shares: Iterator[Tensor] = iter(())
        if readable:
            images_BCHW = torch.stack(readable).permute(0, 3, 1, 2).to(device)
            logits_BK = answer(model.net, images_BCHW, normalise=model.normalise, dtype=dtype)
            shares = iter(logits_BK.softmax(dim=1).cpu())
        for path, image_HWC in zip(chunk, images, strict=True):
            if isinstance(image_HWC, str):
                yield Answer(path, error=image_HWC)
            else:
                yield Answer(path, classes=_likeliest(next(shares), model, top=top))


def _likeliest(shares_K: Tensor, model: TrainedModel, *, top: int) -> tuple[tuple[str, float], ...]:
    best = shares_K.topk(min(top, len(shares_K)))
    names = [model.card.class_names[label] for label in best.indices.tolist()]
    return tuple(zip(names, best.values.tolist(), strict=True))


def _read_image(path: Path, model: TrainedModel) -> Bytes | str:
    """The pixels, uint8 [H, W, C] of the network's size; a text that says why not."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata: what cannot be decoded raises
            # A copy: pixels that Pillow has given out may not be written to, which torch warns of.
            return decode_image(content, side=model.card.image_size, channels=model.card.in_channels).copy()
    except UnidentifiedImageError:
        return "cannot be read: in no format that Pillow reads"  # its own text names a buffer's address
    except Exception as error:  # Pillow's readers let through whatever a damaged file leads them to
        return f"cannot be read: {error}"
