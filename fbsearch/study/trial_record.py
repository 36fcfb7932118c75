"""Trials that end without training: infeasible ones and duplicates; which trials count towards N.

Both are told as finished, since Optuna's samplers learn nothing from a failed trial: told FAIL, TPE proposes the same
configuration for ever. An infeasible trial is PRUNED with a constraint above 0, which TPE ranks behind every feasible
trial, by how far it is over; a duplicate has the state and the value of the trial that it repeats.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.models import LimitsConfig, TrialConfig
from fbsearch.config.space import LEVELS
from fbsearch.errors import SearchError
from fbsearch.messages import Epoch, EpochStats, Started

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# So many configurations over the limits in a row: they leave too little.
MAX_INFEASIBLE_IN_A_ROW = 100


def is_infeasible(trial: FrozenTrial) -> bool:
    """Whether a trial was ended because its configuration is over the limits, or needs more memory than there is."""
    return trial.state == TrialState.PRUNED and "failure" in trial.user_attrs


def is_duplicate(trial: FrozenTrial) -> bool:
    """Whether a trial was answered from the study instead of trained."""
    return trial.state in FINISHED and "duplicate_of" in trial.user_attrs


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial counts towards N: trained to its end or pruned."""
    return trial.state in FINISHED and not is_infeasible(trial) and not is_duplicate(trial)


def describe_untrained(num_infeasible: int, num_duplicates: int) -> str:
    """What to add to a line of counts: nothing, or `, 3 infeasible, 2 duplicates`."""
    counts = {"infeasible": num_infeasible, "duplicates": num_duplicates}
    return "".join(f", {count} {word}" for word, count in counts.items() if count)


def describe_untrained_of(trials: list[FrozenTrial]) -> str:
    """The same, counted from the trials of a study."""
    return describe_untrained(sum(map(is_infeasible, trials)), sum(map(is_duplicate, trials)))


def set_constraints(study: optuna.Study, trial: optuna.Trial, constraints: dict[str, float]) -> None:
    """Tell the sampler how far a running trial is from its limits, at most 0 where it keeps them; each once a trial."""
    if isinstance(study.sampler, optuna.samplers.CmaEsSampler):
        return  # it cannot use them, and warns of each
    for key, value in constraints.items():
        trial.set_constraint(key, value)


def tell_infeasible(
    study: optuna.Study, trial: optuna.Trial, *, constraints: dict[str, float], kind: str, message: str
) -> None:
    """End a running trial as infeasible, with a reason that can be read; it does not count towards N.

    At least one constraint, of these or of those set before, must be above 0.
    """
    trial.set_user_attr("failure", {"kind": kind, "message": message})
    set_constraints(study, trial, constraints)
    study.tell(trial, state=TrialState.PRUNED)


def tell_duplicate(study: optuna.Study, trial: optuna.Trial, *, of: FrozenTrial) -> None:
    """End a running trial with what another of the same configuration came to; no pruner sees it.

    One that repeats a failed trial is infeasible to the sampler: otherwise it would be drawn for ever.
    """
    trial.set_user_attr("duplicate_of", of.number)
    # Of equal values the smaller network is the best, and then the lower number: the trial that was trained.
    for key in of.user_attrs.keys() & {"num_parameters", "flops"}:
        trial.set_user_attr(key, of.user_attrs[key])
    set_constraints(study, trial, of.constraints)
    if of.state == TrialState.FAIL:
        set_constraints(study, trial, {"failed": 1.0})
        study.tell(trial, state=TrialState.PRUNED)
        return
    if of.state == TrialState.PRUNED and of.intermediate_values:
        step, value = max(of.intermediate_values.items())
        trial.report(value, step)
    study.tell(trial, of.value if of.state == TrialState.COMPLETE else None, state=of.state)


