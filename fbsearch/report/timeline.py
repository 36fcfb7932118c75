"""Who worked when: the trials of a study in lanes, one for each worker, on a clock that leaves pauses out.

Takes the frame that `report.trials_frame` makes. Knows nothing of databases, figures and HTML.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Timeline:
    """When each trial ran, in seconds of a clock that stands still while nothing runs.

    `lanes` has a row for each trial that has ended: `trial`, `lane` (0, 1, ...), `start`, `end`. `names` say whose
    lane it is. `pauses` are the clock's times at which it stood still, with the seconds that passed meanwhile.
    """

    lanes: pd.DataFrame
    names: list[str]
    pauses: list[tuple[float, float]]
    is_derived: bool = False

    @property
    def num_lanes(self) -> int:
        """How many workers there were, or trials ran at once, at most."""
        return len(self.names)

    @property
    def seconds(self) -> float:
        """The clock's last time."""
        return float(self.lanes["end"].max()) if len(self.lanes) else 0.0

    @property
    def busy(self) -> float:
        """Seconds that trials ran, of the seconds that all lanes had."""
        ran = float((self.lanes["end"] - self.lanes["start"]).sum())
        return ran / max(1e-9, self.num_lanes * self.seconds)


def timeline(frame: pd.DataFrame, *, longest_pause: float = 60.0) -> Timeline:
    """Lay the trials out in lanes, one for each worker; what no worker has begun is left out.

    An older version of fbsearch has not stored the worker. Then each trial takes the lane that has been free for the
    shortest time: where workers differ in nothing these are theirs up to their order.
    """
    ended = frame[frame["started"].notna() & frame["ended"].notna()].sort_values(["started", "trial"])
    is_derived = bool(ended["worker"][ended["state"].isin(["complete", "pruned"])].isna().any())
    if not is_derived and ended["worker"].notna().any():
        ended = ended[ended["worker"].notna()]
    else:
        is_derived = True
    if not len(ended):
        return Timeline(pd.DataFrame(columns=["trial", "lane", "start", "end"]), [], [])
    first = ended["started"].min()
    starts = (ended["started"] - first).dt.total_seconds().to_numpy(dtype=float)
    ends = np.maximum(starts, (ended["ended"] - first).dt.total_seconds().to_numpy(dtype=float))
    if is_derived:
        lanes = _free_lanes(starts, ends)
        names = [f"lane {lane + 1}" for lane in range(max(lanes) + 1)]
    else:
        workers = sorted(ended["worker"].unique())
        lanes = [workers.index(worker) for worker in ended["worker"]]
        names = [f"worker {worker:.0f}" for worker in workers]
    skipped, until = 0.0, 0.0
    rows, pauses = [], []
    for number, lane, start, end in zip(ended["trial"], lanes, starts, ends, strict=True):
        if start - until > longest_pause:
            pauses.append((until - skipped, start - until))
            skipped += start - until
        until = max(until, end)
        rows.append({"trial": number, "lane": lane, "start": start - skipped, "end": end - skipped})
    return Timeline(pd.DataFrame(rows), names, pauses, is_derived)


def _free_lanes(starts: NDArray[np.float64], ends: NDArray[np.float64]) -> list[int]:
    """The lane of each trial, in the order of their starts."""
    free: list[float] = []
    lanes = []
    for start, end in zip(starts, ends, strict=True):
        open_lanes = [lane for lane, time in enumerate(free) if time <= start]
        lane = max(open_lanes, key=lambda lane: free[lane]) if open_lanes else len(free)
        free[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
