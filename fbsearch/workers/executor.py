"""The interface between a coordinator and its workers, what its implementations share, and the choice of devices."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fbsearch.config.models import TrialConfig
from fbsearch.errors import DeviceError
from fbsearch.messages import CannotStart, Ending, Event, Ready, WorkerLost

# A worker is given up that dies this many times in a row before it is ready.
MAX_STARTS = 3
# The devices of NVIDIA's driver on Linux, and on Linux below Windows.
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


@dataclass(kw_only=True)
class Slot:
    """The place of one worker. Executors add how the worker is reached."""

    num_starts: int = 1  # since a worker was ready here
    reason: str = ""  # of the worker's end, where it is known better than from its exit

    def note(self, event: Event) -> Event:
        """Note whether the worker has started, and why it ends; return the event."""
        if isinstance(event, Ready):
            self.num_starts = 0
        elif isinstance(event, (CannotStart, Ending)):
            self.reason = event.message
        return event

    def starts_of_next(self, max_starts: int = MAX_STARTS) -> int | None:
        """Return `num_starts` of the slot after one more start; None if there have been `max_starts`."""
        return None if self.num_starts >= max_starts else self.num_starts + 1


def lost(number: int, reason: str, max_starts: int = MAX_STARTS) -> WorkerLost:
    """Return the event of a worker that is not started again."""
    return WorkerLost(number, f"worker {number} was not ready after {max_starts} starts: {reason}")


class Executor(Protocol):
    """Workers numbered from 0. A worker takes one trial at a time, after its Ready and after each trial's end."""

    num_workers: int

    def start(self) -> None:
        """Start all workers. Each gives Ready or CannotStart."""

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        """Hand a trial to a worker that has none."""

    def stop_trial(self, worker: int) -> None:
        """Ask a worker to stop its trial soon. It gives Stopped, or Finished or Failed if the trial had ended."""

    def kill(self, worker: int, *, reason: str) -> None:
        """Kill a worker that hangs. WorkerDied with this reason follows, and another worker is started.

        A worker inside the coordinator cannot be killed, and never hangs while the coordinator waits for events.
        """

    def events(self, *, timeout: float) -> list[Event]:
        """Return the events since the last call; wait up to `timeout` seconds for the first one."""

    def close(self) -> None:
        """Kill all workers."""


def num_cpus() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus(*, drivers: Sequence[Path] = DRIVERS) -> int:
    """Return the number of CUDA devices that torch can use; 0 on Linux if none of the `drivers` exists.

    torch is loaded in another process. DeviceError if it cannot be loaded.
    """
    if sys.platform == "linux" and not any(driver.exists() for driver in drivers):
        return 0
    probe = subprocess.run(
        [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        raise DeviceError(f"torch cannot be loaded: {probe.stderr.strip().splitlines()[-1]}")
    return int(probe.stdout)


def devices_for(device: str, workers: int | None, *, workers_per_gpu: int = 1) -> list[str]:
    """Return the device of each worker. `workers` None is `workers_per_gpu` a GPU, or one a CPU core without GPUs.

    `device` is `auto` (all GPUs, or the CPU if there is none), `cuda` (all GPUs), `cuda:N` or `cpu`. DeviceError if
    there is no such device.
    """
    if device == "cpu":
        return ["cpu"] * (workers or num_cpus())
    if device != "auto" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise DeviceError(f"--device {device}: no such kind of device; write auto, cpu, cuda or cuda:N")
    gpus = [f"cuda:{index}" for index in range(num_gpus())]
    if device == "auto":
        return devices_for("cuda" if gpus else "cpu", workers, workers_per_gpu=workers_per_gpu)
    if not gpus:
        raise DeviceError(f"--device {device}: there is no CUDA device here; --device cpu (or auto) works without one")
    chosen = gpus if device == "cuda" else [device]
    if not set(chosen) <= set(gpus):
        raise DeviceError(f"--device {device}: there is no such device; there are auto, cpu, cuda, {', '.join(gpus)}")
    return deal(chosen, workers or len(chosen) * workers_per_gpu)


def deal(gpus: list[str], num_workers: int) -> list[str]:
    """Return the GPU of each worker: the first workers are spread over all GPUs."""
    return [gpus[number % len(gpus)] for number in range(num_workers)]
