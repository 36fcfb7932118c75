"""Loading of data sets to uint8 tensors, split once, and drawing batches from them.

The validation split decides between trials; the test split is used once, at the end.

Shapes: N images of a split, B images of a batch, M selected rows, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fbsearch.config.models import DataConfig
from fbsearch.data.image_cache import ProgressCallback
from fbsearch.data.placement import choose_place
from fbsearch.data.sources import HostDataset, HostSplit, read_dataset, split_validation
from fbsearch.messages import DatasetInfo

# Images of a validation step: without gradients, more fit than in training.
VALIDATION_BATCH = 256
# Size of the pieces in which images are copied to the device.
COPY_BYTES = 2**26
# Size of the pieces for statistics: 2 MiB of float64 fit into the CPU's cache. CIFAR-10 takes 0.1 s, with 60 MiB 0.6 s.
STATISTICS_VALUES = 2**18


@dataclass(frozen=True, eq=False)
class Split:
    """Images as stored, uint8 in channels_last memory, and their labels, int64.

    Labels lie on the data set's device, and so do images unless they do not fit there: then on the CPU.
    """

    images_NCHW: Tensor
    labels_N: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set for training on a device.

    `mean_C` and `std_C` (float32, of values in [0, 1]) are those of the training split; they lie on the device.
    """

    info: DatasetInfo
    train: Split
    val: Split
    test: Split | None
    mean_C: Tensor
    std_C: Tensor

    @property
    def device(self) -> torch.device:
        """The device that batches are trained on; whole splits of images may lie on the CPU."""
        return self.mean_C.device

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Return images normalised by the training split; a channel that is constant there is only centred."""
        return normalise(images_BCHW, mean_C=self.mean_C, std_C=self.std_C)


def normalise(images_BCHW: Tensor, *, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Return uint8 images [B, C, H, W] as float32, channels_last, with mean 0 and standard deviation 1.

    `mean_C` and `std_C` are float32, of values in [0, 1], on the images' device.
    """
    x_BCHW = images_BCHW.to(torch.float32, memory_format=torch.channels_last)
    return x_BCHW.sub_(mean_C.mul(255).view(-1, 1, 1)).div_(std_C.mul(255).view(-1, 1, 1))


def load_dataset(
    config: DataConfig,
    *,
    device: torch.device | str = "cpu",
    with_test: bool = True,
    on_progress: ProgressCallback | None = None,
) -> Dataset:
    """Read a data set, split it and move it to `device`; images that do not fit there stay in the machine's memory.

    `limit` picks from the training images, then the validation split is taken from the rest; both are stratified, drawn
    from `config.seed` and the same on every machine. `digits` has no official test split: 360 fixed images serve as
    one. The val/ of a folder replaces the split, its test/ is the test split.

    Args:
        with_test: False leaves `test` None and, for a folder, undecoded; `info.num_test` counts it all the same.
        on_progress: Called with one-line texts while images are decoded or downloaded, and where they do not fit on
            the device.

    `digits` and `folder` need no network and no torchvision. torchvision's data sets are downloaded to `config.root`
    if absent (with its progress bar, on stderr) and checked against its MD5 sums; CIFAR's files are pickles, which
    torchvision reads after that check. Images of all sources are resized to `image_size` if that differs.

    Raise DataError, with path, key and way out, for data that are absent, broken, too few, or too large for the
    machine's memory. Write to the cache (`folder`) and to `root` (torchvision's).
    """
    say = on_progress or (lambda _text: None)
    source = read_dataset(config, with_test=with_test, notice=say)
    source = replace(split_validation(source, config), test=source.test if with_test else None)
    return _move(source, image_size=config.image_size, device=torch.device(device), say=say)


