"""Trials that end without training: infeasible ones and duplicates; which trials count towards N.

Both are told as finished, since Optuna's samplers learn nothing from a failed trial: told FAIL, TPE proposes the same
configuration for ever. An infeasible trial is PRUNED with a constraint above 0, which TPE ranks behind every feasible
trial, by how far it is over; a duplicate has the state and the value of the trial that it repeats.
"""

import optuna
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.models import LimitsConfig
from fbsearch.errors import SearchError

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

    def __init__(self) -> None:
        self._costs: list[dict[str, float | None]] = []

    def note(self, costs: dict[str, float | None], excess: dict[str, float]) -> None:
        """One more configuration; one that keeps the limits (no `excess` above 0) ends the row."""
        if max(excess.values(), default=0) > 0:
            self._costs.append(costs)
        else:
            self._costs.clear()

    def check(self, limits: LimitsConfig) -> None:
        """SearchError where there are so many in a row that the limits leave too little of the space."""
        if len(self._costs) < MAX_INFEASIBLE_IN_A_ROW:
            return
        kept = limits.model_dump(exclude_none=True)
        smallest = {key: min(cost[key] or 0 for cost in self._costs) for key in kept}
        lines = [f"{key} at most {limit:,.0f}, the smallest had {smallest[key]:,.0f}" for key, limit in kept.items()]
        raise SearchError(
            f"{len(self._costs)} configurations in a row are over search.limits, the search stops: {'; '.join(lines)}. "
            "Raise the limits, or search smaller networks: `fbsearch validate FILE` shows what the corners of the "
            "space cost"
        )
