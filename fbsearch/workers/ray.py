"""Workers on a Ray cluster: actors, each on the node that has room for it, living through many trials.

The events and their order are those of every executor (see `events`). An actor runs the loop of a local worker process
behind a pipe: one stream of events comes back, and trials and stops go in beside it while a trial runs. Ray repeats
and restarts nothing by itself (max_task_retries and max_restarts are 0): what is tried again, the coordinator decides.
An actor for which no node has room waits in Ray's queue and starts when a node comes; the others go on meanwhile.
"""

import atexit
import importlib.metadata
import importlib.util
import ipaddress
import logging
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from fbsearch.config.models import DataConfig, TrialConfig
from fbsearch.errors import DeviceError
from fbsearch.messages import CannotStart, Event, Notice, Ready, WorkerDied
from fbsearch.workers.executor import Slot, lost, num_cpus

# One torch thread each: on a CPU, two workers of one thread are faster than one of two.
CPUS_PER_WORKER = 1
# Events of a few hundred bytes are all that goes through the object store, and they do not even touch it.
OBJECT_STORE_BYTES = 80 * 2**20
KNOCK_SECONDS = 5
CONNECT_SECONDS = 60
# A worker that has not said where it is after this time waits for room, or its node is very slow.
SECONDS_TO_PLACE = 10
QUIET: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.CRITICAL}
WAY_OUT = (
    "The address is that of the head node, as `ray start --head` prints it, and this machine must be a node of the "
    "cluster (`ray start --address HOST:PORT`). A cluster with tokens needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here"
)


@dataclass(frozen=True)
class Place:
    """The first thing that an actor says: where it is."""

    address: str


class RayWorker:
    """The actor: a worker's loop in a thread, and the coordinator's end of its pipe."""

    def __init__(self, number: int, data: DataConfig, *, device: str, version: str) -> None:
        self._number, self._data, self._device, self._version = number, data, device, version
        self._ours, self._theirs = Pipe()

    def send(self, message: tuple[int, TrialConfig] | None) -> None:
        """Hand the worker a trial, or None: stop the one that runs."""
        self._ours.send(message)

    def events(self) -> Iterator[Place | Event]:
        """Where the worker is, and then all it has to say until it ends."""
        import ray

        yield Place(ray.util.get_node_ip_address())
        here = importlib.metadata.version("fbsearch")
        if here != self._version:
            text = f"fbsearch {here} is installed there and {self._version} here; it must be the same everywhere"
            yield CannotStart(self._number, text)
            return
        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(self._serve)
            with suppress(EOFError):
                while True:
                    yield self._ours.recv()
            served.result()  # a bug ends the stream with its traceback

    def _serve(self) -> None:
        from fbsearch.workers.worker import serve

        with closing(self._theirs):
            serve(self._theirs, self._number, self._data, self._device, CPUS_PER_WORKER)


@dataclass(kw_only=True)
class _Slot(Slot):
    """One actor. `address` is its node's; None until the cluster has room for it."""

    actor: Any
    stream: Any
    address: str | None = None
    spawned: float


