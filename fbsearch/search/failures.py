"""What becomes of a trial that failed: tried again where that can help, given up, infeasible; when a search stops.

| kind | tries | then |
|---|---|---|
| `worker_died` | 3 | given up |
| `hung` | 3 | given up |
| `error` | 3 | given up |
| `out_of_memory` | once more, alone on its device | infeasible: the sampler keeps away |
| `node_lost` | until it is not lost: no attempt is counted | |
| `non_finite_loss`, `invalid_configuration` | 1 | given up: the same configuration comes to the same |

`interrupted` trials (the search was stopped) are put back as they were and are no failures. An attempt that failed has
the state FAIL: it does not count, and Optuna's samplers do not see it. That is right for all but memory. Where the best
networks are those that just fit, TPE with nothing but FAIL drew 60 of 60 that did not fit (the 61st to 120th draw of
tests/test_faults.py); but it looks at complete and pruned trials only. So the last attempt is told PRUNED with a
violated constraint (see `outcomes`): TPE ranks it behind every feasible trial and drew 27 of 60. It counts for nothing.
"""

import re
from typing import Literal

import optuna

from fbsearch.errors import SearchError
from fbsearch.study.trial_record import fail, put_back, tell_infeasible

MAX_ATTEMPTS = {"non_finite_loss": 1, "invalid_configuration": 1}
DEFAULT_MAX_ATTEMPTS = 3
# Different configurations failing in a row with the same reason: the search stops with it. A loss that is not finite
# and a lack of memory are properties of the configuration, and a wide space may well give several in a row.
MAX_SAME_FAILURES = {"non_finite_loss": 20, "out_of_memory": 20}
DEFAULT_MAX_SAME_FAILURES = 3
# These come from outside as well (a machine that fills up, somebody's kill): only a configuration that they ended each
# time it was tried tells of a bug.
FROM_OUTSIDE = ("worker_died", "hung", "node_lost")

Outcome = Literal["again", "given_up", "infeasible"]


class Faults:
    """The failures of one search."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._same: list[tuple[str, int]] = []

    def none(self) -> None:
        """A trial has finished: what failed before it was not a row."""
        self._same.clear()

    def record(self, trial: optuna.Trial, *, kind: str, message: str, details: str = "") -> Outcome:
        """End a running trial with the reason, and put its configuration back where another attempt can help.

        SearchError where different configurations fail in a row in the same way: that is a bug, or the machine's.
        """
        if details:
            trial.set_user_attr("traceback", details)
        attempt, was_alone = trial.user_attrs.get("attempt", 1), trial.user_attrs.get("alone", False)
        outcome: Outcome = "given_up"
        if self._helps(kind, attempt=attempt, was_alone=was_alone):
            frozen = self._study.get_trials(deepcopy=False)[trial.number]
            alone = kind == "out_of_memory" or was_alone
            attempt += kind != "node_lost"  # all that ran there fail together, and none is to blame
            put_back(self._study, frozen, kind=kind, message=message, attempt=attempt, alone=alone)
            outcome = "again"
        elif kind == "out_of_memory":
            tell_infeasible(self._study, trial, constraints={kind: 1.0}, kind=kind, message=message)
            outcome = "infeasible"
        else:
            fail(self._study, trial.number, kind=kind, message=message)
        if outcome != "again" or kind not in FROM_OUTSIDE:
            self._stop_if_always_the_same(trial, kind, message)
        return outcome

    @staticmethod
    def _helps(kind: str, *, attempt: int, was_alone: bool) -> bool:
        """Whether another attempt can help."""
        if kind == "out_of_memory":
            return not was_alone
        return kind == "node_lost" or attempt < MAX_ATTEMPTS.get(kind, DEFAULT_MAX_ATTEMPTS)

    def _stop_if_always_the_same(self, trial: optuna.Trial, kind: str, message: str) -> None:
        # The same bug may name other sizes in each trial.
        bug = f"{kind}: {re.sub('[0-9]+', '#', message)}"
        self._same = [item for item in self._same if item[0] == bug]
        self._same.append((bug, trial.user_attrs.get("retry_of", trial.number)))
        most = MAX_SAME_FAILURES.get(kind, DEFAULT_MAX_SAME_FAILURES)
        if len({origin for _, origin in self._same}) >= most:
            raise SearchError(
                f"{most} different trials in a row failed in the same way, the search stops: {kind}: {message}"
            )
