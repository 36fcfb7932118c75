"""Timeline of a study: its trials in lanes, one for each worker, on a clock without pauses."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Timeline:
    """The time of each trial, in seconds of a clock that stops while no trial runs.

    `lanes` has a row for each trial that has ended: `trial`, `lane` (0, 1, ...), `start`, `end`. `names` are the names
    of the lanes. `pauses` are the times at which the clock stopped, with the seconds that it stood still. `is_derived`:
    the lanes do not come from stored workers.
    """

    lanes: pd.DataFrame
    names: list[str]
    pauses: list[tuple[float, float]]
    is_derived: bool = False

    @property
    def num_lanes(self) -> int:
        """The number of workers, or of trials that ran at once."""
        return len(self.names)

    @property
    def seconds(self) -> float:
        """The last time of the clock."""
        return float(self.lanes["end"].max()) if len(self.lanes) else 0.0

    @property
    def busy(self) -> float:
        """The share of all lanes' time in which trials ran."""
        ran = float((self.lanes["end"] - self.lanes["start"]).sum())
        return ran / max(1e-9, self.num_lanes * self.seconds)


def timeline(frame: pd.DataFrame, *, longest_pause: float = 60.0) -> Timeline:
    """Assign the trials to lanes, one for each worker; trials that no worker started are left out.

    Without stored workers (older versions of fbsearch) each trial takes the lane that became free last, which gives
    the workers' lanes up to their order if all workers are alike.
    """
    ended = frame[frame["started"].notna() & frame["ended"].notna()].sort_values(["started", "trial"])
    is_finished = ended["state"].isin(["complete", "pruned"])
    is_derived = bool(ended["worker"][is_finished].isna().any() or ended["worker"].isna().all())
    if not is_derived:
        ended = ended[ended["worker"].notna()]
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
    # The end of all earlier trials; a trial that starts long after it ends a pause.
    until = np.maximum.accumulate(np.append(0.0, ends[:-1]))
    idle = np.where(starts - until > longest_pause, starts - until, 0.0)
    skipped = idle.cumsum()
    pauses = [(until[i] - skipped[i] + idle[i], idle[i]) for i in np.flatnonzero(idle)]
    rows = {"trial": ended["trial"].to_numpy(), "lane": lanes, "start": starts - skipped, "end": ends - skipped}
    return Timeline(pd.DataFrame(rows), names, pauses, is_derived)


def _free_lanes(starts: NDArray[np.float64], ends: NDArray[np.float64]) -> list[int]:
    """Return the lane of each trial, in the order of their starts."""
    free: list[float] = []
    lanes = []
    for start, end in zip(starts, ends, strict=True):
        open_lanes = [lane for lane, time in enumerate(free) if time <= start]
        lane = max(open_lanes, key=lambda lane: free[lane]) if open_lanes else len(free)
        free[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
