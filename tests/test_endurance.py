"""A search of short trials holds what it held before, in a short form: `tests/endurance.py` runs thousands."""

import json
from pathlib import Path

import endurance
import pytest

KINDS = ("coordinator_files", "coordinator_threads", "worker_files", "worker_threads")
# The growth that fails, a trial: far under a leak of one, and over what an open pipe or two make of a look.
MOST_GROWTH = 0.5


@pytest.mark.slow
def test_search_of_many_trials_keeps_no_file_and_no_thread_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/endurance.db"
    # One worker has all trials: of two, one may get most at first and the other later, and the most hides a leak.
    endurance.coordinate(url, num_trials=16, num_workers=1, every=4)
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert len(samples) == 4
    assert max(_growth(samples).values()) < MOST_GROWTH
    assert endurance.check(url, num_trials=16) == []


@pytest.mark.parametrize("kind", KINDS)
def test_growth_of_one_a_trial_is_seen_and_a_file_that_is_open_for_a_moment_is_none(kind: str) -> None:
    flat = [{"num_finished": n, **dict.fromkeys(KINDS, 9)} for n in (4, 8, 12, 16)]
    flat[3][kind] += 2
    assert max(_growth(flat).values()) < MOST_GROWTH
    leaking = [sample | {kind: sample[kind] + sample["num_finished"]} for sample in flat]
    assert _growth(leaking)[kind] >= 1


def _growth(samples: list[dict[str, int]]) -> dict[str, float]:
    """Return how many more of each kind there were at the last sample than at the first, a trial."""
    first, last = samples[0], samples[-1]
    return {kind: (last[kind] - first[kind]) / (last["num_finished"] - first["num_finished"]) for kind in KINDS}
