"""The policy for failed trials: try again, give up, or call infeasible; and when to stop the search.

| kind | attempts | then |
|---|---|---|
| `worker_died`, `hung`, `error` | 3 | given up |
| `out_of_memory` | 1, and 1 alone on its device | infeasible: the sampler avoids it |
| `over_limits` | 1 | infeasible |
| `node_lost` | any number: no attempt is counted | |
| `non_finite_loss`, `invalid_configuration` | 1 | given up: the same configuration fails again |

`interrupted` trials (the search was stopped) are put back unchanged and are no failures. A failed attempt has the state
FAIL: it does not count towards N, and Optuna's samplers do not see it. If lack of memory were told FAIL, TPE would
learn nothing from it: where the best networks are those that just fit, it drew 60 of 60 that did not (the 61st to 120th
draw of tests/search/test_failures.py). Told PRUNED with a violated constraint (see `trial_record`), 27 of 60.
"""

import re
from typing import Literal

import optuna

from fbsearch.config.models import LimitsConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import SearchError
from fbsearch.messages import FailureKind, Started
from fbsearch.study.trial_record import TrialRecord, fail, put_back, set_constraints, tell_infeasible

MAX_ATTEMPTS = {FailureKind.NON_FINITE_LOSS: 1, FailureKind.INVALID_CONFIGURATION: 1, FailureKind.OVER_LIMITS: 1}
DEFAULT_MAX_ATTEMPTS = 3
# The search stops after this many different configurations in a row that failed with the same reason. A wide space may
# well give several in a row whose loss is not finite, or that need too much memory.
MAX_SAME_FAILURES = {FailureKind.NON_FINITE_LOSS: 20, FailureKind.OUT_OF_MEMORY: 20}
DEFAULT_MAX_SAME_FAILURES = 3
# After this many configurations in a row over the limits, the limits leave too little of the space.
MAX_INFEASIBLE_IN_A_ROW = 100
# These also have causes outside (another program fills the memory or kills a worker): they indicate a bug only if every
# attempt of a configuration ends so.
EXTERNAL = (FailureKind.WORKER_DIED, FailureKind.HUNG, FailureKind.NODE_LOST)

Outcome = Literal["again", "given_up", "infeasible"]


class FailurePolicy:
    """Decide about the failed trials of one search."""

    def __init__(
        self, study: optuna.Study, config: StudyConfig, *, max_infeasible: int = MAX_INFEASIBLE_IN_A_ROW
    ) -> None:
        self._study, self._search = study, config.search
        self._over_limits = OverLimits(max_infeasible)
        self._same: list[tuple[str, int]] = []  # reason and first attempt of the failures in a row that are alike

    def reset(self) -> None:
        """End the row of failures: a trial has finished."""
        self._same.clear()

    def note_costs(self, trial: optuna.Trial, event: Started) -> None:
        """Tell the sampler how far a trial that has started is over, or under, the limits."""
        excess = self._search.limits.excess(event.costs)
        set_constraints(self._study, trial, excess)
        self._over_limits.note(event.costs, excess)

    def record(self, trial: optuna.Trial, *, kind: FailureKind, message: str, details: str = "") -> Outcome:
        """End a running trial with the reason, and put its configuration back if another attempt can help.

        SearchError if different configurations fail in a row in the same way (a bug, or a fault of the machine), or
        too many are over the limits.
        """
        if details:
            TrialRecord(traceback=details).store(trial)
        record = TrialRecord.of(trial)
        attempt, was_alone = record.attempt, record.alone
        outcome: Outcome = "given_up"
        if self._can_retry(kind, attempt=attempt, was_alone=was_alone):
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            alone = kind == FailureKind.OUT_OF_MEMORY or was_alone
            attempt += kind != FailureKind.NODE_LOST  # no trial of the node is to blame
            put_back(self._study, frozen, kind=kind, message=message, attempt=attempt, alone=alone)
            outcome = "again"
        elif kind in (FailureKind.OUT_OF_MEMORY, FailureKind.OVER_LIMITS):
            constraints: dict[str, float] = (
                {kind: 1.0} if kind == FailureKind.OUT_OF_MEMORY else {}
            )  # those of the limits are set
            tell_infeasible(self._study, trial, constraints=constraints, kind=kind, message=message)
            outcome = "infeasible"
        else:
            fail(self._study, trial.number, kind=kind, message=message)
        if kind == FailureKind.OVER_LIMITS:
            if self._search.sampler != "grid":  # a grid comes to its end
                self._over_limits.check(self._search.limits)
        elif outcome != "again" or kind not in EXTERNAL:
            self._check_row(trial, kind, message)
        return outcome

    @staticmethod
    def _can_retry(kind: FailureKind, *, attempt: int, was_alone: bool) -> bool:
        if kind == FailureKind.OUT_OF_MEMORY:
            return not was_alone
        return kind == FailureKind.NODE_LOST or attempt < MAX_ATTEMPTS.get(kind, DEFAULT_MAX_ATTEMPTS)

    def _check_row(self, trial: optuna.Trial, kind: FailureKind, message: str) -> None:
        # The message of one bug may name other sizes in each trial.
        bug = f"{kind}: {re.sub('[0-9]+', '#', message)}"
        self._same = [item for item in self._same if item[0] == bug]
        self._same.append((bug, trial.number if (origin := TrialRecord.of(trial).retry_of) is None else origin))
        most = MAX_SAME_FAILURES.get(kind, DEFAULT_MAX_SAME_FAILURES)
        if len({origin for _, origin in self._same}) >= most:
            raise SearchError(
                f"{most} different trials in a row failed in the same way, the search stops: {kind}: {message}"
            )


class OverLimits:
    """The costs of configurations that were over the limits, one after another."""

    def __init__(self, max_in_a_row: int = MAX_INFEASIBLE_IN_A_ROW) -> None:
        self._max_in_a_row = max_in_a_row
        self._costs: list[dict[str, float | None]] = []

    def note(self, costs: dict[str, float | None], excess: dict[str, float]) -> None:
        """Note one more configuration; one that keeps the limits (no `excess` above 0) ends the row."""
        if max(excess.values(), default=0) > 0:
            self._costs.append(costs)
        else:
            self._costs.clear()

    def check(self, limits: LimitsConfig) -> None:
        """Raise SearchError after `max_in_a_row` configurations: the limits leave too little of the space."""
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
