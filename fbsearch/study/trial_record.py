"""The record of a trial: all that a trial stores as Optuna's user attributes, and the functions that read and end it.

A trial's states, in Optuna's terms, from the queue to the end:

   grid point | retry | run of the race      drawn by the sampler
            |                                         |
            v                 ask                     v ask
         WAITING ---------------------------------> RUNNING
            ^                                         |
            |                        study.tell       +--> COMPLETE          counts towards N
            |                        study.tell       +--> PRUNED            counts towards N
            |                        tell_infeasible  +--> PRUNED            with `failure`
            |                        tell_duplicate   +--> COMPLETE, PRUNED  with `duplicate_of`
            |                        tell_race_run    +--> PRUNED            with `race_of` (race_result.py)
            |                        fail             +--> FAIL              with `failure`
            |                        put_back         +--> FAIL              with `failure`
            |                                                |
            +------------------------------------------------+
               a new trial with the same parameters, and with `follows`, `follows_failure`, `retry_of`, `attempt`

A trial that is run again is always a new trial: a RUNNING one set back to WAITING would keep its old learning curve.

Infeasible trials and duplicates are told as finished, because Optuna's samplers ignore failed trials: told FAIL, TPE
proposes the same configuration for ever. An infeasible trial is PRUNED with a constraint above 0, so that TPE ranks it
behind every feasible trial, by the excess; a duplicate has the state and the value of the trial that it repeats.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.models import TrialConfig
from fbsearch.config.space import LEVELS
from fbsearch.messages import FailureKind

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# The keys by which queries of the database find trials (queries.py).
FAILURE, DUPLICATE_OF, NUM_PARAMETERS = "failure", "duplicate_of", "num_parameters"
RACE_OF, RACE_ACCURACY = "race_of", "race_accuracy"
FOLLOWS_FAILURE = "follows_failure"
# Read at the rungs of ParetoHalvingPruner.
CURVE = "curve"
# What a coordinator never reads of a finished trial, after it has begun.
DETAILS = ("config", "environment", "execution", "history", "attention", "traceback")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The reason of a trial's end. `kind` is a FailureKind, or a word of another version of fbsearch."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """The user attributes of a trial, under their keys. A field that is not stored has its default."""

    # Stored when the trial is put into the queue.
    grid_index: int | None = None  # only says that it is a point of the grid
    follows: int | None = None  # the trial whose parameters are tried again
    follows_failure: Failure | None = None  # its reason, until it has stored that itself
    retry_of: int | None = None  # the first trial with these parameters
    attempt: int = 1
    alone: bool = False  # it needs its device to itself
    race_of: int | None = None  # the complete trial whose configuration is run with a new seed
    # Stored when the trial is drawn.
    coordinator: str | None = None  # the process that runs it, on PostgreSQL
    config: dict[str, Any] | None = None  # a TrialConfig, as JSON
    # Stored when the worker begins, and at the first epoch.
    num_parameters: int | None = None
    flops: int | None = None
    memory_mib: float | None = None
    device: str | None = None
    worker: int | None = None
    environment: dict[str, Any] | None = None  # {"versions": {package: version}, "git_commit": ...}
    execution: dict[str, Any] | None = None  # an Execution
    # Stored after each epoch, with several objectives: their values. With one they are Optuna's intermediate values.
    curve: list[list[float]] | None = None
    # Stored at the end.
    history: list[dict[str, Any]] | None = None  # EpochStats
    seconds: float | None = None  # since the worker got it
    attention: dict[str, Any] | None = None  # an Attention
    failure: Failure | None = None
    traceback: str | None = None
    duplicate_of: int | None = None
    race_accuracy: float | None = None  # of a run of the race

    @classmethod
    def of(cls, trial: FrozenTrial | optuna.Trial) -> Self:
        """Return the record of a trial, whichever version of fbsearch has stored it."""
        found = {key: value for key, value in trial.user_attrs.items() if key in _FIELDS}
        for key in (FAILURE, FOLLOWS_FAILURE):
            if key in found:
                found[key] = Failure(kind=found[key].get("kind", ""), message=found[key].get("message", ""))
        return cls(**found)

    def attributes(self) -> dict[str, Any]:
        """Return {key: value} of the fields that are not at their default."""
        values = {key: getattr(self, key) for key in _FIELDS}
        values |= {key: dataclasses.asdict(value) for key, value in values.items() if isinstance(value, Failure)}
        return {key: value for key, value in values.items() if value != _FIELDS[key]}

    def store(self, trial: optuna.Trial) -> None:
        """Store the fields that are not at their default; the others stay as they are stored."""
        for key, value in self.attributes().items():
            trial.set_user_attr(key, value)


_FIELDS = {field.name: field.default for field in dataclasses.fields(TrialRecord)}


def is_infeasible(trial: FrozenTrial) -> bool:
    """Return True for a trial whose configuration is over the limits, or needs more memory than there is."""
    return trial.state == TrialState.PRUNED and FAILURE in trial.user_attrs


def is_duplicate(trial: FrozenTrial) -> bool:
    """Return True for a trial that was answered from the study instead of trained."""
    return trial.state in FINISHED and DUPLICATE_OF in trial.user_attrs


def is_race_run(trial: FrozenTrial) -> bool:
    """Return True for a trial that has run the configuration of a complete one again, to choose among the best."""
    return trial.state == TrialState.PRUNED and RACE_ACCURACY in trial.user_attrs


def is_finished(trial: FrozenTrial) -> bool:
    """Return True for a trial that counts towards N: trained to its end, or pruned."""
    return trial.state in FINISHED and not {FAILURE, DUPLICATE_OF, RACE_ACCURACY} & trial.user_attrs.keys()


def is_failure(trial: FrozenTrial) -> bool:
    """Return True for a trial that failed; one that was interrupted and put back did not."""
    failure = TrialRecord.of(trial).failure
    return trial.state == TrialState.FAIL and (failure is None or failure.kind != FailureKind.INTERRUPTED)


def describe_untrained(num_infeasible: int, num_duplicates: int) -> str:
    """Return what to add to a line of counts: nothing, or `, 3 infeasible, 2 duplicates`."""
    counts = {"infeasible": num_infeasible, "duplicates": num_duplicates}
    return "".join(f", {count} {word}" for word, count in counts.items() if count)


def describe_untrained_of(trials: list[FrozenTrial]) -> str:
    """Return the same, counted from the trials of a study."""
    return describe_untrained(sum(map(is_infeasible, trials)), sum(map(is_duplicate, trials)))


def rank_order(
    trial: FrozenTrial, *, directions: Sequence[StudyDirection] = (StudyDirection.MAXIMIZE,)
) -> tuple[float, ...]:
    """Return the sort key of complete trials, the best first: by value, then fewer parameters, then lower number.

    With several objectives the first one decides, of equal ones the second, and so on: no trial dominates the best.
    """
    assert trial.values is not None
    losses = [-v if way == StudyDirection.MAXIMIZE else v for v, way in zip(trial.values, directions, strict=True)]
    return (*losses, trial.user_attrs.get(NUM_PARAMETERS, 0), trial.number)


def num_epochs(trial: FrozenTrial) -> int:
    """Return how many epochs a trial has trained."""
    return max(len(trial.intermediate_values), len(trial.user_attrs.get(CURVE, ())))


def score_of(trial: FrozenTrial) -> float | None:
    """Return the value of a trial's first goal: at its end, or after its last epoch; None before the first."""
    if trial.values:
        return float(trial.values[0])
    if trial.intermediate_values:
        return float(trial.intermediate_values[max(trial.intermediate_values)])
    curve = trial.user_attrs.get(CURVE)
    return float(curve[-1][0]) if curve else None


