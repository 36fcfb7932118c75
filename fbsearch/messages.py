"""Messages from workers to the coordinator: plain data, which can be read without torch.

A worker sends Ready or CannotStart, then for each trial Started, Epoch (once an epoch, in order) and exactly one of
Finished, Stopped and Failed. If a worker dies, its executor sends WorkerDied in its place and starts another one, which
begins with Ready; if none becomes ready, the executor sends WorkerLost. Times are seconds on the worker's clock, memory
is MiB.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal


class FailureKind(StrEnum):
    """Why a trial ended without a result. The values are stored with trials."""

    WORKER_DIED = "worker_died"
    HUNG = "hung"
    ERROR = "error"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_LOSS = "non_finite_loss"
    INVALID_CONFIGURATION = "invalid_configuration"
    NODE_LOST = "node_lost"
    OVER_LIMITS = "over_limits"  # a property of the configuration: it costs more than the study's limits
    INTERRUPTED = "interrupted"  # the search was stopped: no failure of the trial


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageShape:
    """The shape of images, in_channels x image_size x image_size pixels, and their number of classes."""

    num_classes: int
    in_channels: int
    image_size: int

    def __str__(self) -> str:
        return f"{self.in_channels} x {self.image_size} x {self.image_size}"


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """The facts about a loaded data set that networks and reports need.

    `fingerprint` tells other training and validation images or labels from the same ones: a hash of pixels as decoded,
    so that it does not depend on the files' times and places.
    """

    num_classes: int
    in_channels: int
    image_size: int
    num_train: int
    num_val: int
    num_test: int
    class_names: tuple[str, ...]
    num_broken: int = 0
    fingerprint: str = ""

    @property
    def shape(self) -> ImageShape:
        return ImageShape(num_classes=self.num_classes, in_channels=self.in_channels, image_size=self.image_size)


@dataclass(frozen=True, slots=True)
class EpochStats:
    """The figures of an epoch. `epoch` counts from 1; losses are mean cross-entropy in nats, accuracies in [0, 1]."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    step_seconds: float
    val_seconds: float
    images_per_second: float
    memory_mib: float
    macro_f1: float | None = None  # these two where a goal of the search needs them, in [0, 1]
    balanced_accuracy: float | None = None

    @property
    def num_images(self) -> int:
        """Return how many images were trained on, each as often as it was drawn."""
        return round(self.images_per_second * self.step_seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures that were measured, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def kept_epoch(history: Sequence[EpochStats], *, keep_best: bool) -> EpochStats:
    """Return the epoch whose weights a run with these epochs has kept: the last, or that of the best accuracy."""
    return max(history, key=lambda stats: stats.val_accuracy) if keep_best else history[-1]


@dataclass(frozen=True, slots=True)
class Pixels:
    """An array of uint8 as text, base64 of its bytes in C order, which pipes and databases can hold."""

    shape: tuple[int, ...]
    base64: str


@dataclass(frozen=True, slots=True)
class ClassSample:
    """A class's number of training images, and some of them side by side: a PNG or JPEG file in base64."""

    label: int
    count: int
    picture: str


@dataclass(frozen=True, slots=True)
class Samples:
    """A few training images for people. `smallest` is the label of the class with the fewest."""

    smallest: int
    num_smallest: int
    classes: tuple[ClassSample, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention maps of a trained network on a few validation images, the same in every trial of a study.

    `images` is [N, H, W, C]; `stages` has an array [N, h, w] for each stage, the mean over its channels, each map
    scaled to its own range. Sides are at most `attention.MAX_SIDE`. `labels` are the true classes, `said` the predicted
    ones, `shares` the probabilities of the predictions, in [0, 1].
    """

    images: Pixels
    stages: tuple[Pixels, ...]
    labels: tuple[int, ...]
    said: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Execution:
    """The execution of steps on a GPU: as one captured CUDA graph, or kernel by kernel with the reason for it."""

    mode: Literal["graph", "eager"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all messages, with the number of the worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """The worker has loaded the data and waits for trials. `versions` are those of the packages that train.

    `samples` is None where no images are loaded: in simulations and replays.
    """

    device: str
    dataset: DatasetInfo
    versions: dict[str, str]
    seconds: float
    samples: Samples | None = None


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """A line for the user who waits, such as the number of images decoded so far."""

    text: str


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The trial's cost is known, its network not yet built; Failed (OVER_LIMITS) follows where it is too much.

    `flops` are of one image's forward pass, two for each multiply-add; memory is estimated only where it has a limit,
    or is a goal.
    """

    trial: int
    num_parameters: int
    flops: int
    memory_mib: float | None = None

    @property
    def costs(self) -> dict[str, float | None]:
        """The costs under the names of LimitsConfig."""
        return {"parameters": self.num_parameters, "flops": self.flops, "memory_mib": self.memory_mib}


@dataclass(frozen=True, slots=True)
class Epoch(Event):
    """The trial has finished one more epoch. The first one on a GPU has `execution`."""

    trial: int
    stats: EpochStats
    execution: Execution | None = None


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The trial ran to its end; `value` is that of its first goal, with the weights that were kept."""

    trial: int
    value: float
    attention: Attention | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The trial was stopped before its end on request."""

    trial: int


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The trial cannot go on. `kind` is a short word, `details` a traceback where there is one."""

    trial: int
    kind: FailureKind
    message: str
    details: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class CannotStart(Event):
    """The worker cannot set up its device or load the data."""

    message: str


@dataclass(frozen=True, slots=True)
class Ending(Event):
    """The worker ends, since it can no longer use its device; its executor sends WorkerDied with this message."""

    message: str


@dataclass(frozen=True, slots=True)
class WorkerDied(Event):
    """The worker is gone (crash, SIGKILL, out of memory). A new one is started.

    `kind` is `worker_died`, or `node_lost` if its whole machine is gone, which is no trial's fault. The worker pool
    adds `trial`, which the worker was running, and changes the kind of a worker that it killed to `hung`.
    """

    message: str
    kind: FailureKind = FailureKind.WORKER_DIED
    trial: int | None = None


@dataclass(frozen=True, slots=True)
class WorkerLost(Event):
    """The worker is gone and not replaced: none of several replacements became ready."""

    message: str
