"""What there is to see of a search at one moment: what the coordinator keeps, and the console shows.

A running trial stores its own course, as user attributes. What becomes of it is the coordinator's business.
"""

import dataclasses
import time
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial

from fbsearch.config.models import TrialConfig
from fbsearch.messages import DatasetInfo, Epoch, EpochStats, Started

End = Literal["finished", "interrupted", "timeout", "grid_exhausted", "space_exhausted"]


@dataclasses.dataclass
class RunningTrial:
    """A trial in a worker's hands."""

    trial: optuna.Trial
    config: TrialConfig
    worker: int
    history: list[EpochStats] = dataclasses.field(default_factory=list)
    handed_out: float = dataclasses.field(default_factory=time.monotonic)

    def store_start(self, event: Started, *, device: str, environment: dict[str, Any]) -> None:
        """Store what it costs, where it runs, and with which code."""
        attributes = {
            "num_parameters": event.num_parameters,
            "flops": event.flops,
            "device": device,
            "worker": self.worker,
            "environment": environment,
        }
        if event.memory_mib is not None:
            attributes["memory_mib"] = event.memory_mib
        for key, value in attributes.items():
            self.trial.set_user_attr(key, value)

    def store_epoch(self, event: Epoch) -> None:
        """Report an epoch to the pruner, and store how the steps are run where it says so."""
        if event.execution is not None:
            self.trial.set_user_attr("execution", dataclasses.asdict(event.execution))
        self.history.append(event.stats)
        self.trial.report(event.stats.val_accuracy, step=event.stats.epoch)

    def store_history(self) -> None:
        """Store all epochs and the seconds since it was handed out, before it is ended."""
        self.trial.set_user_attr("history", [dataclasses.asdict(stats) for stats in self.history])
        self.trial.set_user_attr("seconds", time.monotonic() - self.handed_out)


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
