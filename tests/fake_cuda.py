"""A stand-in for torch's CUDA streams and graphs that computes on the CPU, for tests of what is done with them.

A capture records the operators that torch dispatches, and what they have changed is undone, since a real capture
computes nothing; a replay computes them again, on the same tensors. Reading a number back to the host breaks a capture,
as it does on a GPU. What it does not show: anything of CUDA, cuDNN and cuBLAS themselves, of memory, or of time.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fbsearch.training import cuda_graph

NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.nonzero.default)


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None:
        assert isinstance(other, FakeStream)


class FakeGraph:
    """The operators of a capture, with their arguments and results."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.num_replays = 0
        self.is_reset = False
        self.shared_pool: object = None

    def pool(self) -> object:
        return self if self.shared_pool is None else self.shared_pool

    def reset(self) -> None:
        self.is_reset, self.calls = True, []

    def replay(self) -> None:
        assert self.calls and not self.is_reset
        self.num_replays += 1
        with torch.inference_mode():
            for function, arguments, options, results in self.calls:
                for old, new in zip(tree_leaves(results), tree_leaves(function(*arguments, **options)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.made: set[int] = set()
        self.random = torch.get_rng_state()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(NOT_PERMITTED)
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):  # of all: batch_norm changes what its schema does not say
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.made:
                self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        results = func(*args, **kwargs)
        known = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.made.add(tensor.untyped_storage().data_ptr())
        keep = tree_map(lambda one: one.detach() if isinstance(one, torch.Tensor) else one, (args, kwargs, results))
        self.graph.calls.append((func, *keep))
        return results

    def undo(self) -> None:
        with torch.inference_mode():
            for tensor, value in self.before.values():
                tensor.copy_(value)
        torch.set_rng_state(self.random)


class FakeCuda:
    """`current` is the current stream; `graphs` are all that were captured. With `leaves_stream`, a capture that fails
    leaves its stream current and the generator unable to draw, as torch 2.11 does."""

    def __init__(self, *, leaves_stream: bool = False) -> None:
        self.main = self.current = FakeStream()
        self.graphs: list[FakeGraph] = []
        self.leaves_stream = leaves_stream
        self.is_broken = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rand = torch.rand

        def fake_rand(*arguments: Any, **options: Any) -> torch.Tensor:
            if self.is_broken:
                raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
            return rand(*arguments, **options)

        replaced = {
            "device": lambda _device: nullcontext(),
            "current_device": lambda: 0,
            "current_stream": lambda: self.current,
            "Stream": FakeStream,
            "stream": self._stream,
            "set_stream": lambda stream: setattr(self, "current", stream),
            "CUDAGraph": FakeGraph,
            "graph": self._graph,
            "synchronize": lambda *_: None,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "rand", fake_rand)
        cuda_graph._side_stream.cache_clear()

    @contextmanager
    def _stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def _graph(self, graph: FakeGraph, *, pool: object, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        graph.shared_pool = pool
        recording = _Recording(graph)
        try:
            with recording:
                yield
        except RuntimeError:
            self.is_broken = self.leaves_stream
            if not self.leaves_stream:
                self.current = before
            raise
        finally:
            recording.undo()
        self.current = before
        self.graphs.append(graph)