def trial_config(trial: FrozenTrial | optuna.Trial) -> TrialConfig:
    """Return the whole configuration that a trial was run with."""
    return TrialConfig.model_validate(TrialRecord.of(trial).config)


def sampled_names(trial: FrozenTrial) -> list[str]:
    """Return the dotted names that were sampled for a trial; the stages' levels are one field."""
    return list(dict.fromkeys(LEVELS if name.startswith(LEVELS) else name for name in trial.params))


def set_constraints(study: optuna.Study, trial: optuna.Trial, constraints: dict[str, float]) -> None:
    """Tell the sampler the excess of a running trial over its limits, at most 0 where it keeps them; each key once."""
    if isinstance(study.sampler, optuna.samplers.CmaEsSampler):
        return  # it cannot use constraints, and warns of each
    for key, value in constraints.items():
        trial.set_constraint(key, value)


def tell_infeasible(
    study: optuna.Study, trial: optuna.Trial, *, constraints: dict[str, float], kind: str, message: str
) -> None:
    """End a running trial as infeasible, with the reason. It does not count towards N.

    At least one constraint, of these or of those set before, must be above 0.
    """
    TrialRecord(failure=Failure(kind=kind, message=message)).store(trial)
    set_constraints(study, trial, constraints)
    study.tell(trial, state=TrialState.PRUNED)


