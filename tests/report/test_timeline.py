"""The timeline: lanes of stored workers, or lanes derived from the trials' times."""

import math
from collections.abc import Sequence

import pandas as pd
import pytest

from fbsearch.report.timeline import timeline


def times(*spans: tuple[float, float], workers: Sequence[float] | None = None) -> pd.DataFrame:
    """A frame of complete trials that ran from one second to another, of an older version without `workers`."""
    start = pd.Timestamp("2026-11-20 09:00")
    rows = [
        {"trial": n, "started": start + pd.Timedelta(seconds=a), "ended": start + pd.Timedelta(seconds=b)}
        for n, (a, b) in enumerate(spans)
    ]
    return pd.DataFrame(rows).assign(state="complete", worker=math.nan if workers is None else workers)


def test_timeline_puts_trials_that_overlap_into_lanes() -> None:
    found = timeline(times((0, 10), (1, 4), (5, 9), (10, 12)))
    assert list(found.lanes["lane"]) == [0, 1, 1, 0]
    assert (found.is_derived, found.names) == (True, ["lane 1", "lane 2"])
    assert (found.num_lanes, found.seconds, found.pauses) == (2, 12, [])
    assert found.busy == pytest.approx((10 + 3 + 4 + 2) / 24)


def test_timeline_cuts_out_a_pause() -> None:
    found = timeline(times((0, 10), (3610, 3620)))
    assert found.pauses == [(10, 3600)]
    assert list(found.lanes["start"]) == [0, 10]
    assert found.seconds == 20


def test_timeline_without_trials_is_empty() -> None:
    found = timeline(times((0, 1)).head(0))
    assert (found.num_lanes, found.seconds, found.busy) == (0, 0.0, 0.0)


def test_timeline_has_a_lane_for_each_worker_that_is_stored() -> None:
    frame = times((0, 10), (1, 4), (12, 20), workers=[1, 4, 4])
    found = timeline(frame)
    assert (found.is_derived, found.names) == (False, ["worker 1", "worker 4"])
    assert list(found.lanes["lane"]) == [0, 1, 1], "lane 0 has been free for longer, and is not taken"


def test_timeline_leaves_out_what_no_worker_has_begun() -> None:
    frame = times((0, 10), (1, 1), (2, 4), workers=[0, math.nan, 1])
    frame.loc[1, "state"] = "fail"
    assert list(timeline(frame).lanes["trial"]) == [0, 2]


def test_timeline_of_a_study_that_an_older_version_began_is_derived() -> None:
    found = timeline(times((0, 10), (1, 4), workers=[math.nan, 0]))
    assert (found.is_derived, list(found.lanes["lane"])) == (True, [0, 1])
