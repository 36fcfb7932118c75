"""The memory that holds a data set's images: that of the device which trains, or the machine's."""

from collections.abc import Callable

import psutil
import torch

from fbsearch.errors import DataError

# The share of a GPU's free memory that images may take. The rest is for training; a winner's training holds the images
# twice, split and joined.
DEVICE_SHARE = 0.25


def choose_place(num_bytes: int, device: torch.device, *, say: Callable[[str], None]) -> torch.device:
    """Return `device`, or the CPU if the images take more than DEVICE_SHARE of what is free on a GPU; `say` tells that.

    Raise DataError if this machine's memory cannot hold them either.
    """
    if device.type == "cuda":
        free = free_bytes(device)
        if num_bytes <= DEVICE_SHARE * free:
            return device
    available = free_bytes(torch.device("cpu"))
    taken = f"the images take {_mib(num_bytes)} MiB"
    if num_bytes > available:
        raise DataError(
            f"{taken}, and this machine has {_mib(available)} MiB of memory free; a smaller data.image_size, or a "
            "data.limit, makes them fit"
        )
    if device.type == "cuda":
        say(
            f"{taken}, and {device} has {_mib(free)} MiB free: they stay in the machine's memory and are copied batch "
            "by batch, which is slower"
        )
    return torch.device("cpu")


def free_bytes(device: torch.device) -> int:
    """Return the bytes that the driver has free on a GPU, or that the machine can give to programs."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f}"
