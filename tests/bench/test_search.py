"""`bench search`: simulated workers keep to the executors' protocol, and the figures are those of a real search."""

import time

import pytest
from rich.console import Console

from fbsearch.bench.search import SimulatedExecutor, bench_search, print_search_bench
from fbsearch.config.models import TrainConfig, TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import Epoch, Event, Finished, Ready, Started, Stopped


def trial_config() -> TrialConfig:
    return StudyConfig(train=TrainConfig(epochs=3)).trial({}, seed=0)


def collect(executor: SimulatedExecutor, *ends: type[Event]) -> list[Event]:
    events: list[Event] = []
    while not any(isinstance(event, ends) for event in events):
        events += executor.events(timeout=1)
    return events


def test_simulated_worker_gives_a_trials_events_in_order_and_time() -> None:
    executor = SimulatedExecutor(num_workers=1, trial_seconds=0.2)
    executor.start()
    assert [type(event) for event in collect(executor, Ready)] == [Ready]
    started = time.monotonic()
    executor.submit(0, 7, trial_config())
    events = collect(executor, Finished)
    assert time.monotonic() - started >= 0.2
    assert [type(event) for event in events] == [Started, Epoch, Epoch, Epoch, Finished]
    assert executor.busy_seconds == 0.2


def test_simulated_worker_that_is_stopped_says_so_and_nothing_else() -> None:
    executor = SimulatedExecutor(num_workers=2, trial_seconds=100)
    executor.start()
    collect(executor, Ready)
    started = time.monotonic()
    executor.submit(0, 1, trial_config())
    executor.submit(1, 2, trial_config())
    executor.stop_trial(0)
    elapsed = time.monotonic() - started
    assert [(type(event), event.worker) for event in collect(executor, Stopped)][-1] == (Stopped, 0)
    assert 100 <= executor.busy_seconds <= 100 + elapsed


@pytest.mark.slow
def test_bench_search_gives_the_figures_of_every_part() -> None:
    said: list[str] = []
    report = bench_search(
        storage=None, sizes=[20], say=said.append, num_timed=6, num_short=16, num_rounds=1, long_seconds=0.5
    )
    assert len(said) == 3
    assert [row["size"] for row in report["trials"]] == [20]
    assert [row["num_trials"] for row in report["trials"]] == [6]
    for row in report["trials"]:
        assert row["cpu_seconds_per_trial"] > 0 and 50 < row["mib"] < 600
    assert (report["short"]["num_trials"], report["long"]["num_trials"]) == (16, 64)
    assert 0 < report["long"]["busy"] <= 1
    console = Console(record=True, width=150)
    print_search_bench(console, report)
    text = console.export_text()
    assert "64 of 0.5 s" in text and "nothing is trained" in text