class RayExecutor:
    """Workers on the cluster that this process is connected to. `close` disconnects, and ends a cluster of our own."""

    def __init__(self, data: DataConfig, *, num_workers: int, num_gpus: float) -> None:
        """`num_gpus` of a GPU for each worker, 0 for the CPU. A relative `data.root` is below the current directory."""
        self.num_workers = num_workers
        self._num_gpus = num_gpus
        # An actor's current directory is its node's affair; ~ is each node's own.
        root = data.root if data.root.startswith("~") else str(Path(data.root).absolute())
        self._data = data.model_copy(update={"root": root})
        self._slots: dict[int, _Slot] = {}
        self._num_waiting = 0

    def start(self) -> None:
        self._slots = {number: self._spawn(number) for number in range(self.num_workers)}

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        self._slots[worker].take(trial)
        self._send(worker, (trial, config))

    def stop_trial(self, worker: int) -> None:
        self._send(worker, None)

    def kill(self, worker: int, *, reason: str) -> None:
        import ray

        slot = self._slots[worker]
        if slot.address is not None:  # else it waits until the cluster has room for it, and does not hang
            slot.reason = reason
            ray.kill(slot.actor)

    def events(self, *, timeout: float) -> list[Event]:
        import ray

        if not self._slots:  # ray.wait would start a cluster
            time.sleep(timeout)
            return []
        numbers = {number: slot.stream for number, slot in self._slots.items()}
        streams = list(numbers.values())
        ready, _ = ray.wait(streams, num_returns=1, timeout=timeout)
        if ready:
            ready, _ = ray.wait(streams, num_returns=len(streams), timeout=0)
        found = [self._receive(number) for number, stream in numbers.items() if any(stream is one for one in ready)]
        events = [event for event in found if event is not None]
        return events + self._say_who_waits(events)

    def close(self) -> None:
        import ray

        for slot in self._slots.values():
            ray.kill(slot.actor)
        self._slots = {}
        ray.shutdown()

    def _spawn(self, number: int, *, num_starts: int = 1) -> _Slot:
        import ray

        kind = ray.remote(
            num_cpus=CPUS_PER_WORKER,
            num_gpus=self._num_gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"inbox": 1},  # stops are heard while events flow; one thread keeps their order
        )(RayWorker)
        version = importlib.metadata.version("fbsearch")
        actor = kind.remote(number, self._data, device="cuda" if self._num_gpus else "cpu", version=version)
        stream = actor.events.options(num_returns="streaming").remote()
        return _Slot(actor=actor, stream=stream, num_starts=num_starts, spawned=time.monotonic())

    def _send(self, worker: int, message: object) -> None:
        # A worker that has just died is found by `events`, which says so.
        self._slots[worker].actor.send.options(concurrency_group="inbox", num_returns=0).remote(message)

    def _receive(self, number: int) -> Event | None:
        import ray
        from ray.exceptions import ActorUnavailableError, RayError

        slot = self._slots[number]
        try:
            said = ray.get(next(slot.stream))
        except StopIteration:
            return self._replace(number, "ended", is_node_lost=False)
        except RayError as error:
            # Of a worker that died alone its node tells at once. Unavailable: the node itself does not answer.
            is_node_lost = isinstance(error, ActorUnavailableError) or "its node has died" in str(error)
            return self._replace(number, _death_reason(error), is_node_lost=is_node_lost)
        if isinstance(said, Place):
            slot.address = said.address
            return None
        assert slot.address is not None, "it says first where it is"
        if isinstance(said, Ready):
            is_here = ipaddress.ip_address(slot.address).is_loopback
            said = replace(said, device=said.device if is_here else f"{said.device} on {slot.address}")
        elif isinstance(said, CannotStart):
            said = replace(said, message=f"node {slot.address}: {said.message}")
        return slot.note(said)

    def _replace(self, number: int, reason: str, *, is_node_lost: bool) -> Event:
        """Start another worker in place of a dead one, and say what happened."""
        import ray

        dead = self._slots.pop(number)
        ray.kill(dead.actor)  # what seems lost may only be cut off, and must not train on
        starts = dead.num_starts if is_node_lost else dead.starts_of_next()
        reason = dead.reason or f"the worker on node {dead.address} {reason}"
        if starts is None:
            return lost(number, reason)
        self._slots[number] = self._spawn(number, num_starts=starts)
        if is_node_lost:
            return WorkerDied(number, dead.trial, f"the node {dead.address} was lost", kind="node_lost")
        return WorkerDied(number, dead.trial, reason)

    def _say_who_waits(self, events: list[Event]) -> list[Event]:
        """A notice whenever the number of workers without a place has changed, or its last one is off the screen."""
        longest = time.monotonic() - SECONDS_TO_PLACE
        waiting = [number for number, slot in self._slots.items() if slot.address is None and slot.spawned < longest]
        changed = len(waiting) != self._num_waiting or any(isinstance(event, Ready) for event in events)
        self._num_waiting = len(waiting)
        if not waiting or not changed:
            return []
        needs = f"{CPUS_PER_WORKER} CPU" + (f" and {self._num_gpus:g} GPU" if self._num_gpus else "")
        who = f"{len(waiting)} of {self.num_workers} workers"
        return [Notice(waiting[0], f"{who} wait until the cluster has room for them ({needs} each)")]


