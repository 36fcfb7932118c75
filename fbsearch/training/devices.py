"""Devices and their number formats: which device, which dtype, how much memory is used, what running out looks like."""

import psutil
import torch

from fbsearch.config.models import Precision
from fbsearch.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device of `auto`, `cpu`, `cuda` or `cuda:N`. DeviceError says what there is."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device {name}: no such kind of device; write auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name}: cannot be used; write auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; --device cpu works")
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of matrix products and convolutions. `auto` is bfloat16 where the hardware multiplies it natively."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def memory_mib(device: torch.device) -> float:
    """The most memory this process has held on a CUDA device, or what it holds now of the machine's, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that a device or the machine had no memory left; torch's CPU allocator says it in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
