"""The results of retraining in the report: tables, figures, headline, and lines for damaged files."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_studies import make_study
from optuna.storages import RDBStorage

from fbsearch.cli.app import main
from fbsearch.report.final_results import plot_comparison, plot_trainings, read_retrained
from fbsearch.report.page import write_report
from fbsearch.report.trials_table import trials_frame
from tests.report.test_page import SCRIPT, Page

FOLDER = Path("reports/digits")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FBSEARCH_STORAGE", raising=False)
    FOLDER.mkdir(parents=True)
    return tmp_path


@pytest.fixture
def study(storage: RDBStorage) -> optuna.Study:
    return make_study(storage, 12)


def seed_result(seed: int) -> dict[str, Any]:
    return {
        "format": "fbsearch-result/1", "study": "digits", "baseline": None, "rank": 1, "trial": 0, "search_value": 0.9,
        "seed": seed, "scored_on": "test", "accuracy": 0.94 + seed / 100, "loss": 0.1, "num_images": 360,
        "val_accuracy": None, "epochs": 30, "seconds": 75.0, "images_per_second": 2000.0, "num_parameters": 24000,
        "flops": 2400000, "fit": "", "device": "cpu", "versions": {}, "settings": {}, "columns": [],
    }  # fmt: skip


def training(study: optuna.Study, **changes: Any) -> dict[str, Any]:
    """A row of summary.json as `fbsearch train` writes it, of the best trial."""
    best = study.best_trial
    row = {
        "rank": 1, "trial": best.number, "search_value": best.value, "scored_on": "test", "num_seeds": 3,
        "accuracy_mean": 0.95, "accuracy_std": 0.01, "accuracy_min": 0.94, "accuracy_max": 0.96,
        "num_parameters": 24000, "flops": 2400000, "epochs": 30, "seconds_mean": 75.0,
        "images_per_second_mean": 2000.0,
        "results": [seed_result(seed) for seed in range(3)],
    }  # fmt: skip
    return row | changes


def competitor(**changes: Any) -> dict[str, Any]:
    row = {
        "name": "ResNet-20", "kind": "baseline", "accuracy_mean": 0.931, "accuracy_std": 0.004, "num_seeds": 3,
        "num_parameters": 272474, "flops": 81000000, "images_per_second_mean": 410.0, "seconds_mean": 61.0,
        "verdict": "worse than the winner", "note": "", "failure": None,
    }  # fmt: skip
    return row | changes


def write_comparison(*rows: dict[str, Any], **changes: Any) -> None:
    conditions = {"device": "cpu", "num_threads": 1, "machine": "x86_64", "versions": {}, "num_images": 360}
    content = {
        "format": "fbsearch-comparison/1", "study": "digits", "scored_on": "test", "epochs": 30, "num_seeds": 3,
        "recipe": "same", "rule": "", "conditions": conditions, "rows": list(rows),
    }  # fmt: skip
    (FOLDER / "comparison.json").write_text(json.dumps(content | changes))


def write_summary(*rows: dict[str, Any]) -> None:
    (FOLDER / "summary.json").write_text(json.dumps(rows))


def test_report_puts_the_test_score_beside_the_searchs(study: optuna.Study) -> None:
    write_summary(training(study))
    page = Page(write_report(study))
    assert "Test accuracy, retrained 95.00% ± 1.00%" in page.text
    assert "mean and standard deviation of 3 seeds, 30 epochs; the score to quote" in page.text
    assert "expect a lower accuracy on new images: the test accuracy after retraining." in page.text
    assert "retrained" in page.ids and "trainings" in page.data["figures"]
    marks = page.data["figures"]["trainings"]["data"]
    assert [trace["name"] for trace in marks] == ["a seed", "in the search, validation", marks[-1]["name"]]


def test_report_says_the_budget_of_a_training_that_had_one(study: optuna.Study) -> None:
    budget = {"settings": {"train": {"budget": {"seconds": 60}}}}
    write_summary(training(study, results=[seed_result(0) | budget]))
    write_comparison(competitor())
    page = Page(write_report(study))
    assert "3 seeds, 60 s of training steps; the score to quote" in page.text
    assert "on the same data for 60 s of training steps and scored" in page.text


def test_report_of_one_seed_without_a_test_split_says_so(study: optuna.Study) -> None:
    write_summary(training(study, scored_on="validation", num_seeds=1, accuracy_std=None))
    page = Page(write_report(study))
    assert "Validation accuracy, retrained 95.00% one seed, 30 epochs; there is no test split" in page.text
    assert "Test accuracy" not in page.text and "A search does not touch the test split." in page.text


def test_report_without_retraining_has_no_such_section(study: optuna.Study) -> None:
    page = Page(write_report(study))
    assert "retrained" not in page.ids and "After the search" not in page.text


def test_report_shows_winner_and_baselines(study: optuna.Study) -> None:
    failed = competitor(name="huge", accuracy_mean=None, accuracy_std=None, failure="out_of_memory: no memory left")
    winner = competitor(name="FractalBrainNet", kind="winner", accuracy_mean=0.95, verdict="reference")
    write_comparison(winner, competitor(), failed)
    page = Page(write_report(study))
    assert "FractalBrainNet (winner) 95.00% ± 0.40%" in page.text and "paper's recipe" not in page.text
    assert "ResNet-20 93.10% ± 0.40% 3 272,474 81,000,000 410 1 min 1 s worse than the winner" in page.text
    assert "huge not trained: out_of_memory: no memory left" in page.text
    (trace,) = page.data["figures"]["comparison"]["data"]
    assert trace["y"] == ["FractalBrainNet", "ResNet-20"]
    write_comparison(winner, competitor(), recipe="paper")
    assert "FractalNet is trained by its paper's recipe instead" in Page(write_report(study)).text


def test_figures_have_error_bars_of_the_seeds(study: optuna.Study) -> None:
    write_summary(training(study))
    write_comparison(competitor(accuracy_std=None, num_seeds=1), competitor(name="b", accuracy_mean=math.nan))
    found = read_retrained(FOLDER, trials_frame(study))
    assert found.damaged == [] and found.comparison is not None
    *_, means = plot_trainings(found.trainings).data
    assert (list(means.x), list(means.error_x.array)) == ([95.0], [1.0])
    (means,) = plot_comparison(found.comparison).data
    assert (list(means.y), list(means.error_x.array)) == (["ResNet-20"], [0.0])


def test_report_escapes_what_the_files_say(study: optuna.Study) -> None:
    write_comparison(competitor(name=SCRIPT, verdict=SCRIPT, note=SCRIPT), competitor(failure=SCRIPT))
    page = Page(write_report(study))
    assert page.text.count(SCRIPT) == 4
    assert page.tags.count("script") == 3 and "<script>alert" not in page.source
    (trace,) = page.data["figures"]["comparison"]["data"]
    assert trace["y"][0].startswith("&lt;script&gt;")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", b"[{", "Invalid JSON"),
        ("summary.json", b"{}", "valid array"),
        ("summary.json", b'[{"rank": 1}]', "0.trial: Field required"),
        ("comparison.json", b"\xff\x00", "Invalid JSON"),
        ("comparison.json", b'{"format": "fbsearch-comparison/9"}', "format: Input should be"),
    ],
)
def test_report_names_a_damaged_file_and_goes_on(
    study: optuna.Study, name: str, content: bytes, said: str, capsys: pytest.CaptureFixture[str], url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (FOLDER / name).write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["fbsearch", "report", "--storage", url])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"warning: reports/digits/{name}: cannot be read (") and said in line
    page = Page(Path("reports/digits.html"))
    assert f"reports/digits/{name}: cannot be read" in page.text and "retrained" not in page.ids


def test_report_of_a_file_that_is_a_folder_names_it(study: optuna.Study) -> None:
    (FOLDER / "summary.json").mkdir()
    said: list[str] = []
    write_report(study, say=said.append)
    assert said == ["reports/digits/summary.json: cannot be read (Is a directory); it is left out"]


def test_report_leaves_out_the_training_of_another_search(study: optuna.Study) -> None:
    write_summary(training(study, search_value=0.123), training(study, trial=1), training(study, trial=99))
    page = Page(write_report(study))
    assert page.text.count("is of another search") == 3 and "retrained" not in page.ids
