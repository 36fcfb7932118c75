"""What an executor knows of each of its workers, wherever they are: its trial, and how often it was started in vain."""

from dataclasses import dataclass

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
