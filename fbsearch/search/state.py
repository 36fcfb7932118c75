"""The state of a search at one moment, as the coordinator keeps it and the console shows it."""

import dataclasses
import time
from typing import Literal

from optuna.trial import FrozenTrial

from fbsearch.messages import DatasetInfo
from fbsearch.search.worker_pool import WorkerPool
from fbsearch.study.trial_record import RunningTrial

Exhausted = Literal["grid_exhausted", "space_exhausted"]
End = Literal["finished", "interrupted", "timeout"] | Exhausted


@dataclasses.dataclass
class SearchState:
    """The state of a search at one moment."""

    name: str
    num_trials: int
    pool: WorkerPool
    num_complete: int = 0
    num_pruned: int = 0
    num_failed: int = 0
    num_infeasible: int = 0
    num_duplicates: int = 0
    num_distinct: int = 0
    num_finished_before: int = 0
    num_running_elsewhere: int = 0  # in other coordinators of the study
    started: float = dataclasses.field(default_factory=time.monotonic)
    best: FrozenTrial | None = None
    dataset: DatasetInfo | None = None
    notice: str = ""
    away: str = ""  # why the database cannot be reached
    end: End | None = None

    @property
    def running(self) -> dict[int, RunningTrial]:
        """The trial of each worker that has one."""
        return self.pool.running

    @property
    def num_running(self) -> int:
        return len(self.running) + self.num_running_elsewhere

    @property
    def num_finished(self) -> int:
        return self.num_complete + self.num_pruned

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the trials finished so far in this run; None before the first."""
        done = self.num_finished - self.num_finished_before
        if done == 0:
            return None
        return (time.monotonic() - self.started) / done * (self.num_trials - self.num_finished)
