"""What there is to see of a search at one moment: what the coordinator keeps, and the console shows.

A running trial stores its own course, as user attributes. What becomes of it is the coordinator's business.
"""

import dataclasses
import time
from typing import Literal

from optuna.trial import FrozenTrial

from fbsearch.messages import DatasetInfo
from fbsearch.study.trial_record import RunningTrial

End = Literal["finished", "interrupted", "timeout", "grid_exhausted", "space_exhausted"]


@dataclasses.dataclass
class SearchState:
    """What there is to see of a search at one moment."""

    name: str
    num_trials: int
    num_workers: int
    num_complete: int = 0
    num_pruned: int = 0
    num_failed: int = 0
    num_infeasible: int = 0
    num_duplicates: int = 0
    num_distinct: int = 0
    num_finished_before: int = 0
    num_running_elsewhere: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)
    best: FrozenTrial | None = None
    dataset: DatasetInfo | None = None
    devices: dict[int, str] = dataclasses.field(default_factory=dict)
    running: dict[int, RunningTrial] = dataclasses.field(default_factory=dict)
    notice: str = ""
    away: str = ""  # why the database is being waited for
    end: End | None = None

    @property
    def num_finished(self) -> int:
        return self.num_complete + self.num_pruned

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the trials finished so far in this run; None before the first."""
        done = self.num_finished - self.num_finished_before
        if done == 0:
            return None
        return (time.monotonic() - self.started) / done * (self.num_trials - self.num_finished)
