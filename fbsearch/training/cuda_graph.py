"""Work on a GPU recorded once as a CUDA graph, and what a rehearsal changes put back. Knows torch and nothing else."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Before a capture the same work runs this often on a side stream: libraries set themselves up, buffers are made.
NUM_WARM_UPS = 3


class CaptureError(Exception):
    """Work could not be captured as a CUDA graph; nothing but the attempt is lost."""


def capture(
    work: Callable[[], None],
    *,
    device: torch.device,
    pool: Any = None,
    between: Callable[[], None] = lambda: None,
) -> torch.cuda.CUDAGraph:
    """Run `work` NUM_WARM_UPS times on a side stream, then `between`, then capture it there.

    Memory that the graph needs stays its own until `reset`. CaptureError where CUDA refuses; being out of memory is
    raised as it is, since without the graph there would hardly be more.
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
            for one in (error, error.__context__):  # what ends a broken capture hides what broke it
                if isinstance(one, torch.OutOfMemoryError):
                    raise one from None
            reason = str(error.__context__ or error).strip().partition("\n")[0]
            raise CaptureError(f"it could not be captured as a CUDA graph: {reason}") from error
    return graph


@functools.cache
def _side_stream(_device_index: int) -> torch.cuda.Stream:
    """One for all captures on a device: for every stream cuBLAS keeps a workspace (32 MiB on Hopper) for ever."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


@contextmanager
def untouched(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, *, also: list[torch.Tensor]
) -> Iterator[None]:
    """Put weights, buffers, the optimiser's state, the device's random state and `also` back at the end.

    State that the optimiser only makes within is set to zero, as which it begins.
    """
    tensors = [*model.parameters(), *model.buffers(), *_state_tensors(optimizer), *also]
    saved = [tensor.detach().clone() for tensor in tensors]
    random = random_state(device)
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
        set_random_state(random, device)


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def random_state(device: torch.device) -> torch.Tensor:
    """The state of a device's own generator, from which dropout and drop-path are drawn."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """The other way round."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
