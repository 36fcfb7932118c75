"""Detect workers that hang: their trial, or their start, gives no event for longer than it may.

Silence is counted between two checks, for MAX_SECONDS_BETWEEN_CHECKS at most: where the coordinator itself was
suspended, or waited for its database, no worker is to blame.
"""

import collections
import dataclasses
import statistics

from fbsearch.messages import Epoch, Event, Ready, Started

# Without --trial-timeout a trial hangs after this many times its usual epoch, but never before MIN_SECONDS.
USUAL_EPOCHS = 10
MIN_SECONDS = 60.0
# The number of other trials' epochs that are enough to estimate the first epoch of a trial.
MIN_EPOCHS = 5
# Before that an epoch may take an hour, or what it takes at this speed, which is a fraction of one core's: a training
# step takes about three times the FLOPs of a forward pass.
FIRST_SECONDS = 3600.0
SLOWEST_FLOPS_PER_SECOND, STEP_FLOPS = 1e9, 3
# A worker that starts loads torch and decodes images, with a notice now and then.
MAX_START_SECONDS = 600.0
MAX_SECONDS_BETWEEN_CHECKS = 5.0


@dataclasses.dataclass
class _Watched:
    """A worker that is expected to give events."""

    is_starting: bool
    seconds: float = 0.0
    was_heard: bool = True
    flops: int = 0
    epochs: list[float] = dataclasses.field(default_factory=list)


class HangDetector:
    """Count the seconds since the last event of each worker that starts or trains."""

    def __init__(self, *, trial_timeout: float | None = None) -> None:
        """Allow a trial `trial_timeout` seconds between two events; None is 10 usual epochs, at least a minute."""
        self._trial_timeout = trial_timeout
        self._num_images = 0
        self._watched: dict[int, _Watched] = {}
        self._slowest = 0.0
        self._seconds_per_flop: collections.deque[float] = collections.deque(maxlen=1000)
        self._last_check: float | None = None

    def watch(self, worker: int, *, is_starting: bool = False) -> None:
        """Watch a worker that is being started, or has been given a trial."""
        self._watched[worker] = _Watched(is_starting)

    def forget(self, worker: int) -> None:
        """Stop watching a worker that has nothing to do."""
        self._watched.pop(worker, None)

    def hear(self, event: Event) -> None:
        """Note an event of a worker: it does not hang now; learn from it how long an epoch takes."""
        watched = self._watched.get(event.worker)
        if watched is None:
            return
        watched.was_heard = True
        if isinstance(event, Ready):
            self._num_images = event.dataset.num_train
        elif isinstance(event, Started):
            watched.flops = event.flops
        elif isinstance(event, Epoch):
            watched.epochs.append(event.stats.seconds)
            self._slowest = max(self._slowest, event.stats.seconds)
            self._seconds_per_flop.append(event.stats.seconds / max(1, watched.flops))

    def find_hung(self, now: float) -> dict[int, str]:
        """Return the workers that hang, with the reason as text. `now` is the time of any clock in seconds."""
        passed = 0.0 if self._last_check is None else min(now - self._last_check, MAX_SECONDS_BETWEEN_CHECKS)
        self._last_check = now
        hung = {}
        for worker, watched in self._watched.items():
            watched.seconds = 0.0 if watched.was_heard else watched.seconds + passed
            watched.was_heard = False
            limit = self.limit(worker)
            if watched.seconds > limit:
                missing = "sign of life while it started" if watched.is_starting else "epoch"
                hung[worker] = f"no {missing} for {limit:.0f} seconds"
        return hung

    def limit(self, worker: int) -> float:
        """Return the seconds that a watched worker may be silent."""
        watched = self._watched[worker]
        if watched.is_starting:
            return MAX_START_SECONDS
        if self._trial_timeout is not None:
            return self._trial_timeout
        if watched.epochs:
            usual = statistics.median(watched.epochs)
        elif len(self._seconds_per_flop) >= MIN_EPOCHS:
            # One network of a space may take a hundred times as long as another.
            usual = max(self._slowest, statistics.median(self._seconds_per_flop) * watched.flops)
        else:
            return max(FIRST_SECONDS, STEP_FLOPS * watched.flops * self._num_images / SLOWEST_FLOPS_PER_SECOND)
        return max(MIN_SECONDS, USUAL_EPOCHS * usual)
