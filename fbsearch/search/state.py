"""The state of a search at one moment, as the coordinator keeps it and the console shows it."""

import dataclasses
import math
import time
from typing import Literal

from optuna.trial import FrozenTrial

from fbsearch.messages import DatasetInfo
from fbsearch.search.worker_pool import WorkerPool
from fbsearch.study.race_result import RaceResult
from fbsearch.study.running_trial import RunningTrial

Exhausted = Literal["grid_exhausted", "space_exhausted"]
End = Literal["finished", "interrupted", "timeout"] | Exhausted


@dataclasses.dataclass
class SearchState:
    """The state of a search at one moment."""

    name: str
    num_trials: int | None  # None is no limit
    pool: WorkerPool
    goals: tuple[str, ...] = ("val_accuracy",)
    num_complete: int = 0
    num_pruned: int = 0
    num_failed: int = 0
    num_infeasible: int = 0
    num_duplicates: int = 0
    num_distinct: int = 0
    num_finished_before: int = 0
    num_running_elsewhere: int = 0  # in other coordinators of the study
    started: float = dataclasses.field(default_factory=time.monotonic)
    deadline: float = math.inf  # of time.monotonic, as `started`
    best: FrozenTrial | None = None
    race: RaceResult | None = None  # that has named the best
    race_absence: str = ""  # why the final race that was asked for has named no trial
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
    def is_complete(self) -> bool:
        """True if the study has all its trials."""
        return self.num_trials is not None and self.num_finished >= self.num_trials

    @property
    def progress(self) -> str:
        """How many trials are finished: `5/100`, or `5 trials` without a limit."""
        return format_progress(self.num_finished, self.num_trials)

    @property
    def estimated_seconds_left(self) -> float:
        """The time for the trials that are left, from the epochs trained so far in this run.

        A running trial counts as the share of its epochs that is done. Infinite before the first epoch, and without a
        limit of trials.
        """
        shares = sum(len(running.history) / running.config.train.epochs for running in self.running.values())
        done = self.num_finished - self.num_finished_before + shares
        if self.num_trials is None or done == 0:
            return math.inf
        left = max(0.0, self.num_trials - self.num_finished - shares)
        return (time.monotonic() - self.started) / done * left


def format_progress(num_finished: int, num_trials: int | None) -> str:
    """Return `5/100`, or `5 trials` without a limit."""
    if num_trials is None:
        return f"{num_finished} trial{'' if num_finished == 1 else 's'}"
    return f"{num_finished}/{num_trials}"
