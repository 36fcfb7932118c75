"""Workers on a Ray cluster: one actor per worker, placed on any node with room, used for many trials.

An actor runs the same loop as a local worker process, behind a pipe. It streams its events back, and receives trials
and requests to stop while a trial runs. Ray retries and restarts nothing (`max_task_retries` and `max_restarts` are 0):
the coordinator decides. An actor without room waits in Ray's queue until a node joins; the others go on meanwhile.
"""

import importlib.metadata
import ipaddress
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from fbsearch.config.models import DataConfig, TrialConfig
from fbsearch.messages import CannotStart, Event, FailureKind, Notice, Ready, WorkerDied
from fbsearch.workers.executor import Slot, lost

# One torch thread each: on a CPU, two workers of one thread are faster than one of two.
CPUS_PER_WORKER = 1
# A worker without a node after this time waits for room, or its node is very slow.
SECONDS_TO_PLACE = 10
# The workers of a node that goes down may end before the node does.
SECONDS_TO_JUDGE = 3


@dataclass(frozen=True)
class Place:
    """The node of an actor; its first message."""

    address: str
    node_id: str


class RayWorker:
    """The actor: a worker's loop in a thread, and the coordinator's end of its pipe."""

    def __init__(self, number: int, data: DataConfig, *, device: str, version: str) -> None:
        self._number, self._data, self._device, self._version = number, data, device, version
        self._ours, self._theirs = Pipe()

    def send(self, message: tuple[int, TrialConfig] | None) -> None:
        """Pass a trial to the worker, or None to stop the running one."""
        self._ours.send(message)

    def events(self) -> Iterator[Place | Event]:
        """Yield the worker's node, then its events until it ends."""
        import ray

        yield Place(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())
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
    """One actor. `place` is None until the cluster has room for it; `judged_at` is the time to report its end."""

    actor: Any
    stream: Any
    spawned: float
    place: Place | None = None
    judged_at: float | None = None
    is_node_lost: bool = False

    @property
    def address(self) -> str:
        return self.place.address if self.place else "that it waited for"

    def end(self, reason: str, *, seconds_to_judge: float = 0, is_node_lost: bool = False) -> None:
        """Note the actor's end. A reason that the coordinator gave is kept."""
        self.judged_at, self.is_node_lost = time.monotonic() + seconds_to_judge, is_node_lost
        self.reason = self.reason or f"the worker on node {self.address} {reason}"


