"""The Pareto front of a study with several objectives: the complete trials that no other complete trial dominates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from fbsearch.study.pareto import find_front, find_knee, to_losses
from fbsearch.study.queries import complete_values


@dataclass(frozen=True)
class Front:
    """The numbers of the trials and their values of the goals: the best of the first goal first, as the study ranks.

    `knee` is the number of the trial with the best compromise (`pareto.find_knee`); None if the front is too small.
    """

    goals: tuple[str, ...]
    values: dict[int, tuple[float, ...]]
    knee: int | None

    def as_list(self) -> list[dict[str, Any]]:
        """Return the trials for `--json`."""
        return [
            {"trial": number, "values": dict(zip(self.goals, values, strict=True)), "is_knee": number == self.knee}
            for number, values in self.values.items()
        ]


def read_front(study: optuna.Study, goals: Sequence[str]) -> Front:
    """Return the front of a study with these goals; its values are read, not its trials."""
    found = complete_values(study)
    losses_NG = to_losses(goals, [values for _, values in found])
    rows = find_front(losses_NG).nonzero()[0]
    knee = find_knee(losses_NG[rows])
    return Front(tuple(goals), dict(found[row] for row in rows), None if knee is None else found[rows[knee]][0])
