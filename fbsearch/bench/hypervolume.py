"""The score of replays with several objectives: the hypervolume of a front, judged by seeds that no search saw."""

import dataclasses
import statistics
from collections.abc import Sequence

import numpy as np

from fbsearch.bench.common import choose_names
from fbsearch.bench.table_executor import choose_run
from fbsearch.bench.table_file import Row, Table, TableRun
from fbsearch.study.pareto import Floats, find_front, hypervolume, to_losses

# The objectives that a table has.
OBJECTIVES = ("val_accuracy", "val_loss", "parameters", "flops")
# What is worse than this share of a table's configurations in accuracy or loss adds nothing.
WORST_SHARE = 0.75


def check_objectives(names: Sequence[str]) -> None:
    """ConfigError for objectives that a table does not have."""
    choose_names(names, OBJECTIVES, flag="--objectives")


@dataclasses.dataclass(frozen=True)
class HypervolumeScale:
    """The reference point of a table, as losses of the objectives, and the hypervolume of all its configurations.

    The reference is the lowest quarter's best accuracy (or the highest quarter's lowest loss), and the highest cost.
    Costs are logarithms. Values are means over the seeds.
    """

    objectives: tuple[str, ...]
    reference_G: Floats
    whole: float

    @classmethod
    def of(cls, table: Table, objectives: tuple[str, ...]) -> "HypervolumeScale":
        """Return the scale of a table."""
        losses_NG = to_losses(objectives, [_values(objectives, row.runs) for row in table.rows.values()])
        is_cost_G = np.array([name in ("parameters", "flops") for name in objectives])
        worst_G = np.quantile(losses_NG, WORST_SHARE, axis=0)
        reference_G = np.where(is_cost_G, losses_NG.max(axis=0), worst_G)
        return cls(objectives, reference_G, hypervolume(losses_NG, reference_G))

    def share(self, seen: Sequence[tuple[Row, TableRun]]) -> float:
        """Return the share of the table's hypervolume that the front of the runs that a search has seen is worth.

        The front is that of the runs seen; each of its configurations counts as the mean of its other seeds, or of the
        run seen where there is no other.
        """
        losses_NG = to_losses(self.objectives, [_values(self.objectives, [run]) for _, run in seen])
        front = [pair for pair, is_front in zip(seen, find_front(losses_NG), strict=True) if is_front]
        judged = [_values(self.objectives, [one for one in row.runs if one is not run] or [run]) for row, run in front]
        return hypervolume(to_losses(self.objectives, judged), self.reference_G) / self.whole

    def over_time(
        self, found: Sequence[tuple[float, Row, TableRun]], *, until: float
    ) -> tuple[tuple[float, float], ...]:
        """Return (seconds, share) after each trial that has ended by then, where the share has changed."""
        changes: list[tuple[float, float]] = []
        ended = [item for item in found if item[0] <= until]
        for count, (when, _, _) in enumerate(ended, start=1):
            share = round(self.share([(row, run) for _, row, run in ended[:count]]), 6)
            if not changes or share != changes[-1][1]:
                changes.append((round(when, 3), share))
        return tuple(changes)

    def share_after_all(self, table: Table, *, repeat: int) -> float:
        """Return the share of a search that has trained every configuration once."""
        runs = [(row, choose_run(row, draw=repeat)) for row in table.rows.values()]
        return self.share([(row, run) for row, run in runs if run.value is not None])


def _values(objectives: Sequence[str], runs: Sequence[TableRun]) -> list[float]:
    """Return the means of the objectives over runs; a failed one has accuracy 0, and no loss."""
    return [statistics.fmean(_value(name, run) for run in runs) for name in objectives]


def _value(name: str, run: TableRun) -> float:
    match name:
        case "parameters":
            return float(run.num_parameters)
        case "flops":
            return float(run.flops)
        case "val_loss":
            return run.val_loss[-1] if run.val_loss and run.value is not None else float("inf")
    return run.value or 0.0