class OverLimits:
    """The costs of configurations that were over the limits, one after another."""

    def __init__(self, max_in_a_row: int = MAX_INFEASIBLE_IN_A_ROW) -> None:
        self._max_in_a_row = max_in_a_row
        self._costs: list[dict[str, float | None]] = []

    def note(self, costs: dict[str, float | None], excess: dict[str, float]) -> None:
        """One more configuration; one that keeps the limits (no `excess` above 0) ends the row."""
        if max(excess.values(), default=0) > 0:
            self._costs.append(costs)
        else:
            self._costs.clear()

    def check(self, limits: LimitsConfig) -> None:
        """SearchError where there are so many in a row that the limits leave too little of the space."""
        if len(self._costs) < self._max_in_a_row:
            return
        kept = limits.model_dump(exclude_none=True)
        smallest = {key: min(cost[key] or 0 for cost in self._costs) for key in kept}
        lines = [f"{key} at most {limit:,.0f}, the smallest had {smallest[key]:,.0f}" for key, limit in kept.items()]
        raise SearchError(
            f"{len(self._costs)} configurations in a row are over search.limits, the search stops: {'; '.join(lines)}. "
            "Raise the limits, or search smaller networks: `fbsearch validate FILE` shows what the corners of the "
            "space cost"
        )


INTERRUPTED = "interrupted"


def put_back(
    study: optuna.Study, trial: FrozenTrial, *, kind: str, message: str, attempt: int, alone: bool = False
) -> None:
    """End a running trial as failed, with the reason, and put its parameters into the queue for another attempt.

    First the queue, then the end: whoever is killed in between leaves a running trial, and putting that back finds its
    successor there already. `alone`: the attempt is to have its device to itself.
    """
    if not any(other.user_attrs.get("follows") == trial.number for other in study.get_trials(deepcopy=False)):
        attrs = {k: trial.user_attrs[k] for k in ("grid_index",) if k in trial.user_attrs}
        attrs |= {"alone": True} if alone else {}
        # A trial that was killed between two suggestions has a part of its parameters in the queue still.
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        attrs |= {"retry_of": trial.user_attrs.get("retry_of", trial.number), "attempt": attempt}
        study.enqueue_trial(params, user_attrs=attrs | {"follows": trial.number})
    fail(study, trial.number, kind=kind, message=message)


def fail(study: optuna.Study, number: int, *, kind: str, message: str) -> None:
    """End a running trial as failed, with a reason that can be read."""
    trial = study.get_trials(deepcopy=False)[number]
    study._storage.set_trial_user_attr(trial._trial_id, "failure", {"kind": kind, "message": message})
    study.tell(number, state=TrialState.FAIL)


def put_back_running(study: optuna.Study, is_stale: Callable[[FrozenTrial], bool] = lambda _trial: True) -> int:
    """Put back the running trials that a coordinator has left behind; how many there were.

    Without `is_stale` every one: only the process that holds the study's lock may do that, to anybody else a running
    trial is somebody's.
    """
    stale = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if is_stale(trial)]
    for trial in stale:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # it has come to its end after all
            if "failure" in trial.user_attrs:  # it had failed, and been put back if need be: only the end is missing
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            again = {"attempt": trial.user_attrs.get("attempt", 1), "alone": trial.user_attrs.get("alone", False)}
            put_back(study, trial, kind=INTERRUPTED, message="the search was stopped while it ran", **again)
    return len(stale)


def rank_order(trial: FrozenTrial) -> tuple[float, int, int]:
    """What complete trials are ranked by: the value, then fewer parameters, then the lower number; less is better."""
    assert trial.value is not None
    return (-trial.value, trial.user_attrs.get("num_parameters", 0), trial.number)


def trial_config(trial: FrozenTrial) -> TrialConfig:
    """The whole configuration that a trial was run with."""
    return TrialConfig.model_validate(trial.user_attrs["config"])


def sampled_names(trial: FrozenTrial) -> list[str]:
    """The dotted names that were sampled for a trial, the stages' levels as the one field they are."""
    return list(dict.fromkeys(LEVELS if name.startswith(LEVELS) else name for name in trial.params))


def is_failure(trial: FrozenTrial) -> bool:
    """Whether a trial has failed; one that was interrupted and put back has not."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get("failure", {}).get("kind") != INTERRUPTED


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
