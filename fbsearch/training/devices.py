"""Choice of device, kernels and dtype, the memory in use, and what an error says about memory and device."""

import psutil
import torch

from fbsearch.config.models import Precision
from fbsearch.errors import DeviceError, DeviceLostError

# What errors say that are of no type of their own: of the CPU's allocator, and of CUDA and its libraries, which take
# memory outside torch's allocator.
OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


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


def prepare_device(device: torch.device) -> None:
    """Choose this process's kernels on a GPU: such as repeat their numbers and need no time for each new shape.

    cuDNN's attention, which torch prefers on Hopper in bfloat16, makes a plan for each new shape (tens of
    milliseconds), keeps all of them, and its backward pass is not deterministic. On a CPU there is nothing to choose.
    """
    if device.type != "cuda":
        return
    if device.index is not None:  # else each process would hold some memory of the first GPU, too
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.enable_cudnn_sdp(False)


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products and convolutions; `auto` is bfloat16 where the hardware multiplies it."""
    if precision == "auto":
        fast = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else torch.cpu._is_amx_tile_supported()
        )
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def memory_mib(device: torch.device) -> float:
    """Return MiB: on CUDA the peak that this process has allocated, on a CPU the process's present RSS."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20


def is_out_of_memory(error: Exception) -> bool:
    """Return true if an error means that device or machine had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)


def check_gpu(cause: Exception) -> None:
    """Raise DeviceLostError if `cause` has ended this process's use of its GPU, as a device-side assertion does.

    Every later CUDA call of the process would fail. Kernels run after their launch has returned: this waits for them.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise DeviceLostError(f"the GPU can no longer be used by this process after {describe_error(cause)}") from error


def describe_error(error: BaseException) -> str:
    """Return type and first line of an error: CUDA's go on with advice."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
