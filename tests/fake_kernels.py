"""CUDA kernels that are chosen but not run: fake tensors on a GPU that is not there, under CUDA's autocast.

Operators, dtypes and shapes are those of a GPU, values there are none: reading one raises, as a capture would.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make torch believe in a GPU with bfloat16, as far as autocast asks; tensors made within the context are fake."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Note the operator, dtype and number of elements of every new tensor that is written."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: list[tuple[str, torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        for one in tree_leaves(out):
            if torch.is_tensor(one) and one.untyped_storage()._cdata not in known:
                self.tensors.append((str(func), one.dtype, one.numel()))
        return out
