"""A search disturbed in any order stays whole, in a short form: `tests/property_tests.py` draws many more sequences."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from any_order import SearchInAnyOrder
from property_tests import run_sequences

from fbsearch.messages import FailureKind


@pytest.mark.slow
def test_search_disturbed_in_any_order_stays_whole(tmp_path: Path) -> None:
    counts = run_sequences(tmp_path, num_sequences=30, num_steps=20, is_same=True)
    assert counts["sequences to their end"] >= 30


@pytest.fixture
def search(tmp_path: Path) -> Iterator[SearchInAnyOrder]:
    """A search of 6 random trials with 3 workers that train; its end is checked."""
    SearchInAnyOrder.folder = tmp_path
    machine = SearchInAnyOrder()
    machine.begin(sampler="random", pruner="none", is_wide=True, has_limit=False, num_workers=3, num_trials=6)
    machine.work(num_rounds=2, accuracies=[0.4])
    yield machine
    machine.teardown()
    SearchInAnyOrder.close()


def test_search_interrupted_twice_while_its_database_is_locked_leaves_trials_that_the_next_command_puts_back(
    search: SearchInAnyOrder,
) -> None:
    search.die(number=0, kind=FailureKind.WORKER_DIED)
    search.lock_database()
    search.receive(numbers=[0])
    search.interrupt(is_twice=True)
    search.unlock_database()
    search.nothing_is_lost_or_wrong()
    assert search.command is None and search.left == {0, 1, 2}
    search.resume(num_trials=6)
    search.nothing_is_lost_or_wrong()
    states = {row.number: row.state for row in search._rows()}
    assert [states[number] for number in range(3)] == ["FAIL"] * 3 and not search.left


@pytest.mark.parametrize("statements", range(1, 45, 4))
def test_search_killed_while_it_stores_a_failure_counts_it_and_the_attempt(
    search: SearchInAnyOrder, statements: int
) -> None:
    search.die(number=0, kind=FailureKind.WORKER_DIED)
    search.kill_coordinator(statements=statements)
    search.receive(numbers=[0])
    search.nothing_is_lost_or_wrong()
    if search.command is not None:
        search.kill_coordinator(statements=0)
    search.resume(num_trials=6)
    search.nothing_is_lost_or_wrong()
