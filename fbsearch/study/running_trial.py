"""A trial that a worker has, and what is stored of it while it runs."""

import dataclasses
import time
from typing import Any

import optuna

from fbsearch.config.models import TrialConfig
from fbsearch.messages import Attention, Epoch, EpochStats, Started, kept_epoch
from fbsearch.study.trial_record import TrialRecord


@dataclasses.dataclass
class RunningTrial:
    """A trial that a worker has, and what is stored while it runs."""

    trial: optuna.Trial
    config: TrialConfig
    worker: int
    race_of: int | None = None  # the trial that it runs again, in the final race
    history: list[EpochStats] = dataclasses.field(default_factory=list)
    curve: list[list[float]] = dataclasses.field(default_factory=list)
    costs: Started | None = None
    handed_out: float = dataclasses.field(default_factory=time.monotonic)

    def store_start(self, event: Started, *, device: str, environment: dict[str, Any]) -> None:
        """Store the costs, the device, and the versions of the code."""
        self.costs = event
        TrialRecord(
            num_parameters=event.num_parameters,
            flops=event.flops,
            memory_mib=event.memory_mib,
            device=device,
            worker=self.worker,
            environment=environment,
        ).store(self.trial)

    def store_epoch(self, event: Epoch, *, num_val: int) -> None:
        """Store the values after an epoch for the pruner, and how the steps are executed where the event says so.

        `num_val` is the number of validation images.
        """
        if event.execution is not None:
            TrialRecord(execution=dataclasses.asdict(event.execution)).store(self.trial)
        self.history.append(event.stats)
        values = self.values(event.stats, num_val=num_val)
        if len(values) == 1:
            self.trial.report(values[0], step=event.stats.epoch)
        else:
            self.curve.append(values)
            TrialRecord(curve=list(self.curve)).store(self.trial)

    def final_values(self, *, num_val: int) -> list[float]:
        """Return the values of the goals at the trial's end, with the weights that were kept."""
        return self.values(kept_epoch(self.history, keep_best=self.config.train.keep_best), num_val=num_val)

    def values(self, stats: EpochStats, *, num_val: int) -> list[float]:
        """Return the values of the goals for the weights of an epoch; `num_val` is the number of validation images."""
        assert self.costs is not None, "a trial has started before its first epoch ends"
        # The quickest validation is the one that was disturbed least.
        seconds = min(one.val_seconds for one in self.history)
        measured: dict[str, float | None] = {
            "parameters": self.costs.num_parameters,
            "flops": self.costs.flops,
            "memory": self.costs.memory_mib,
            "seconds_per_image": seconds / num_val,
        }
        values = []
        for goal in self.config.goals:
            value: float | None = measured[goal] if goal in measured else getattr(stats, goal)
            assert value is not None, f"the worker measures {goal}"
            values.append(float(value))
        return values

    def store_history(self) -> None:
        """Store all epochs and the seconds since the worker got the trial, before the trial is ended."""
        history = [stats.as_dict() for stats in self.history]
        TrialRecord(history=history, seconds=time.monotonic() - self.handed_out).store(self.trial)

    def store_attention(self, attention: Attention) -> None:
        """Store the attention maps."""
        TrialRecord(attention=dataclasses.asdict(attention)).store(self.trial)
