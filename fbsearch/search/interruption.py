"""Ctrl-C and SIGTERM as a question that is asked between two steps, instead of an exception in the middle of one."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Whether an end was asked for."""

    def __init__(self) -> None:
        self.is_asked = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM only ask; a second Ctrl-C ends at once.

        Signals are heard in the main thread alone: in another one nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        # `timeout` and cluster managers may send SIGTERM twice; only a person presses Ctrl-C again.
        if self.is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_asked = True
