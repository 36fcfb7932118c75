"""Pareto fronts: which of several trials are dominated, the order within a front, its knee and its hypervolume.

A trial has a row of losses, lower is better: `to_losses` turns values of goals into them. One row dominates another if
it is nowhere worse and somewhere better; equal rows do not dominate each other.

Shapes: N trials, G goals.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fbsearch.config.goals import GOALS

Floats = npt.NDArray[np.float64]
# The fewest points of a front with a knee: of two, each is best at one end.
MIN_FOR_KNEE = 3


def to_losses(goals: Sequence[str], values_NG: Sequence[Sequence[float]]) -> Floats:
    """Return losses [N, G]: what is maximised is negated, costs are logarithms, since they differ by factors."""
    losses_NG = np.array(values_NG, dtype=np.float64).reshape(-1, len(goals))
    for column, goal in enumerate(map(GOALS.__getitem__, goals)):
        if goal.is_cost:
            losses_NG[:, column] = np.log(np.maximum(losses_NG[:, column], np.finfo(np.float64).tiny))
        elif goal.is_maximized:
            losses_NG[:, column] *= -1
    return losses_NG


def find_front(losses_NG: Floats) -> npt.NDArray[np.bool_]:
    """Return which rows no other row dominates, [N]."""
    is_front_N = np.ones(len(losses_NG), dtype=np.bool_)
    for row, losses_G in enumerate(losses_NG):
        if is_front_N[row]:  # what it dominates is none; whoever dominates a row is dominated by none, or another is
            is_worse_N = np.all(losses_NG >= losses_G, axis=1) & np.any(losses_NG > losses_G, axis=1)
            is_front_N &= ~is_worse_N
    return is_front_N


def sort_by_fronts(losses_NG: Floats) -> list[int]:
    """Return the rows, the first front first; within a front each row is the farthest from those before it.

    This is the epsilon-net order of multi-objective ASHA (Schmucker et al., arXiv 2106.12639): any first part of a
    front is spread over all of it. It begins with the best in the first goal; distances are in ranges of all rows.
    """
    spans_G = np.ptp(losses_NG, axis=0) if len(losses_NG) else np.ones(0)
    scaled_NG = losses_NG / np.where(spans_G > 0, spans_G, 1.0)
    order: list[int] = []
    left = np.arange(len(losses_NG))
    while len(left):
        is_front = find_front(losses_NG[left])
        order += _spread(scaled_NG, left[is_front])
        left = left[~is_front]
    return order


def _spread(scaled_NG: Floats, rows: npt.NDArray[np.int_]) -> list[int]:
    """Return the rows of a front in epsilon-net order."""
    points = scaled_NG[rows]
    chosen = [int(np.lexsort(points.T[::-1])[0])]
    nearest = np.linalg.norm(points - points[chosen[0]], axis=1)
    for _ in range(len(rows) - 1):
        nearest[chosen[-1]] = -1.0  # chosen rows come no second time, equal ones do
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return [int(rows[position]) for position in chosen]


def find_knee(losses_NG: Floats) -> int | None:
    """Return the row of a front that is nearest to the best of every goal, each in ranges of the front.

    None for a front of fewer than MIN_FOR_KNEE rows. Of equally near ones the first row.
    """
    if len(losses_NG) < MIN_FOR_KNEE:
        return None
    spans_G = np.ptp(losses_NG, axis=0)
    scaled_NG = (losses_NG - losses_NG.min(axis=0)) / np.where(spans_G > 0, spans_G, 1.0)
    return int(np.linalg.norm(scaled_NG, axis=1).argmin())


def hypervolume(losses_NG: Floats, reference_G: Floats) -> float:
    """Return the volume that rows dominate below a reference point, of two or three goals.

    Rows that are not below the reference in every goal add nothing.
    """
    below_NG = losses_NG[np.all(losses_NG < reference_G, axis=1)]
    if len(reference_G) == 2:
        return _area(below_NG, reference_G)
    assert len(reference_G) == 3, "two or three goals"
    ordered_NG = below_NG[np.argsort(below_NG[:, 2])]
    ends = np.append(ordered_NG[1:, 2], reference_G[2])
    return sum(
        float(end - row[2]) * _area(ordered_NG[: number + 1, :2], reference_G[:2])
        for number, (row, end) in enumerate(zip(ordered_NG, ends, strict=True))
    )


def _area(losses_NG: Floats, reference_G: Floats) -> float:
    """Return the area that rows of two goals, all below the reference, dominate."""
    area, lowest = 0.0, float(reference_G[1])
    for first, second in losses_NG[np.lexsort(losses_NG.T[::-1])]:
        if second < lowest:
            area += float(reference_G[0] - first) * (lowest - float(second))
            lowest = float(second)
    return area
