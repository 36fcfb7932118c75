"""The score of replays: regret over virtual seconds, and the time to the final regret of a reference.

Means are interquartile means over the repeats, intervals those of the 2.5% and 97.5% quantiles of a bootstrap over the
repeats (Agarwal et al., arXiv 2108.13264). Arms share their repeats: repeat n shows all of them the same runs, so that
the bootstrap draws the same repeats for an arm and for the reference.

Shapes: R repeats, T times, D draws of the bootstrap.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fbsearch.bench.replay_records import ArmScore, Replay

NUM_TIMES = 128
NUM_DRAWS = 1000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """What all replays of a table with one number of workers have in common.

    `start_accuracy` is that of a random configuration, which counts while no trial is complete.
    """

    seconds: float
    best_accuracy: float
    start_accuracy: float

    @property
    def times_T(self) -> Floats:
        return self.seconds * np.arange(1, NUM_TIMES + 1) / NUM_TIMES

    def regrets(self, replays: Sequence[Replay]) -> Floats:
        """Return the regret of each replay over the times, [R, T]."""
        return np.array([self._regret(replay) for replay in replays])

    def _regret(self, replay: Replay) -> Floats:
        when, accuracies = zip(*replay.incumbents, strict=True) if replay.incumbents else ((), ())
        index_T = np.searchsorted(np.array(when), self.times_T, side="right")
        return self.best_accuracy - np.array([self.start_accuracy, *accuracies])[index_T]


def interquartile_mean(values: Floats, *, axis: int) -> Floats:
    """Return the mean of the middle half of the values along an axis."""
    count = values.shape[axis]
    cut = count // 4
    middle = np.take(np.sort(values, axis=axis), range(cut, count - cut), axis=axis)
    return np.asarray(middle.mean(axis=axis))


def score(replays: Sequence[Replay], reference: Sequence[Replay], scale: Scale) -> ArmScore:
    """Return the score of one arm's replays against those of the reference with as many workers, both by repeat."""
    count = min(len(replays), len(reference))
    ours_RT, theirs_RT = (scale.regrets(side[:count]) for side in (replays, reference))
    draws_DR = np.random.default_rng(0).integers(count, size=(NUM_DRAWS, count))
    ours_DT, theirs_DT = (interquartile_mean(side[draws_DR], axis=1) for side in (ours_RT, theirs_RT))
    ours_T, theirs_T = (interquartile_mean(side, axis=0)[None] for side in (ours_RT, theirs_RT))
    low_T, high_T = np.quantile(ours_DT, (0.025, 0.975), axis=0)
    # A quantile of ratios that may be infinite is one of them, not a mean of two.
    low, high = np.quantile(_ratios(ours_DT, theirs_DT), (0.025, 0.975), method="inverted_cdf")
    return ArmScore(
        name=replays[0].arm,
        workers=replays[0].num_workers,
        repeats=count,
        ratio=_finite(_ratios(ours_T, theirs_T)[0]),
        interval=(_finite(low), _finite(high)),
        regret=round(float(ours_T[0, -1]), 6),
        regret_interval=(round(float(low_T[-1]), 6), round(float(high_T[-1]), 6)),
        num_trials=statistics.fmean(replay.num_trials for replay in replays),
        num_complete=statistics.fmean(replay.num_complete for replay in replays),
        exact=statistics.fmean(replay.exact for replay in replays),
        search_seconds_per_trial=sum(r.search_seconds for r in replays) / max(1, sum(r.num_trials for r in replays)),
        curve=tuple(
            tuple(round(float(value), 6) for value in point)
            for point in zip(scale.times_T, ours_T[0], low_T, high_T, strict=True)
        ),
    )


def _ratios(ours_DT: Floats, theirs_DT: Floats) -> Floats:
    """Return the times at which each of our curves first reaches the end of theirs, over those at which theirs does."""
    goal_D = theirs_DT[:, -1:]
    return _first(ours_DT <= goal_D) / _first(theirs_DT <= goal_D)


def _first(is_there_DT: npt.NDArray[np.bool_]) -> Floats:
    """Return the number of the first time that is true, from 1; infinite without one."""
    return np.where(is_there_DT.any(axis=1), is_there_DT.argmax(axis=1) + 1.0, np.inf)


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
