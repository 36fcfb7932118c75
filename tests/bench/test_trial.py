"""`bench trial` on a real small study: its figures are those of the run it watched."""

from pathlib import Path

import optuna
import pytest
import yaml
from rich.console import Console

from fbsearch.bench.plain import bench_against_plain, print_plain_bench
from fbsearch.bench.plain_search import search_plainly
from fbsearch.bench.trial import bench_trial, print_trial_bench
from fbsearch.config.study_file import StudyConfig, render_study
from fbsearch.errors import SearchError
from fbsearch.study.database import open_storage
from fbsearch.study.sampling import make_sampler, sample

STUDY = """
name: small
data: {limit: 200}
model: {base_channels: 4, fractal_levels: [1]}
train: {epochs: 4}
space: {train.learning_rate: {low: 0.003, high: 0.05, log: true}}
search: {pruner: none}
"""


@pytest.mark.slow
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


@pytest.mark.slow
def test_bench_trial_of_a_run_that_fails_says_why(tmp_path: Path) -> None:
    study_file = tmp_path / "study.yaml"
    study_file.write_text(STUDY.replace("{limit: 200}", "{name: folder, root: absent}"))
    with pytest.raises(SearchError, match="absent"):
        bench_trial(study_file, num_trials=1, repeats=1, workers="1", device="cpu")


@pytest.mark.slow
def test_against_plain_trains_the_same_trials_in_both(tmp_path: Path) -> None:
    study_file = tmp_path / "study.yaml"
    study_file.write_text(
        STUDY.replace("limit: 200", "limit: 40").replace("epochs: 4", "epochs: 1").replace("none", "median")
    )
    options = {"num_trials": 2, "repeats": 1, "workers": "1", "device": "cpu"}
    report = bench_against_plain(study_file, **options, say=lambda text: None)
    assert [(run["who"], run["pruner"]) for run in report["runs"]] == [
        ("fbsearch", "none"), ("plain script", "none"), ("fbsearch", "median"), ("plain script", "median"),
    ]  # fmt: skip
    for run in report["runs"]:
        assert run["num_trials"] == 2
        assert run["trials_per_hour"] == pytest.approx(2 * 3600 / run["search_seconds"])
        assert 0 < run["search_seconds"] < run["seconds"]
    assert set(report["ratios"]) == {"no pruning", "median against no pruning", "both median"}
    console = Console(record=True, width=120)
    print_plain_bench(console, report)
    assert "x the plain script's" in console.export_text()


@pytest.mark.slow
def test_plain_search_draws_the_configurations_that_fbsearch_draws(tmp_path: Path) -> None:
    config = StudyConfig.model_validate(yaml.safe_load(STUDY))
    config = config.model_copy(update={"search": config.search.model_copy(update={"sampler": "random"})})
    study_file = tmp_path / "study.yaml"
    study_file.write_text(render_study(config))
    url = f"sqlite:///{tmp_path}/plain.db"
    search_plainly(study_file, num_trials=3, storage=url, device="cpu")
    storage = open_storage(url)
    found = [trial.params for trial in optuna.load_study(study_name="small", storage=storage).trials]
    storage.engine.dispose()
    ours = optuna.create_study(sampler=make_sampler(config.search, num_trials=0))
    drawn = [ours.ask() for _ in range(3)]
    for trial in drawn:
        sample(trial, config)
    assert found == [trial.params for trial in drawn]