def count_batches(num_images: int, *, batch_size: int) -> int:
    """Return the number of batches: whole ones, a last one of more than half the size, but at least one."""
    return max(1, (num_images + (batch_size - 1) // 2) // batch_size)


def batches(split: Split, *, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in random order: uint8 [B, C, H, W] in channels_last and int64 [B], `count_batches` times.

    A last batch of at most half the size is left out: its BatchNorm statistics would be poor, and each of its images
    would weigh at least twice as much as the others. The next epoch leaves out other images. The order depends on the
    generator's device and not on the split's. Images that lie on the CPU beside a GPU are yielded in pinned memory,
    from which a copy to the GPU need not be waited for.
    """
    num_images = len(split.labels_N)
    order_N = torch.randperm(num_images, generator=generator, device=generator.device)
    rows_N, label_rows_N = order_N.to(split.images_NCHW.device), order_N.to(split.labels_N.device)
    is_pinned = split.labels_N.is_cuda and not split.images_NCHW.is_cuda
    images_NHWC = split.images_NCHW.permute(0, 2, 3, 1)  # contiguous: rows are copied whole, ten times as fast
    for start in range(0, count_batches(num_images, batch_size=batch_size) * batch_size, batch_size):
        rows_B = rows_N[start : start + batch_size]
        size = (len(rows_B), *images_NHWC.shape[1:])
        images_BHWC = torch.empty(size, dtype=torch.uint8, device=rows_N.device, pin_memory=is_pinned)
        torch.index_select(images_NHWC, 0, rows_B, out=images_BHWC)
        labels_B = split.labels_N.index_select(0, label_rows_N[start : start + batch_size])
        yield images_BHWC.permute(0, 3, 1, 2), labels_B


def _move(source: HostDataset, *, image_size: int | None, device: torch.device, say: Callable[[str], None]) -> Dataset:
    """Copy the splits to the place of the images, resized if `image_size` differs, and compute the statistics."""
    assert source.val is not None, "it was split"
    shape = source.train.images_NHWC.shape[1:]
    side = image_size or shape[0]
    parts = [part for part in (source.train, source.val, source.test) if part is not None]
    num_bytes = sum(len(part.rows_M) for part in parts) * side * side * shape[2]
    place = choose_place(num_bytes, device, say=say)
    train, val, *rest = [_copy(part, side, images_on=place, labels_on=device) for part in parts]
    mean_C, std_C = (values_C.to(device) for values_C in _statistics(train.images_NCHW))
    info = DatasetInfo(
        num_classes=len(source.class_names),
        in_channels=shape[2],
        image_size=side,
        num_train=len(train.labels_N),
        num_val=len(source.val.rows_M),
        num_test=source.num_test,
        class_names=source.class_names,
        num_broken=len(source.broken),
        fingerprint=source.fingerprint,
    )
    return Dataset(info, train, val, rest[0] if rest else None, mean_C, std_C)


def _copy(part: HostSplit, side: int, *, images_on: torch.device, labels_on: torch.device) -> Split:
    """Copy the selected rows in pieces, so that the host never holds a second copy of all."""
    _, height, width, channels = part.images_NHWC.shape
    num_images = len(part.rows_M)
    images_NHWC = torch.empty((num_images, side, side, channels), dtype=torch.uint8, device=images_on)
    step = max(1, COPY_BYTES // (height * width * channels))
    for start in range(0, num_images, step):
        piece_NHWC = torch.from_numpy(np.asarray(part.images_NHWC[part.rows_M[start : start + step]]))
        if (height, width) != (side, side):
            piece_NHWC = resize(piece_NHWC, side)
        images_NHWC[start : start + step] = piece_NHWC
    return Split(images_NHWC.permute(0, 3, 1, 2), torch.from_numpy(part.labels_M).to(labels_on))


def resize(images_NHWC: Tensor, side: int) -> Tensor:
    """Resize uint8 images on the host, bicubic and antialiased as Pillow does it for `folder`."""
    x_NCHW = images_NHWC.permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(x_NCHW, size=(side, side), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)


def _statistics(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, float32, of values in [0, 1]; 1 for a deviation of 0.

    Sums of integers are exact in float64 (below 2**53), so the result is the same on every device.
    """
    images_NHWC = images_NCHW.permute(0, 2, 3, 1)
    num_images, height, width, channels = images_NHWC.shape
    sum_C = torch.zeros(channels, dtype=torch.float64, device=images_NCHW.device)
    squares_C = torch.zeros_like(sum_C)
    step = max(1, STATISTICS_VALUES // (height * width * channels))
    for start in range(0, num_images, step):
        values_NHWC = images_NHWC[start : start + step].to(torch.float64)
        sum_C += values_NHWC.sum((0, 1, 2))
        squares_C += values_NHWC.square_().sum((0, 1, 2))
    count = num_images * height * width
    mean_C = sum_C / count
    std_C = (squares_C / count - mean_C.square()).clamp_min(0).sqrt()
    std_C = torch.where(std_C > 0, std_C / 255, 1.0)
    return (mean_C / 255).to(torch.float32), std_C.to(torch.float32)


def evenly_spaced_rows(num_images: int, count: int) -> Tensor:
    """Return the int64 rows of `count` images spaced evenly over a split, or of all if there are fewer."""
    return torch.linspace(0, num_images - 1, min(count, num_images)).round().long()
