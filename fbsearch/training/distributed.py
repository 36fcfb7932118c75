"""Several processes that train one network together, each on its part of every batch: DistributedDataParallel.

`torchrun` starts them and says in the environment who is who; without it there is one process and nothing here does
anything. Must not know epochs, files or trials.
"""

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fbsearch.errors import ConfigError, DeviceError


@dataclass(frozen=True)
class Team:
    """The processes of one training; `rank` counts from 0, and rank 0 alone writes and speaks."""

    rank: int = 0
    num_processes: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call instead of `model`, so that gradients are averaged; weights and buffers become rank 0's.

        On CUDA every BatchNorm of `model` is replaced by one over the whole batch. On a CPU torch has none: there each
        process normalises by its own part, and rank 0's running statistics count.
        """
        if self.num_processes == 1:
            return model
        if next(model.parameters()).is_cuda:
            # In place: the model itself is no norm.
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(model)

    def check(self, *, batch_size: int, num_images: int) -> None:
        """ConfigError where some process would get nothing of a batch: a rest may be little more than half of one."""
        if self.num_processes > min(batch_size // 2, num_images):
            raise ConfigError(
                f"train.batch_size {batch_size} and {num_images} training images: too few for {self.num_processes} "
                "processes; start fewer with --nproc-per-node"
            )

    def part(self, tensor_B: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch, along its first dimension; parts differ by one at most, and may be empty."""
        return tensor_B.tensor_split(self.num_processes)[self.rank]

    def share(self, num_own: int, num_all: int) -> float:
        """What the mean loss of a part is multiplied by, so that the averaged gradient is that of the whole batch."""
        return 1.0 if self.num_processes == 1 else num_own * self.num_processes / num_all

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes; every one must ask."""
        if self.num_processes == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value

    def seed_epoch(self, seed: int, epoch: int) -> None:
        """Give each process random numbers of its own, known from seed, epoch and rank alone.

        So a run goes on after an epoch with the numbers it would have had, from a state that only rank 0 wrote.
        """
        if self.num_processes > 1:
            torch.manual_seed(((seed << 32) + (epoch << 16) + self.rank) % 2**63)


def is_launched() -> bool:
    """Whether torchrun (or what sets the same environment) has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: str) -> str:
    """The device of this process: with `auto` or `cuda` each takes a GPU of its machine, where there are any."""
    if not is_launched() or device == "cpu" or not torch.cuda.is_available():
        return device
    if device not in ("auto", "cuda"):
        raise DeviceError(f"--device {device}: several processes take a GPU each; write auto, cuda or cpu")
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise DeviceError(
            f"--nproc-per-node: there are {count} CUDA devices here; start at most so many, or --device cpu"
        )
    return f"cuda:{index}"


@contextmanager
def join(device: str) -> Iterator[Team]:
    """Meet the other processes; all are of one kind of device. Without torchrun, a team of one."""
    if not is_launched():
        yield Team()
        return
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(device)
    # A 1x1 kernel's strides can be written in two ways, which DistributedDataParallel takes for two layouts.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    torch.distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield Team(torch.distributed.get_rank(), torch.distributed.get_world_size())
        torch.distributed.barrier()  # whoever leaves first would break what another still waits for
    finally:
        gc.collect()  # a wrapped model that is left over would end the group's threads only with the process
        torch.distributed.destroy_process_group()
