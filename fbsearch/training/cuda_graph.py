"""Capture of GPU work as a CUDA graph, and restoring what the rehearsal of a capture has changed."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Runs of the work before its capture, on a side stream: libraries initialise themselves, buffers are allocated.
NUM_WARM_UPS = 3


class CaptureError(Exception):
    """CUDA cannot capture the work as a graph."""


def capture(
    work: Callable[[], None], *, device: torch.device, pool: Any = None, between: Callable[[], None] = lambda: None
) -> torch.cuda.CUDAGraph:
    """Run `work` NUM_WARM_UPS times on a side stream, then `between`, then capture `work` there.

    The graph keeps its memory until its `reset` is called. Raise CaptureError where CUDA refuses the capture, and
    torch.OutOfMemoryError as it is, since there would hardly be enough memory without the graph either.
    """
    with torch.cuda.device(device):
        stream = _side_stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                work()
            between()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                work()
        except RuntimeError as error:
            graph.reset()
            for one in (error, error.__context__):  # the error at the end of a capture hides the error that broke it
                if isinstance(one, torch.OutOfMemoryError):
                    raise one from None
            reason = str(error.__context__ or error).strip().partition("\n")[0]
            raise CaptureError(f"it could not be captured as a CUDA graph: {reason}") from error
    return graph


@functools.cache
def _side_stream(_device_index: int) -> torch.cuda.Stream:
    """Return the one stream for all captures on a device: cuBLAS keeps a workspace (32 MiB on Hopper) per stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@contextmanager
def restore_afterwards(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, *, also: list[torch.Tensor]
) -> Iterator[None]:
    """Restore weights, buffers, the optimiser's state, the random state and the tensors `also` on leaving.

    Optimiser state that is created within the context is set to zero, its initial value.
    """
    tensors = [*model.parameters(), *model.buffers(), *_state_tensors(optimizer), *also]
    saved = [tensor.detach().clone() for tensor in tensors]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            known = set(map(id, tensors))
            with torch.no_grad():
                for tensor, value in zip(tensors, saved, strict=True):
                    tensor.copy_(value)
                for tensor in _state_tensors(optimizer):
                    if id(tensor) not in known:
                        tensor.zero_()


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]
