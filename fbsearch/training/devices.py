"""Choice of device and dtype, the memory in use, and recognising out-of-memory errors."""

import psutil
import torch

from fbsearch.config.models import Precision
from fbsearch.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """Return the device called `auto`, `cpu`, `cuda` or `cuda:N`. Raise DeviceError if it does not exist."""
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
    """Return the dtype of matrix products and convolutions; `auto` is bfloat16 where the hardware multiplies it."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def memory_mib(device: torch.device) -> float:
    """Return MiB: on CUDA the peak that this process has allocated, on a CPU the process's present RSS."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def is_out_of_memory(error: Exception) -> bool:
    """Return true if an error means that device or machine had no memory left; on the CPU only its text tells."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
