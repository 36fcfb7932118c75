"""What an executor knows of each of its workers, wherever they are: its trial, and how often it was started in vain."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fbsearch.config.models import TrialConfig
from fbsearch.errors import DeviceError
from fbsearch.messages import CannotStart, Event, Failed, Finished, Ready, Stopped, WorkerLost

# A worker that dies this often before it is ready will not become ready.
MAX_STARTS = 3


@dataclass(kw_only=True)
class Slot:
    """One worker, as the coordinator's side sees it. Executors add how it is reached."""

    trial: int | None = None
    ready: bool = False
    num_starts: int = 1
    reason: str = ""  # why it will end, or did, where that is known better than from how it ends

    def take(self, trial: int) -> None:
        """Note that the worker is given a trial; it must have none."""
        assert self.trial is None, "the worker has a trial"
        self.trial = trial

    def note(self, event: Event) -> Event:
        """Note what the worker says; the event is handed through."""
        if isinstance(event, Ready):
            self.ready = True
        elif isinstance(event, CannotStart):
            self.reason = event.message
        elif isinstance(event, (Finished, Stopped, Failed)):
            self.trial = None
        return event

    def starts_of_next(self) -> int | None:
        """How many starts the worker that takes this dead one's place will have had; None where they are enough."""
        if self.ready:
            return 1
        return None if self.num_starts >= MAX_STARTS else self.num_starts + 1


def lost(number: int, reason: str) -> WorkerLost:
    """What is said of a worker that is not started again."""
    return WorkerLost(number, f"worker {number} was not ready after {MAX_STARTS} starts: {reason}")


class Executor(Protocol):
    """Workers numbered from 0. A worker takes one trial at a time, after its Ready and after each trial's end."""

    num_workers: int

    def start(self) -> None:
        """Start all workers; each will give Ready or CannotStart."""

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        """Hand a trial to a worker that has none."""

    def stop_trial(self, worker: int) -> None:
        """Ask a worker to stop its trial soon; it gives Stopped, or the end that the trial had already come to."""

    def kill(self, worker: int, *, reason: str) -> None:
        """End a worker that hangs, whatever it is doing; WorkerDied with this reason follows, and another is started.

        A worker inside the coordinator cannot be ended, nor be silent while somebody listens.
        """

    def events(self, *, timeout: float) -> list[Event]:
        """What has happened since the last call; waits up to `timeout` seconds for the first event."""

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""


def num_cpus() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """CUDA devices torch can use. torch is asked in a process of its own, and only where there is an NVIDIA driver."""
    if sys.platform == "linux" and not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
        return 0
    probe = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        raise DeviceError(f"torch cannot be loaded: {probe.stderr.strip().splitlines()[-1]}")
    return int(probe.stdout)


def devices_for(device: str, workers: int | None, *, workers_per_gpu: int = 1) -> list[str]:
    """The device of each worker. `workers` None: `workers_per_gpu` a GPU, or without a GPU one a CPU core.

    `auto` takes all GPUs in turn, or the CPU where there is none; `cuda` all GPUs; `cuda:N` and `cpu` what they say.
    DeviceError if there is no such GPU.
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
    """The GPU of each worker, in turn: the first workers are spread over all."""
    return [gpus[number % len(gpus)] for number in range(num_workers)]
