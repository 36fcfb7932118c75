"""Processes that start as copies of one that has imported torch: after 0.1 instead of 5 seconds."""

import multiprocessing
import multiprocessing.context
import os
from collections.abc import Callable, Mapping
from typing import Any

PRELOADED = ["fbsearch.workers.worker", "fbsearch.winners.retrain", "torch._dynamo"]


class ForkedProcess(multiprocessing.context.ForkServerProcess):
    """A process with the environment of its parent at this moment, not of the server's start."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> None:
        super().__init__(target=_run, args=(dict(os.environ), target, args), **options)


class ForkedContext(multiprocessing.context.ForkServerContext):
    """Starts processes by forking a server that lives as long as the tests."""

    Process = ForkedProcess  # type: ignore[assignment]


def forked_context() -> ForkedContext:
    context = ForkedContext()
    context.set_forkserver_preload(PRELOADED)
    return context


def _run(environment: Mapping[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*args)
