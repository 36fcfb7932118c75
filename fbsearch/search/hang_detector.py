"""Which worker hangs: it has given no event for longer than its trials, or its start, may take.

Silence is counted while somebody listens, a few seconds at most between two looks: a coordinator that was itself
stopped, or waited for its database, blames no worker for that.
"""

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Iterator

from fbsearch.messages import Epoch, Event, Failed, Finished, Ready, Started, Stopped, WorkerDied, WorkerLost

# Without --trial-timeout a trial hangs after this many of its usual epochs, but never before MIN_SECONDS.
USUAL_EPOCHS = 10
MIN_SECONDS = 60.0
# Before its first epoch a trial is measured by those of the others, once there are so many.
MIN_EPOCHS = 5
# torch is loaded and data are decoded, with a notice now and then.
MAX_START_SECONDS = 600.0
MAX_SECONDS_BETWEEN_LOOKS = 5.0


@dataclasses.dataclass
class _Watched:
    """A worker from which something must come."""

    is_starting: bool
    seconds: float = 0.0
    was_heard: bool = True
    flops: int = 0
    epochs: list[float] = dataclasses.field(default_factory=list)


class Silence:
    """The silence of each worker that starts or has a trial. Times are in seconds."""

    def __init__(self, *, trial_timeout: float | None = None) -> None:
        """`trial_timeout`: a trial may be silent for so long; None: 10 times its usual epoch, at least a minute."""
        self._trial_timeout = trial_timeout
        self._watched: dict[int, _Watched] = {}
        self._slowest = 0.0
        self._seconds_per_flop: collections.deque[float] = collections.deque(maxlen=1000)
        self._last_look: float | None = None

    def start(self, workers: Iterable[int]) -> None:
        """Workers are being started."""
        for worker in workers:
            self._watched[worker] = _Watched(is_starting=True)

    def submit(self, worker: int) -> None:
        """A worker has got a trial."""
        self._watched[worker] = _Watched(is_starting=False)

    def hear(self, event: Event) -> None:
        """A worker has said something."""
        if isinstance(event, (Ready, Finished, Stopped, Failed, WorkerLost)):
            self._watched.pop(event.worker, None)
        elif isinstance(event, WorkerDied):
            self.start([event.worker])
        elif event.worker in self._watched:
            watched = self._watched[event.worker]
            watched.was_heard = True
            if isinstance(event, Started):
                watched.flops = event.flops
            elif isinstance(event, Epoch):
                self._learn(watched, event.stats.seconds)

    def _learn(self, watched: _Watched, seconds: float) -> None:
        watched.epochs.append(seconds)
        self._slowest = max(self._slowest, seconds)
        self._seconds_per_flop.append(seconds / max(1, watched.flops))

    def look(self, now: float) -> Iterator[tuple[int, str]]:
        """The workers that hang, with what to say of each. `now` is any clock's time."""
        passed = 0.0 if self._last_look is None else min(now - self._last_look, MAX_SECONDS_BETWEEN_LOOKS)
        self._last_look = now
        for worker, watched in list(self._watched.items()):
            watched.seconds = 0.0 if watched.was_heard else watched.seconds + passed
            watched.was_heard = False
            limit = self.limit(worker)
            if limit is not None and watched.seconds > limit:
                what = "sign of life while it started" if watched.is_starting else "epoch"
                yield worker, f"no {what} for {limit:.0f} seconds"

    def limit(self, worker: int) -> float | None:
        """How long a watched worker may be silent; None while nobody can say."""
        watched = self._watched[worker]
        if watched.is_starting:
            return MAX_START_SECONDS
        if self._trial_timeout is not None:
            return self._trial_timeout
        if watched.epochs:
            usual = statistics.median(watched.epochs)
        elif len(self._seconds_per_flop) >= MIN_EPOCHS:
            # Of a space's networks one may well take a hundred times as long as another.
            usual = max(self._slowest, statistics.median(self._seconds_per_flop) * watched.flops)
        else:
            return None
        return max(MIN_SECONDS, USUAL_EPOCHS * usual)