def tell_duplicate(study: optuna.Study, trial: optuna.Trial, *, of: FrozenTrial) -> None:
    """End a running trial with the outcome of another one that has the same configuration; no pruner sees it.

    A trial that repeats a failed one is infeasible to the sampler: otherwise it would be drawn for ever.
    """
    # Of equal values the smaller network is the best, and then the lower number: the trial that was trained.
    same = TrialRecord.of(of)
    TrialRecord(duplicate_of=of.number, num_parameters=same.num_parameters, flops=same.flops).store(trial)
    set_constraints(study, trial, of.constraints)
    if of.state == TrialState.FAIL:
        set_constraints(study, trial, {"failed": 1.0})
        study.tell(trial, state=TrialState.PRUNED)
        return
    if of.state == TrialState.PRUNED and of.intermediate_values:
        step, value = max(of.intermediate_values.items())
        trial.report(value, step)
    study.tell(trial, of.values if of.state == TrialState.COMPLETE else None, state=of.state)


def fail(study: optuna.Study, number: int, *, kind: str, message: str) -> None:
    """End a running trial as failed, with the reason."""
    trial = study.get_trials(deepcopy=False)[number]
    for key, value in TrialRecord(failure=Failure(kind=kind, message=message)).attributes().items():
        study._storage.set_trial_user_attr(trial._trial_id, key, value)
    study.tell(number, state=TrialState.FAIL)


def put_back(
    study: optuna.Study, trial: FrozenTrial, *, kind: str, message: str, attempt: int, alone: bool = False
) -> None:
    """End a running trial as failed, with the reason, and put its parameters into the queue for another attempt.

    `alone`: the attempt needs its device to itself. The queue comes first, and names the reason: a process that is
    killed in between leaves a running trial, and whoever puts that back finds its successor there, and why it has one.
    """
    records = map(TrialRecord.of, study.get_trials(deepcopy=False))
    found = next((record for record in records if record.follows == trial.number), None)
    failure = Failure(kind=kind, message=message)
    if found is None:
        was = TrialRecord.of(trial)
        origin = trial.number if was.retry_of is None else was.retry_of
        again = TrialRecord(
            grid_index=was.grid_index, follows=trial.number, follows_failure=failure, retry_of=origin, alone=alone,
            race_of=was.race_of,
        )  # fmt: skip
        # A trial that was killed between two suggestions has a part of its parameters in the queue still.
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        study.enqueue_trial(params, user_attrs=again.attributes() | {"attempt": attempt})
    elif found.follows_failure is not None:
        failure = found.follows_failure
    fail(study, trial.number, kind=failure.kind, message=failure.message)


def put_back_running(study: optuna.Study, is_stale: Callable[[FrozenTrial], bool] = lambda _trial: True) -> int:
    """Put back the running trials that a coordinator has left behind; return their number.

    Only the process that has the study to itself may leave out `is_stale`: otherwise a running trial may be that of
    another coordinator.
    """
    stale = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if is_stale(trial)]
    for trial in stale:
        record = TrialRecord.of(trial)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # it has come to its end after all
            if record.failure is not None:  # it had failed, and been put back if need be: only the end is missing
                study.tell(trial.number, state=TrialState.FAIL)
                continue
            put_back(
                study,
                trial,
                kind=FailureKind.INTERRUPTED,
                message="the search was stopped while it ran",
                attempt=record.attempt,
                alone=record.alone,
            )
    return len(stale)
