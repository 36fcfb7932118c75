"""Capture of GPU work as a CUDA graph, the stream for it, and restoring what measured steps have changed."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fbsearch.errors import DeviceLostError
from fbsearch.training.devices import describe_error


class CaptureError(Exception):
    """CUDA cannot capture the work as a graph."""


@contextmanager
def capture_stream(device: torch.device) -> Iterator[None]:
    """Run what is launched within the context on the stream of the captures, after all that was launched before.

    Work must run there once before it is captured: libraries initialise themselves for each stream, and buffers and
    the optimiser's state are created. What is launched after the context waits for it.
    """
    with torch.cuda.device(device):
        before, stream = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield
        before.wait_stream(stream)


def capture(work: Callable[[], None], *, device: torch.device, pool: Any = None) -> torch.cuda.CUDAGraph:
    """Capture `work`, which has run in `capture_stream` before, and return the graph; nothing is computed.

    The graph keeps its memory until its `reset` is called. Raise CaptureError where CUDA refuses the capture,
    torch.OutOfMemoryError as it is, since there would hardly be enough memory without the graph either, and
    DeviceLostError where a failed capture has left torch unable to draw random numbers.
    """
    with torch.cuda.device(device):
        before, stream = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
        stream.wait_stream(before)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                work()
        except RuntimeError as error:
            # Up to torch 2.11 a capture that fails at its end leaves its stream current and its generator capturing.
            torch.cuda.set_stream(before)
            _check_random(device, error)
            graph.reset()
            for one in (error, error.__context__):  # the error at the end of a capture hides the error that broke it
                if isinstance(one, torch.OutOfMemoryError):
                    raise one from None
            reason = str(error.__context__ or error).strip().partition("\n")[0]
            raise CaptureError(f"it could not be captured as a CUDA graph: {reason}") from error
    return graph


def _check_random(device: torch.device, cause: RuntimeError) -> None:
    """Raise DeviceLostError if no random number can be drawn after a failed capture: every dropout would raise."""
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.rand(1, device=device).item()
    except RuntimeError as error:
        first = cause.__context__ or cause
        raise DeviceLostError(
            f"a step could not be captured as a CUDA graph ({describe_error(first)}), and this version of torch cannot "
            f"go on after that ({describe_error(error)}); train.cuda_graph: false trains without graphs"
        ) from cause


@functools.cache
def _side_stream(_device_index: int) -> torch.cuda.Stream:
    """Return the one stream for all captures on a device: cuBLAS keeps a workspace (32 MiB on Hopper) per stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@contextmanager
def restore_afterwards(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, *, also: list[torch.Tensor]
) -> Iterator[None]:
    """Restore weights, buffers, the optimiser's state, the random state and the tensors `also` on leaving.

    All keep their place in memory, so that a graph which was captured within the context can be replayed after it.
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
