"""The workers of a search and the state of each one.

                Ready             submit                        stop
    ┌> starting ──────> idle ────────────────────────> busy ──────────> stopping
    │     │             ^  │                            ^ │                 │
    │     │             │  └─────────> waiting ─────────┘ │ Finished,       │ Stopped,
    │     │             │   submit      │      the device │ Failed          │ Finished,
    │     │             │   (alone)     │ stop  is free   │                 │ Failed
    │     │             └───────────────┴─────────────────┴─────────────────┘
    │     └ WorkerLost ──> lost
    └ WorkerDied, in any state: the executor has started another worker in its place

A trial that needs its device alone is waiting until no other worker of the device is busy or stopping; none of them is
given a trial meanwhile. A worker that hangs is killed, and keeps its state until its WorkerDied comes, or the
end of its trial, sent before.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal

from fbsearch.messages import Event, Failed, FailureKind, Finished, Ready, Stopped, WorkerDied, WorkerLost
from fbsearch.search.hang_detector import HangDetector
from fbsearch.study.running_trial import RunningTrial
from fbsearch.workers.executor import Executor

State = Literal["starting", "idle", "waiting", "busy", "stopping", "lost"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolWorker:
    """A worker. `is_alone`: it has, or waits for, its device to itself; `is_hung`: it was killed because it hung."""

    state: State
    device: str = ""
    running: RunningTrial | None = None
    is_alone: bool = False
    is_hung: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)


class WorkerPool:
    """All workers of an executor; `workers` are numbered from 0."""

    def __init__(self, executor: Executor, *, trial_timeout: float | None = None) -> None:
        """Kill a worker that gives no epoch for `trial_timeout` seconds; None is 10 times its usual epoch."""
        self._executor = executor
        self._hang_detector = HangDetector(trial_timeout=trial_timeout)
        self.workers = {n: PoolWorker(state="starting") for n in range(executor.num_workers)}
        self._queue: deque[Event] = deque()  # received, but not yet given to the coordinator

    def start(self) -> None:
        """Start all workers."""
        for number in self.workers:
            self._hang_detector.watch(number, is_starting=True)
        self._executor.start()

    def close(self) -> None:
        """End all workers at once."""
        self._executor.close()

    @property
    def running(self) -> dict[int, RunningTrial]:
        """The trial of each worker that has one; a trial that was stopped is not among them."""
        return {number: worker.running for number, worker in self.workers.items() if worker.running is not None}

    @property
    def is_lost(self) -> bool:
        """True if no worker is left."""
        return all(worker.state == "lost" for worker in self.workers.values())

    @property
    def has_events(self) -> bool:
        """True if events have been received that `events` has not given yet."""
        return bool(self._queue)

    def find_idle(self) -> int | None:
        """Return the worker that has been idle for longest, of those whose device nobody needs alone."""
        reserved = {worker.device for worker in self.workers.values() if worker.is_alone}
        idle = [n for n, worker in self.workers.items() if worker.state == "idle" and worker.device not in reserved]
        return min(idle, key=lambda number: self.workers[number].since, default=None)

    def submit(self, running: RunningTrial, *, alone: bool = False) -> None:
        """Give a trial to its idle worker; `alone`, once no other worker of its device is busy."""
        worker = self.workers[running.worker]
        assert worker.state == "idle", "only an idle worker is given a trial"
        waiting = PoolWorker(state="waiting", device=worker.device, running=running, is_alone=alone)
        self._set(running.worker, waiting)

    def stop(self, running: RunningTrial) -> None:
        """Stop a trial, unless it has ended. It is no longer running.

        Its worker is idle once the trial's end has come, at once if the trial was waiting.
        """
        worker = self.workers[running.worker]
        if worker.running is not running:
            return
        if worker.state == "waiting":
            self._set(running.worker, PoolWorker(state="idle", device=worker.device))
        else:
            stopping = PoolWorker(state="stopping", device=worker.device, is_alone=worker.is_alone)
            self.workers[running.worker] = stopping
            self._executor.stop_trial(running.worker)

    def kill_hung(self, now: float) -> None:
        """Kill the workers that hang at the time `now`, in seconds of any clock; their WorkerDied follows."""
        for number, reason in self._hang_detector.find_hung(now).items():
            if not self._has_queued(number):
                self.workers[number] = dataclasses.replace(self.workers[number], is_hung=True)
                self._hang_detector.watch(number, is_starting=True)
                self._executor.kill(number, reason=reason)

    def receive(self, *, timeout: float) -> None:
        """Receive events without giving them to anybody; wait up to `timeout` seconds for the first."""
        self._queue += self._executor.events(timeout=timeout)

    def events(self, *, timeout: float) -> Iterator[tuple[Event, RunningTrial | None]]:
        """Yield each event with the running trial it belongs to; wait up to `timeout` seconds for the first.

        The worker has changed its state by then. A WorkerDied names the trial, and says whether it was hung.
        """
        if not self._queue:
            self.receive(timeout=timeout)
        while self._queue:
            yield self._apply(self._queue.popleft())

    def _apply(self, event: Event) -> tuple[Event, RunningTrial | None]:
        number, worker = event.worker, self.workers[event.worker]
        running = worker.running
        match event:
            case Ready(device=device):
                self._hang_detector.hear(event)
                self._set(number, PoolWorker(state="idle", device=device))
            case Finished() | Failed() | Stopped():
                self._set(number, PoolWorker(state="idle", device=worker.device))
            case WorkerDied():
                self._set(number, PoolWorker(state="starting"))
                if running is not None:
                    kind = FailureKind.HUNG if worker.is_hung else event.kind
                    event = dataclasses.replace(event, trial=running.trial.number, kind=kind)
            case WorkerLost():
                self._set(number, PoolWorker(state="lost"))
            case _:
                self._hang_detector.hear(event)
        return event, running

    def _set(self, number: int, worker: PoolWorker) -> None:
        """Change a worker that is not training now, and hand out the waiting trials whose device has become free."""
        self.workers[number] = worker
        if worker.state == "starting":
            self._hang_detector.watch(number, is_starting=True)
        else:
            self._hang_detector.forget(number)
        for waiting in [other for other in self.workers.values() if other.state == "waiting"]:
            self._send(waiting)

    def _send(self, worker: PoolWorker) -> None:
        """Hand the trial of a waiting worker to the executor, unless the trial must wait on."""
        running = worker.running
        assert running is not None, "a waiting worker has a trial"
        training = [other.device for other in self.workers.values() if other.state in ("busy", "stopping")]
        if worker.is_alone and worker.device in training:
            return
        self.workers[running.worker] = dataclasses.replace(worker, state="busy", since=time.monotonic())
        if self._has_queued(running.worker):
            return  # an idle worker can only have died: its WorkerDied, which comes next, gives the trial back
        running.handed_out = time.monotonic()
        self._hang_detector.watch(running.worker)
        self._executor.submit(running.worker, running.trial.number, running.config)

    def _has_queued(self, number: int) -> bool:
        return any(event.worker == number for event in self._queue)
