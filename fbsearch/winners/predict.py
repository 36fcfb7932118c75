"""Predictions of a trained network: the scores of a split, of each column, and the classes of image files.

Shapes: N images, B images of a batch, C channels, H height, W width, K classes.
"""

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
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from torch import Tensor, nn

from fbsearch.data.dataset import Dataset, Split
from fbsearch.data.decode import Bytes, decode_image
from fbsearch.data.image_tree import FORMATS, Ints, walk_images
from fbsearch.errors import DataError
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_dtype
from fbsearch.winners.checkpoint import ModelCard, TrainedModel
from fbsearch.winners.records import ColumnScore

SCORE_BATCH = 256
PREDICT_BATCH = 64
LATENCY_REPEATS = 30
LATENCY_WARMUP = 5


@torch.inference_mode()
def compute_logits(
    net: nn.Module, images_NCHW: Tensor, *, normalise: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Tensor:
    """Return the logits of uint8 images [N, C, H, W] in eval mode, float32 [N, K], on the network's device.

    Matrix products and convolutions are computed in `dtype`.
    """
    net.eval()
    device = next(net.parameters()).device
    logits = []
    for images_BCHW in torch.split(images_NCHW, SCORE_BATCH):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits.append(net(normalise(images_BCHW.to(device))).float())
    return torch.cat(logits)


# ------------------------------------------------------------------------------------------------------ whole splits


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a network on a split, and what it said of each image.

    `loss` is the mean cross-entropy in nats, without label smoothing. `said_N` are the likeliest classes, `shares_NK`
    the probabilities of all.
    """

    loss: float
    labels_N: Ints
    said_N: Ints
    shares_NK: NDArray[np.float32]

    @property
    def num_images(self) -> int:
        """Return the number of images of the split."""
        return len(self.labels_N)

    @property
    def accuracy(self) -> float:
        """Return the share of the images that are predicted right."""
        return int((self.said_N == self.labels_N).sum()) / self.num_images


def score(net: nn.Module, data: Dataset, split: Split, *, dtype: torch.dtype) -> Scores:
    """Score a network on a split and leave it in eval mode."""
    logits_NK = compute_logits(net, split.images_NCHW, normalise=data.normalise, dtype=dtype)
    loss = F.cross_entropy(logits_NK, split.labels_N).item()
    arrays = (split.labels_N, logits_NK.argmax(dim=1), logits_NK.softmax(dim=1))
    return Scores(loss, *(array.cpu().numpy() for array in arrays))


def score_columns(net: FractalBrainNet, data: Dataset, split: Split, *, dtype: torch.dtype) -> list[ColumnScore]:
    """Score every column and then the whole network (the anytime property of global drop-path)."""
    depths = range(1, 1 + max(net.config.fractal_levels))
    found = []
    for depth, part in [*((depth, net.column(depth)) for depth in depths), (0, net)]:
        accuracy = score(part, data, split, dtype=dtype).accuracy
        latency_ms = _latency_ms(part, data.normalise(split.images_NCHW[:1].to(data.device)), dtype=dtype)
        num_parameters = sum(p.numel() for p in part.parameters())
        found.append(ColumnScore(depth=depth, accuracy=accuracy, latency_ms=latency_ms, num_parameters=num_parameters))
    return found


@torch.inference_mode()
def _latency_ms(net: nn.Module, x_1CHW: Tensor, *, dtype: torch.dtype) -> float:
    """Return the median time of one image's forward pass, in milliseconds."""
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
    """The prediction for one file: classes with their probabilities, the likeliest first, or an error."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        if self.error is not None:
            return {"image": str(self.path), "error": self.error}
        classes = [{"class": name, "probability": share} for name, share in self.classes]
        return {"image": str(self.path), "classes": classes}


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the files among `paths` and the images below the folders among them, sorted within each folder.

    In folders, hidden files and files without an image's extension are left out. A path that does not exist is kept, so
    that opening it names it. Raises DataError for a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = sorted(Path(entry.path) for entry in walk_images(path))
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from None
        if not inside:
            raise DataError(f"{path}: there is no image ({', '.join(FORMATS)}) in this folder")
        found += inside
    return found


def predict(model: TrainedModel, paths: Sequence[Path], *, top: int) -> Iterator[Answer]:
    """Yield the `top` likeliest classes of each file, in order; files that cannot be read get an `error`.

    Images are prepared as in training: turned upright, cropped to the largest centred square, resized to the network's
    size where they have another, converted to grey or colour.
    """
    device = next(model.net.parameters()).device
    dtype = choose_dtype(model.card.train.precision, device)
    for start in range(0, len(paths), PREDICT_BATCH):
        chunk = paths[start : start + PREDICT_BATCH]
        images = [read_image(path, model.card) for path in chunk]
        readable = [torch.from_numpy(image_HWC) for image_HWC in images if not isinstance(image_HWC, str)]
        shares: Iterator[Tensor] = iter(())
        if readable:
            images_BCHW = torch.stack(readable).permute(0, 3, 1, 2).to(device)
            logits_BK = compute_logits(model.net, images_BCHW, normalise=model.normalise, dtype=dtype)
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


def read_image(path: Path, card: ModelCard) -> Bytes | str:
    """Return the pixels, uint8 [H, W, C] of the network's size, or a text that says why there are none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what cannot be decoded raises
            # torch warns of pixels that may not be written to, as Pillow's are: copy them.
            image_HWC = decode_image(
                content, side=card.image_size, channels=card.in_channels, max_pixels=card.data.max_pixels
            )
            return image_HWC.copy()
    except UnidentifiedImageError:
        return f"cannot be read: in no format of {', '.join(FORMATS)}"  # Pillow's own text has the address of a buffer
    except Exception as error:  # a damaged file may raise anything in Pillow's readers
        return f"cannot be read: {error}"