class RayExecutor:
    """Workers on the cluster that this process is connected to. `close` disconnects, and ends a cluster of our own."""

    def __init__(
        self, data: DataConfig, *, num_workers: int, num_gpus: float, seconds_to_place: float = SECONDS_TO_PLACE
    ) -> None:
        """`num_gpus` of a GPU for each worker, 0 for the CPU. A relative `data.root` is below the current directory.

        Workers that have no node after `seconds_to_place` are reported as waiting for room.
        """
        self.num_workers = num_workers
        self._num_gpus, self._seconds_to_place = num_gpus, seconds_to_place
        # The current directory of an actor differs from node to node; ~ is expanded on each.
        root = data.root if data.root.startswith("~") else str(Path(data.root).absolute())
        self._data = data.model_copy(update={"root": root})
        self._slots: dict[int, _Slot] = {}
        self._num_waiting = 0

    def start(self) -> None:
        self._slots = {number: self._spawn(number) for number in range(self.num_workers)}

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        self._send(worker, (trial, config))

    def stop_trial(self, worker: int) -> None:
        self._send(worker, None)

    def kill(self, worker: int, *, reason: str) -> None:
        import ray

        slot = self._slots[worker]
        if slot.place is not None:  # else it waits until the cluster has room for it, and does not hang
            slot.reason = reason
            ray.kill(slot.actor)

    def events(self, *, timeout: float) -> list[Event]:
        import ray

        streams = {slot.stream: number for number, slot in self._slots.items() if slot.judged_at is None}
        ready: list[Any] = []
        if streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=timeout)
        else:  # ray.wait would start a cluster
            time.sleep(timeout)
        if ready:
            ready, _ = ray.wait(list(streams), num_returns=len(streams), timeout=0)
        found = [self._receive(streams[stream]) for stream in ready]
        found += [self._judge(number) for number, slot in list(self._slots.items()) if slot.judged_at is not None]
        events = [event for event in found if event is not None]
        return events + self._report_waiting(events)

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
            concurrency_groups={"inbox": 1},  # one thread beside that of the events keeps the order of messages
        )(RayWorker)
        version = importlib.metadata.version("fbsearch")
        actor = kind.remote(number, self._data, device="cuda" if self._num_gpus else "cpu", version=version)
        stream = actor.events.options(num_returns="streaming").remote()
        return _Slot(actor=actor, stream=stream, num_starts=num_starts, spawned=time.monotonic())

    def _send(self, worker: int, message: object) -> None:
        # A worker that has just died is found by `events`, which says so.
        slot = self._slots.get(worker)  # None: its WorkerLost has been received, but not handled yet
        if slot is not None:
            slot.actor.send.options(concurrency_group="inbox", num_returns=0).remote(message)

    def _receive(self, number: int) -> Event | None:
        """Return a worker's next event; None for its first message and for its end, which `_judge` reports."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayError

        slot = self._slots[number]
        try:
            message = ray.get(next(slot.stream))
        except StopIteration:
            slot.end("ended")
            return None
        except RayError as error:
            is_node_lost = isinstance(error, ActorUnavailableError) or "its node has died" in str(error)
            slot.end(_death_reason(error), seconds_to_judge=SECONDS_TO_JUDGE, is_node_lost=is_node_lost)
            return None
        if isinstance(message, Place):
            slot.place = message
            return None
        if isinstance(message, Ready) and not ipaddress.ip_address(slot.address).is_loopback:
            message = replace(message, device=f"{message.device} on {slot.address}")
        elif isinstance(message, CannotStart):
            message = replace(message, message=f"node {slot.address}: {message.message}")
        return slot.note(message)

    def _judge(self, number: int) -> Event | None:
        """Report a dead worker and start another in its place; None while its node's state is not certain."""
        import ray

        dead = self._slots[number]
        assert dead.judged_at is not None
        is_node_lost = dead.is_node_lost or (dead.place is not None and not _is_reachable(dead.place.node_id))
        if not is_node_lost and time.monotonic() < dead.judged_at:
            return None
        del self._slots[number]
        ray.kill(dead.actor)  # an actor that is only cut off must not train on
        starts = max(1, dead.num_starts) if is_node_lost else dead.starts_of_next()
        if starts is None:
            return lost(number, dead.reason)
        self._slots[number] = self._spawn(number, num_starts=starts)
        if is_node_lost:
            return WorkerDied(number, f"the node {dead.address} was lost", kind=FailureKind.NODE_LOST)
        return WorkerDied(number, dead.reason)

    def _report_waiting(self, events: list[Event]) -> list[Event]:
        """Return a notice if the number of workers without a node has changed, or a Ready has replaced the last one."""
        longest = time.monotonic() - self._seconds_to_place
        waiting = [number for number, slot in self._slots.items() if slot.place is None and slot.spawned < longest]
        changed = len(waiting) != self._num_waiting or any(isinstance(event, Ready) for event in events)
        self._num_waiting = len(waiting)
        if not waiting or not changed:
            return []
        who, needs = f"{len(waiting)} of {self.num_workers} workers", describe_needs(self._num_gpus)
        return [Notice(waiting[0], f"{who} wait until the cluster has room for them ({needs} each)")]


def describe_needs(num_gpus: float) -> str:
    """Return what one worker takes of a cluster, in words."""
    return f"{CPUS_PER_WORKER} CPU" + (f" and {num_gpus:g} GPU" if num_gpus else "")


def _is_reachable(node_id: str) -> bool:
    """Tell whether the cluster counts a node as alive and the node answers.

    Ray itself needs 15 seconds and more to notice that a node's processes were killed.
    """
    import ray

    node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
    if node is None or not node["Alive"]:
        return False
    with suppress(OSError):
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=1).close()
        return True
    return False


def _death_reason(error: Exception) -> str:
    """Extract the cause from Ray's message of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith(("The actor is dead", "The actor died because"))), lines[-1])
    _, _, detail = why.rpartition("Worker exit detail: ")
    return f"died: {detail.partition('. ')[0]}"
