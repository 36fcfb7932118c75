"""Executors of this machine: worker processes, or one worker inside the coordinator.

Both give the events of `messages` in the order described there. The coordinator does not load torch, so the worker is
imported in the function that runs it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from fbsearch.config.models import DataConfig, TrialConfig
from fbsearch.errors import DeviceError, DeviceLostError
from fbsearch.messages import Event, Failed, Finished, Stopped, WorkerDied
from fbsearch.workers.executor import MAX_STARTS, Executor, Slot, devices_for, lost, num_cpus

if TYPE_CHECKING:
    from fbsearch.workers.worker import Worker

# Open files of a coordinator: database, logs, locks, terminal, and room for what libraries open; pipes of each worker.
FILES, FILES_PER_WORKER = 32, 4
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>: the signal that Linux sends when the thread that started this process ends


@dataclass(kw_only=True)
class _Slot(Slot):
    process: BaseProcess
    connection: Connection


class ProcessExecutor:
    """Worker processes, one for each item of `devices`. A process runs many trials.

    On Linux a worker ends with the thread that has called `start` or `events`, by which it was started.
    """

    # fork would copy the coordinator's threads and connections
    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")

    def __init__(self, data: DataConfig, *, devices: list[str], max_starts: int = MAX_STARTS) -> None:
        self.num_workers = len(devices)
        self._data, self._devices, self._max_starts = data, devices, max_starts
        self._num_threads = max(1, num_cpus() // len(devices))
        self._slots: dict[int, _Slot] = {}

    def start(self) -> None:
        self._slots = {number: self._spawn(number) for number in range(self.num_workers)}

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        self._send(worker, (trial, config))

    def stop_trial(self, worker: int) -> None:
        self._send(worker, None)

    def kill(self, worker: int, *, reason: str) -> None:
        self._slots[worker].reason = reason
        self._slots[worker].process.kill()  # `events` finds it dead

    def events(self, *, timeout: float) -> list[Event]:
        by_connection = {slot.connection: number for number, slot in self._slots.items()}
        events: list[Event] = []
        for connection in wait(list(by_connection), timeout):
            assert isinstance(connection, Connection)
            number = by_connection[connection]
            try:
                while connection.poll():
                    events.append(self._slots[number].note(connection.recv()))
            except (EOFError, OSError):  # OSError: killed in the middle of a message
                events.append(self._replace(number))
        return events

    def close(self) -> None:
        for slot in self._slots.values():
            slot.process.kill()
        for slot in self._slots.values():
            slot.process.join()
            slot.process.close()
            slot.connection.close()
        self._slots = {}

    def _replace(self, number: int) -> Event:
        """Start another worker in place of a dead one, unless too many have died before they were ready."""
        dead = self._slots.pop(number)
        dead.process.join()
        reason = dead.reason or f"the worker process {_exit_reason(dead.process.exitcode)}"
        dead.process.close()
        dead.connection.close()
        num_starts = dead.starts_of_next(self._max_starts)
        if num_starts is None:
            return lost(number, reason, self._max_starts)
        self._slots[number] = self._spawn(number, num_starts=num_starts)
        return WorkerDied(number, reason)

    def _spawn(self, number: int, *, num_starts: int = 1) -> _Slot:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_serve,
            args=(theirs, number, self._data, self._devices[number], self._num_threads),
            name=f"fbsearch-worker-{number}",
            daemon=True,
        )
        # Ctrl-C reaches every process of a terminal. Workers ignore it from their first moment, the coordinator acts.
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
        try:
            with _hidden_main():
                process.start()
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, handler)
        theirs.close()
        return _Slot(process=process, connection=ours, num_starts=num_starts)

    def _send(self, worker: int, message: object) -> None:
        slot = self._slots.get(worker)  # None: its WorkerLost has been received, but not handled yet
        if slot is not None:
            with contextlib.suppress(ConnectionError):  # `events` finds a worker that has just died
                slot.connection.send(message)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the module `__main__` while a process is started.

    multiprocessing lets each process it starts run the parent's script once more, for what that may have defined. A
    worker needs nothing of it, and a script that calls `fbsearch.search` outside of `if __name__ == "__main__"` would
    begin another search in each worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(connection: Connection, number: int, data: DataConfig, device: str, num_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    from fbsearch.workers.worker import serve

    try:
        serve(connection, number, data, device, num_threads)
    except DeviceLostError:  # Ending says so; what CUDA does at an ordinary exit could hang
        os._exit(1)


def _end_with_parent() -> None:
    """End this process as soon as the coordinator has ended, however that was; on Linux even if this one is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Also where there is no such signal, and where the coordinator ended before it was asked for.
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _exit_reason(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (the machine may be out of memory)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"
    return f"ended with exit code {exitcode}"


class InProcessExecutor:
    """One worker inside the coordinator, for debugging: breakpoints work, and a crash ends the search."""

    num_workers = 1

    def __init__(self, data: DataConfig, *, device: str) -> None:
        self._data, self._device = data, device
        self._queue: deque[Event] = deque()
        self._worker: Worker | None = None
        self._running: Generator[Event, None, None] | None = None
        self._trial = -1

    def start(self) -> None:
        from fbsearch.workers.worker import Worker

        self._worker = Worker(0, self._data, device=self._device, say=self._queue.append)
        self._queue.append(self._worker.ready)

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        assert worker == 0 and self._running is None and self._worker is not None, (
            "the worker has a trial, or was not started"
        )
        self._trial = trial
        self._running = self._worker.run(trial, config)

    def stop_trial(self, worker: int) -> None:
        if self._running is None:
            return  # `events` has given its end, or will
        self._running.close()
        self._running = None
        self._queue.append(Stopped(worker, self._trial))

    def kill(self, worker: int, *, reason: str) -> None:
        raise AssertionError(f"worker {worker} runs in the coordinator and cannot be killed: {reason}")

    def events(self, *, timeout: float) -> list[Event]:
        # The timeout does not apply to an epoch.
        if not self._queue and self._running is not None:
            event = next(self._running)
            self._queue.append(event)
            if isinstance(event, (Finished, Failed)):
                self._running = None
        elif not self._queue:
            time.sleep(timeout)
        events, self._queue = list(self._queue), deque()
        return events

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def make_executor(data: DataConfig, *, device: str, workers: int | None, workers_per_gpu: int = 1) -> Executor:
    """Return the executor for these flags: `workers` None is `auto`, 0 is in-process."""
    if workers == 0:
        return InProcessExecutor(data, device=device)
    devices = devices_for(device, workers, workers_per_gpu=workers_per_gpu)
    _allow_files(num_workers=len(devices))
    return ProcessExecutor(data, devices=devices)


def _allow_files(*, num_workers: int) -> None:
    """Raise this process's limit of open files to what a search needs. DeviceError if that is not permitted."""
    if sys.platform == "win32":
        return
    import resource

    needed = FILES + FILES_PER_WORKER * num_workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError):
            raise DeviceError(
                f"--workers {num_workers}: a search with them needs up to {needed} open files, and only {hard} are "
                f"allowed here; raise the limit (`ulimit -n {needed}`; of a service: LimitNOFILE), or start fewer"
            ) from None
