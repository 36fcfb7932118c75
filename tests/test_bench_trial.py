"""`bench trial` on a real small study: its figures are those of the run it watched."""

from pathlib import Path

import pytest
from rich.console import Console

from fbsearch.bench_trial import bench_trial, print_trial_bench
from fbsearch.errors import SearchError

STUDY = """
name: small
data: {limit: 200}
model: {base_channels: 4, fractal_levels: [1]}
train: {epochs: 4}
space: {train.learning_rate: {low: 0.003, high: 0.05, log: true}}
search: {pruner: none}
"""


def test_bench_trial_gives_the_figures_of_a_run(tmp_path: Path) -> None:
    study_file = tmp_path / "study.yaml"
    study_file.write_text(STUDY)
    report = bench_trial(study_file, num_trials=4, repeats=1, workers="2", device="cpu")
    (run,) = report["runs"]
    assert (run["num_trials"], run["num_workers"]) == (4, 2)
    assert 0 < run["step_seconds"] + run["val_seconds"] < run["busy_seconds"] <= 2 * run["search_seconds"]
    assert run["seconds"] == pytest.approx(run["startup_seconds"] + run["search_seconds"])
    assert run["trials_per_hour"] == pytest.approx(4 * 3600 / run["search_seconds"])
    assert 0 < run["overhead_share"] < 1 and 0 <= run["idle_share"] < 1
    assert 50 < run["coordinator_mib"] < 500 < run["worker_mib"] + 400
    console = Console(record=True, width=120)
    print_trial_bench(console, report)
    assert "overhead_share" in console.export_text()


def test_bench_trial_of_a_run_that_fails_says_why(tmp_path: Path) -> None:
    study_file = tmp_path / "study.yaml"
    study_file.write_text(STUDY.replace("{limit: 200}", "{name: folder, root: absent}"))
    with pytest.raises(SearchError, match="absent"):
        bench_trial(study_file, num_trials=1, repeats=1, workers="1", device="cpu")
