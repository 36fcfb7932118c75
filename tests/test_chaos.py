"""A study under sabotage ends whole, in a short form: `tests/chaos.py` runs it at length and writes the table."""

import gc
from pathlib import Path

import chaos
import pytest


def check(outcome: chaos.Outcome, num_trials: int) -> None:
    assert outcome.problems == []
    assert (outcome.num_finished, outcome.num_lost, outcome.num_duplicated) == (num_trials, 0, 0)
    assert sum(outcome.faults.values()) > 0


@pytest.mark.slow
def test_study_on_sqlite_under_sabotage_ends_whole(tmp_path: Path) -> None:
    # Files that change have tests of their own; here the fault comes at a moment that a busy machine decides.
    check(chaos.on_sqlite(tmp_path, seed=0, num_trials=16, num_workers=1, with_changed_files=False), 16)


@pytest.mark.slow
# The connections of who watches are cut with the server's.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_study_on_postgresql_under_sabotage_ends_whole(tmp_path: Path, postgres: object) -> None:
    check(chaos.on_postgresql(tmp_path, seed=0, num_trials=16, num_workers=1), 16)
    gc.collect()