def _death_reason(error: Exception) -> str:
    """The first sentence that says why, of a message of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith(("The actor is dead", "The actor died because"))), lines[-1])
    _, _, detail = why.rpartition("Worker exit detail: ")
    return f"died: {detail.partition('. ')[0]}"


def make_ray_executor(
    data: DataConfig, *, address: str, device: str, workers: int | None, gpus_per_worker: float | None
) -> RayExecutor:
    """Connect to the cluster at `address`, or start one on this machine (`local`), and plan its workers.

    `workers` None: as many as the cluster has room for now. `gpus_per_worker` None: one where the device says so, or
    where it is `auto` and the cluster has GPUs. DeviceError where that cannot be.
    """
    if importlib.util.find_spec("ray") is None:
        raise DeviceError("--ray: Ray is not installed: pip install 'fbsearch[ray]'")
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"--device {device}: Ray chooses the GPU of each worker; write auto, cpu or cuda")
    # Read when Ray is imported. What nodes have to say would be printed into the table and into --json.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    if address == "local":
        _start_local(workers)
    else:
        _connect(address)
    import ray

    num_workers, num_gpus = plan(ray.cluster_resources(), device=device, workers=workers, gpus=gpus_per_worker)
    return RayExecutor(data, num_workers=num_workers, num_gpus=num_gpus)


def _start_local(workers: int | None) -> None:
    """A cluster for this process alone: nobody on the network and no other user of this machine can talk to it."""
    assert "ray" not in sys.modules, "it reads these when it is imported, and would listen to the network"
    # Ray listens on all interfaces, even when told `_node_ip_address="127.0.0.1"`, unless clusters are switched off.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # The token that Ray makes by itself lies in the home directory, readable for everybody.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Its sockets and logs in a folder that only this user may enter; it goes when the cluster has ended.
    folder = tempfile.mkdtemp(prefix="fbsearch-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import ray

    ray.init("local", num_cpus=workers or num_cpus(), object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder, **QUIET)


def _connect(address: str) -> None:
    """Connect to a running cluster: `auto` (this machine's) or HOST:PORT. DeviceError in words after a bounded wait."""
    if "://" in address:
        raise DeviceError(f"--ray {address}: write local, auto or HOST:PORT, without ://. {WAY_OUT}")
    if address != "auto":
        _knock(address)
    # Ray's core waits for minutes and prints as it likes, and may end the process: it tries first in another one.
    code = f"import ray, sys; ray.init(sys.argv[1], **{QUIET!r})"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, check=False, timeout=CONNECT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"--ray {address}: no answer within {CONNECT_SECONDS} seconds. {WAY_OUT}") from None
    if tried.returncode != 0:
        reason = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        raise DeviceError(f"--ray {address}: cannot connect ({reason}). {WAY_OUT}")
    import ray

    ray.init(address, **QUIET)


def _knock(address: str) -> None:
    """DeviceError unless something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except ValueError:
        raise DeviceError(f"--ray {address}: write local, auto or HOST:PORT. {WAY_OUT}") from None
    except OSError as error:
        raise DeviceError(f"--ray {address}: nothing answers there ({error.strerror or error}). {WAY_OUT}") from None


def plan(resources: dict[str, float], *, device: str, workers: int | None, gpus: float | None) -> tuple[int, float]:
    """How many workers, and how much of a GPU for each, on a cluster with these resources. DeviceError if none fits."""
    if gpus is None:
        gpus = 1 if device == "cuda" or (device == "auto" and resources.get("GPU", 0) > 0) else 0
    if (device == "cpu" and gpus) or (device == "cuda" and not gpus):
        raise DeviceError(f"--gpus-per-worker {gpus:g} contradicts --device {device}")
    if gpus > 1 and gpus != int(gpus):
        raise DeviceError(f"--gpus-per-worker {gpus:g}: Ray shares one GPU in parts, or gives out whole ones")
    if workers is None:
        workers = int(resources.get("CPU", 0)) // CPUS_PER_WORKER
        if gpus:
            workers = min(workers, math.floor(resources.get("GPU", 0) / gpus + 1e-9))
    if workers == 0:
        needs = f"{CPUS_PER_WORKER} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        raise DeviceError(f"--ray: the cluster has no room for a worker ({needs}) now; --workers N waits for it")
    return workers, gpus
