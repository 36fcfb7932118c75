"""Training of one network by several processes, each on its part of every batch: DistributedDataParallel.

`torchrun` starts the processes and describes them in the environment; without it, a team has one process.
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
    """The processes of one training run, seen from the process of number `rank`, counted from 0."""

    rank: int = 0
    num_processes: int = 1

    @property
    def leads(self) -> bool:
        """True in rank 0, the one process that writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a module that computes `model` and averages gradients; weights and buffers become rank 0's.

        On CUDA every BatchNorm of `model` is replaced by one over the whole batch. On a CPU torch has none: there each
        process normalises by its own part, and the running statistics of rank 0 are kept.
        """
        if self.num_processes == 1:
            return model
        if next(model.parameters()).is_cuda:
            # In place: the model itself is no norm.
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(model)

    def check(self, *, batch_size: int, num_images: int) -> None:
        """Raise ConfigError if a process might get no image; the last batch may be little more than half of one."""
        if self.num_processes > min(batch_size // 2, num_images):
            raise ConfigError(
                f"train.batch_size {batch_size} and {num_images} training images: too few for {self.num_processes} "
                "processes; start fewer with --nproc-per-node"
            )

    def part(self, tensor_B: torch.Tensor) -> torch.Tensor:
        """Return this process's part of a batch, along dimension 0; sizes differ by one at most and may be 0."""
        return tensor_B.tensor_split(self.num_processes)[self.rank]

    def loss_scale(self, num_own: int, num_all: int) -> float:
        """Return the factor for the mean loss of a part that makes the averaged gradient that of the whole batch."""
        return 1.0 if self.num_processes == 1 else num_own * self.num_processes / num_all

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes; each of them must call this."""
        if self.num_processes == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value

    def mean(self, value: float, device: torch.device) -> float:
        """Return the mean over all processes, the same number in each; each of them must call this."""
        if self.num_processes == 1:
            return value
        return self.sum(torch.tensor(value, dtype=torch.float64, device=device)).item() / self.num_processes

    def seed_epoch(self, seed: int, epoch: int) -> None:
        """Seed torch's generator from seed, epoch and rank, if there are several processes.

        A resumed run thus draws the numbers of an unbroken one, although only rank 0 saved its state.
        """
        if self.num_processes > 1:
            torch.manual_seed(((seed << 32) + (epoch << 16) + self.rank) % 2**63)


def is_launched() -> bool:
    """Return true if the environment, as set by torchrun, names more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: str) -> str:
    """Return the name of this process's device: for `auto` and `cuda` one GPU each, where the machine has any."""
    if not is_launched() or device == "cpu" or not torch.cuda.is_available():
        return device
    if device not in ("auto", "cuda"):
        raise DeviceError(f"--device {device}: several processes take a GPU each; write auto, cuda or cpu")
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise DeviceError(
            f"--nproc-per-node: there are {count} CUDA devices here; start at most {count} processes, or --device cpu"
        )
    return f"cuda:{index}"


@contextmanager
def join(device: str) -> Iterator[Team]:
    """Join torchrun's process group for the context; without torchrun, yield a team of one."""
    if not is_launched():
        yield Team()
        return
    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.set_device(device)
    # A 1x1 kernel's strides can be written in two ways, which DistributedDataParallel takes for two layouts.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if on_cuda:  # NCCL need not guess its GPU, and connects at once
        torch.distributed.init_process_group("nccl", device_id=torch.device(device))
    else:
        torch.distributed.init_process_group("gloo")
    try:
        yield Team(torch.distributed.get_rank(), torch.distributed.get_world_size())
        torch.distributed.barrier()  # no process may leave while another still waits for it
    finally:
        gc.collect()  # a wrapped model that is still alive would keep the group's threads until the process ends
        torch.distributed.destroy_process_group()
