"""The results of retraining in the report: tables, figures, headline, and lines for damaged files."""

import base64
import dataclasses
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from made_predictions import make_predictions
from made_studies import make_study
from optuna.storages import RDBStorage
from PIL import Image

from fbsearch.cli.app import main
from fbsearch.report.final_results import plot_comparison, plot_trainings, read_retrained
from fbsearch.report.mistakes import Errors, describe_calibration, plot_confusion
from fbsearch.report.page import write_report
from fbsearch.report.trials_table import trials_frame
from fbsearch.winners.error_analysis import ErrorAnalysis
from fbsearch.winners.predictions import PREDICTIONS_NAME, save_predictions
from fbsearch.winners.records import ColumnScore, Retraining
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


# Where it errs.


def write_predictions(*, class_names: tuple[str, ...] = ("cat", "dog", "fox"), num_seeds: int = 3) -> ErrorAnalysis:
    """The stored predictions of the seeds of `training`."""
    seeds = tuple(make_predictions(300, class_names=class_names, seed=seed) for seed in range(num_seeds))
    for seed, predictions in enumerate(seeds):
        save_predictions(FOLDER / "rank-1" / f"seed-{seed}", predictions)
    return ErrorAnalysis(seeds)


def test_report_shows_where_the_retrained_winner_errs(study: optuna.Study) -> None:
    columns = [ColumnScore(depth=d, accuracy=a, latency_ms=2.5, num_parameters=99) for d, a in ((1, 0.5), (0, 0.75))]
    with_columns = seed_result(0) | {"columns": [column.model_dump() for column in columns]}
    write_summary(training(study, results=[with_columns, seed_result(1), seed_result(2)]))
    analysis = write_predictions()
    page = Page(write_report(study))
    assert "errors" in page.ids and {"confusion", "reliability"} <= page.data["figures"].keys()
    assert "with 3 seeds. What each network said of the 300 test images was stored" in page.text
    low, high = analysis.macro_f1_interval or (0, 0)
    assert f"{analysis.macro_f1:.2%} macro-F1, {low:.2%} to {high:.2%}" in page.text
    assert f"{analysis.calibration.error:.2%} expected calibration error" in page.text
    hardest = analysis.hardest(1).iloc[0]
    assert f"{hardest['class']} {hardest['f1']:.1%} {100 * hardest['f1_low']:.1f} to" in page.text
    truth, said, images, count = analysis.confusions(1)[0]
    shown = f"{images:.1f}" if images < 9.95 and images % 1 else f"{images:.0f}"
    assert f"{truth} {said} {shown} of {count} {images / count:.2%}" in page.text
    surest = analysis.mistakes[0]
    assert f"is {surest.truth} said {surest.said} {surest.confidence:.1%}, {surest.share_of_truth:.1%}" in page.text
    pictures = [source for source in page.images if source.startswith("data:image/png")]
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in pictures]
    assert all(any(np.array_equal(mistake.image_HWC, one) for one in decoded) for mistake in analysis.mistakes)
    assert "depth 1 50.00% 2.50 99 whole network 75.00%" in page.text


def test_report_of_a_training_by_an_older_version_leaves_out_where_it_errs(study: optuna.Study) -> None:
    write_summary(training(study))
    page = Page(write_report(study))
    assert "errors" not in page.ids and "Where it errs" not in page.text and "retrained" in page.ids


def test_report_names_damaged_predictions_and_goes_on(study: optuna.Study) -> None:
    write_summary(training(study))
    write_predictions()
    path = FOLDER / "rank-1" / "seed-1" / PREDICTIONS_NAME
    path.write_bytes(path.read_bytes()[:-1])
    said: list[str] = []
    page = Page(write_report(study, say=said.append))
    assert len(said) == 1 and said[0].startswith(f"{path}: cannot be read (") and said[0] in page.text
    assert "errors" not in page.ids and "retrained" in page.ids


def test_report_escapes_the_names_of_classes(study: optuna.Study) -> None:
    write_summary(training(study))
    write_predictions(class_names=(SCRIPT, "b"))
    page = Page(write_report(study))
    assert SCRIPT in page.text and page.tags.count("script") == 3 and "<script>alert" not in page.source
    assert page.data["figures"]["confusion"]["layout"]["yaxis"]["ticktext"][0].startswith("&lt;script&gt;")


def test_confusion_figure_has_rows_of_truth_and_at_most_the_hardest_classes(study: optuna.Study) -> None:
    analysis = write_predictions()
    found = Errors(Retraining.model_validate(training(study)), analysis)
    right, wrong = plot_confusion(found).data
    shares = analysis.confusion_KK / analysis.confusion_KK.sum(axis=1)[:, None]
    both = np.where(np.isnan(right.z), wrong.z, right.z)
    np.testing.assert_allclose(both**2, shares)
    assert np.isnan(wrong.z.diagonal()).all() and np.isfinite(right.z.diagonal()).all()
    many = Errors(found.training, write_predictions(class_names=tuple(f"class {i:02}" for i in range(50))))
    figure = plot_confusion(many)
    assert figure.data[0].z.shape == (40, 40) and "of the 40 hardest classes" in figure.layout.title.text
    assert set(figure.layout.yaxis.ticktext) == set(many.analysis.hardest(40)["class"])


@pytest.mark.parametrize(("right", "said"), [(9, "no evidence"), (4, "is too sure"), (10, "is not sure enough")])
def test_report_says_whether_probabilities_can_be_believed(study: optuna.Study, right: int, said: str) -> None:
    labels_N, said_N = np.zeros(200, dtype=np.int32), np.repeat([0, 1], [20 * right, 200 - 20 * right]).astype(np.int32)
    one = dataclasses.replace(
        make_predictions(200), labels_N=labels_N, said_N=said_N, confidence_N=np.full(200, 0.9, dtype=np.float32)
    )
    found = Errors(Retraining.model_validate(training(study)), ErrorAnalysis((one,)))
    assert said in describe_calibration(found)
