"""When a search stops, and with which reason."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from fbsearch.search.state import End, Exhausted, SearchState


class StopCriterion:
    """Stop at N finished trials, after a timeout, on Ctrl-C or SIGTERM, or when there is nothing left to draw."""

    def __init__(self, *, timeout: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the timeout, in seconds of `clock` from now."""
        self._clock = clock
        self.timeout = math.inf if timeout is None else timeout
        self.deadline = clock() + self.timeout
        self.is_interrupted = False

    @property
    def seconds_left(self) -> float:
        """The time until the deadline; infinite without one."""
        return self.deadline - self._clock()

    def shorten(self, seconds: float) -> None:
        """Let the timeout end earlier."""
        self.deadline -= seconds

    def check(self, state: SearchState, *, exhausted: Exhausted | None) -> End | None:
        """Return the reason to stop now, or None. An exhausted search stops once no trial is running."""
        if self.is_interrupted:
            return "interrupted"
        if state.is_complete:
            return "finished"
        if self._clock() >= self.deadline:
            return "timeout"
        return exhausted if state.num_running == 0 else None

    @contextlib.contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM only set `is_interrupted`; a second Ctrl-C raises KeyboardInterrupt.

        Outside the main thread, which alone receives signals, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        # `timeout` and cluster managers may send SIGTERM twice; only a person presses Ctrl-C again.
        if self.is_interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_interrupted = True
