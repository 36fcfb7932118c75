"""What workers tell the coordinator: plain data, so that it can be read where torch is not loaded.

The order for one worker is: Ready or CannotStart, then for each trial Started, Epoch (once an epoch, in order) and
exactly one of Finished, Stopped and Failed. A worker that dies sends nothing more; its executor says WorkerDied in
its place, starts another one, and that begins with Ready again.
Times are seconds on the worker's clock, memory is MiB.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What a network and a reader need to know of a data set once it is loaded."""

    num_classes: int
    in_channels: int
    image_size: int
    num_train: int
    num_val: int
    num_test: int
    class_names: tuple[str, ...]
    num_broken: int = 0


@dataclass(frozen=True, slots=True)
class EpochStats:
    """One finished epoch. `epoch` counts from 1; losses are mean cross-entropy in nats, accuracies in [0, 1]."""

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


@dataclass(frozen=True, slots=True)
class Event:
    """Base: which worker speaks."""

    worker: int


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """The worker has loaded the data and waits for trials. `versions` are of the packages that train."""

    device: str
    dataset: DatasetInfo
    versions: dict[str, str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something a person may want to read while waiting, such as how many images are decoded."""

    text: str


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The trial's network is built. `flops` are of one image's forward pass, two for each multiply-add."""

    trial: int
    num_parameters: int
    flops: int


@dataclass(frozen=True, slots=True)
class Epoch(Event):
    """The trial has finished one more epoch."""

    trial: int
    stats: EpochStats


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The trial ran to its end; `value` is the validation accuracy of the weights that were kept."""

    trial: int
    value: float


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The trial was stopped before its end, as asked."""

    trial: int


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The trial cannot go on. `kind` is a short word, `details` a traceback where there is one."""

    trial: int
    kind: str
    message: str
    details: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class CannotStart(Event):
    """The worker cannot set up its device or load the data, and neither could another one: the user must act."""

    message: str


@dataclass(frozen=True, slots=True)
class WorkerDied(Event):
    """The worker is gone (crash, SIGKILL, out of memory); `trial` is what it was running. A new one is started."""

    trial: int | None
    message: str
