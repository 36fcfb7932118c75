"""`bench race` on digits, a fraction of a second each: rows and curves, what is kept, and what is said of bad input."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fbsearch.bench.entrants import MAX_POINTS
from fbsearch.bench.race_records import Race, RaceRun, Standing, rank
from fbsearch.config.export_file import Export, dump_export
from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig

STUDY = "name: tiny\ndata: {limit: 100}\ntrain: {batch_size: 32}\n"
QUICK = ("--seeds", 1, "--device", "cpu", "--seconds", 0.3)
Fbsearch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def race(fbsearch: Fbsearch, study: Path) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        code, output, errors = fbsearch("bench", "race", "study.yaml", *QUICK, "--json", *arguments)
        assert code == 0, errors
        found: dict[str, Any] = json.loads(output)
        return found

    return run


def write_export(folder: Path, *models: ModelConfig, **changes: Any) -> Path:
    config = {
        "trial": 3, "value": 0.5, "num_parameters": 1, "num_classes": 10, "in_channels": 1, "image_size": 8, "seed": 5,
        "data": DataConfig(), "train": TrainConfig(epochs=4, batch_size=16, schedule="cosine", warmup_epochs=1),
    } | changes  # fmt: skip
    configs = [config | {"rank": number, "model": model} for number, model in enumerate(models, start=1)]
    content = {"study": "digits", "exported": "2026-11-20T00:00:00Z", "versions": {}, "configs": configs}
    path = folder / "best.yaml"
    path.write_text(dump_export(Export.model_validate(content, strict=False)))
    return path


SMALL_FRACTAL = ModelConfig(fractal_levels=(2,), base_channels=8, stem="conv3", global_attention="none")
COMMON = SMALL_FRACTAL.model_copy(update={"fractal_levels": (1,), "dynamics": "none"})


# What is measured


@pytest.mark.slow
def test_race_json_has_every_run_with_its_curve_and_the_machine(
    race: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = race("--networks", "cnn,small")
    assert found == json.loads((tmp_path / "reports" / "race" / "tiny" / "race.json").read_text())
    assert (found["format"], found["study"]) == ("fbsearch-race/1", "tiny")
    assert found["machine"]["num_threads"] == 1 and found["machine"]["versions"].keys() >= {"torch", "python"}
    assert (found["dataset"]["num_train"], found["dataset"]["num_val"]) == (80, 20)
    assert found["command"].startswith("fbsearch bench race study.yaml --seeds 1")
    assert [(run["entrant"], run["trained"], run["seed"]) for run in found["runs"]] == [
        ("cnn", "adamw 0.004", 0), ("small", "adamw 0.004", 0),
    ]  # fmt: skip
    for run in found["runs"]:
        seconds, accuracies = zip(*run["curve"], strict=True)
        assert list(seconds) == sorted(seconds) and seconds[0] > 0 and 1 <= len(seconds) <= MAX_POINTS
        assert run["val_accuracy"] == accuracies[-1] and all(0 <= accuracy <= 1 for accuracy in accuracies)
        assert run["num_images"] >= 16 * len(seconds)
        train = run["settings"]["train"]
        assert (train["batch_size"], train["optimizer"], train["schedule"]) == (32, "adamw", "one_cycle")
        assert train["budget"]["seconds"] == 0.3
    assert found["runs"][0]["settings"]["model"] == "cnn"
    assert found["runs"][1]["settings"]["model"]["fractal_levels"] == [2, 3]


@pytest.mark.slow
def test_race_of_an_export_trains_each_configuration_its_own_way(
    race: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    turned = DataConfig.model_validate({"augment": {"rotation": 10.0}})
    write_export(tmp_path, SMALL_FRACTAL, COMMON, data=turned)
    found = race("--networks", "", "--configs", "best.yaml")
    assert {run["entrant"] for run in found["runs"]} == {"rank 1", "rank 2"}
    for run in found["runs"]:
        train = run["settings"]["train"]
        assert (train["batch_size"], train["schedule"]) == (16, "cosine")
        assert run["settings"]["data"]["augment"]["rotation"] == 10
        assert train["warmup_epochs"] == MAX_POINTS / 4, "the same share of the run"
    remarks = {row["entrant"]: row["remark"] for row in found["table"]}
    assert remarks["rank 1"] == "" and "common convolutional network" in remarks["rank 2"]
    page = (tmp_path / "reports" / "race" / "tiny" / "README.md").read_text()
    assert "- rank 2 is a common convolutional network: " in page and "- rank 1 is" not in page


@pytest.mark.slow
def test_race_page_and_table_show_both_ways_and_the_figure(fbsearch: Fbsearch, study: Path, tmp_path: Path) -> None:
    code, output, errors = fbsearch(
        "bench", "race", "study.yaml", *QUICK, "--networks", "cnn", "--optimizers", "adamw,muon", "--output", "out"
    )
    assert code == 0, errors
    assert "cnn (adamw 0.004), 0.3 s, seed 0: " in errors and "cnn (muon 0.004), 0.3 s, seed 0: " in errors
    page = (tmp_path / "out" / "README.md").read_text()
    for shown in (output, page):
        assert "adamw 0.004" in shown and "muon 0.004" in shown and "0.3 s" in shown
    assert "The best: cnn (" in page and "![Validation accuracy over seconds of training](race.svg)" in page
    assert "The test split is not loaded" in page and "80 images to train, 20 to validate" in page
    assert (tmp_path / "out" / "race.svg").read_text().startswith("<svg")
    assert "test" not in json.loads((tmp_path / "out" / "race.json").read_text())["dataset"]


# What is kept


@pytest.mark.slow
def test_race_goes_on_with_what_is_left_and_keeps_the_rest(race: Callable[..., dict[str, Any]]) -> None:
    first = race("--networks", "cnn")
    again = race("--networks", "cnn")
    assert again["runs"] == first["runs"], "nothing is trained twice"
    more = race("--networks", "cnn,resnet8", "--seeds", 2)
    assert more["runs"][0] == first["runs"][0]
    assert [(run["entrant"], run["seed"]) for run in more["runs"]] == [
        ("cnn", 0), ("resnet8", 0), ("cnn", 1), ("resnet8", 1),
    ]  # fmt: skip
    other = race("--networks", "resnet8")
    assert other["runs"] == more["runs"], "runs of other flags stay"
    assert {row["entrant"] for row in other["table"]} == {"cnn", "resnet8"}


@pytest.mark.slow
def test_race_that_is_interrupted_keeps_finished_runs(study: Path, tmp_path: Path) -> None:
    arguments = ["study.yaml", *map(str, QUICK), "--networks", "cnn", "--seeds", "100", "--output", "out"]
    path = tmp_path / "out" / "race.json"

    def num_runs() -> int:
        return len(Race.model_validate_json(path.read_bytes()).runs) if path.exists() else 0

    with subprocess.Popen(
        [sys.executable, "-P", "-m", "fbsearch", "bench", "race", *arguments],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 240
        while num_runs() < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; the same command goes on with the runs that are left" in errors and "Traceback" not in errors
    assert 2 <= num_runs() < 100
    assert [run.seed for run in Race.model_validate_json(path.read_bytes()).runs] == list(range(num_runs()))


@pytest.mark.slow
def test_race_with_other_settings_in_the_same_folder_is_refused(
    race: Callable[..., dict[str, Any]], fbsearch: Fbsearch, study: Path, tmp_path: Path
) -> None:
    content = race("--networks", "cnn")
    command = ("bench", "race", "study.yaml", *QUICK, "--networks", "cnn")
    path = tmp_path / "reports" / "race" / "tiny" / "race.json"
    # A race of a version that did not have all fields of today goes on.
    for augment in (content["augment"], *(run["settings"]["data"]["augment"] for run in content["runs"])):
        del augment["rotation"], augment["mixup"]
    path.write_text(json.dumps(content))
    assert fbsearch(*command)[0] == 0
    before = path.read_bytes()
    study.write_text(STUDY.replace("32", "16"))
    code, _, errors = fbsearch(*command)
    assert code == 1 and "has cnn (adamw 0.004), 0.3 s, seed 0 with other settings" in errors
    assert "train.batch_size: 32 -> 16" in errors and "--output names another folder" in errors
    study.write_text(STUDY.replace("limit: 100", "limit: 90"))
    code, _, errors = fbsearch(*command)
    assert code == 1 and "is a race on other data (num_train: 80 -> 72)" in errors
    study.write_text(STUDY)
    code, _, errors = fbsearch(*command, "--threads", 2)
    assert code == 1 and "was measured on" in errors and "a second buys other work" in errors
    assert path.read_bytes() == before
    path.write_text("{")
    code, _, errors = fbsearch(*command)
    assert code == 1 and "race.json: cannot be read" in errors and "delete it to race anew" in errors


# What fails


@pytest.mark.slow
def test_race_runs_that_fail_are_rows_with_their_reason(
    race: Callable[..., dict[str, Any]], study: Path, tmp_path: Path
) -> None:
    study.write_text("name: tiny\ndata: {limit: 100, image_size: 4}\ntrain: {batch_size: 32}\n")
    found = race("--networks", "cnn,resnet8", "--rates", "0.004,1e30", "--optimizers", "sgd")
    failures = {(run["entrant"], run["trained"]): (run["failure_kind"], run["failure"]) for run in found["runs"]}
    kind, reason = failures["cnn", "sgd 0.004"]
    assert kind == "invalid_configuration" and "image_size is 4; the CNN halves the image 3 times" in reason
    assert failures["resnet8", "sgd 1e+30"][0] == "non_finite_loss"
    assert failures["resnet8", "sgd 0.004"] == (None, None)
    page = (tmp_path / "reports" / "race" / "tiny" / "README.md").read_text()
    assert "| cnn | sgd 0.004 |  |  | failed |" in page
    assert "failed: resnet8 (sgd 1e+30), 0.3 s, seed 0: the " in page and "loss is not finite" in page
    again = race("--networks", "cnn,resnet8", "--rates", "0.004,1e30", "--optimizers", "sgd")
    assert again["runs"] == found["runs"]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--networks", "cnn,vgg"), "--networks vgg: unknown; allowed: cnn, resnet8, fractalnet, resnet18, small"),
        (("--networks", ""), "--networks: nobody takes part; name networks, or an export with --configs"),
        (("--optimizers", "adamw,lion"), "--optimizers lion: unknown; allowed: adamw, adam"),
        (("--optimizers", ""), "--optimizers: names none; allowed: adamw, adam"),
        (("--configs", "none.yaml"), "none.yaml: no such file"),
        (("--device", "tpu"), "--device tpu"),
    ],
)
def test_race_bad_names_say_what_there_is(
    fbsearch: Fbsearch, study: Path, tmp_path: Path, arguments: tuple[str, str], message: str
) -> None:
    code, output, errors = fbsearch("bench", "race", "study.yaml", *arguments)
    assert (code, output) == (1, "")
    assert f"error: {message}" in errors
    assert not (tmp_path / "reports" / "race" / "tiny" / "race.json").exists()


@pytest.mark.parametrize("flag", ["--seconds", "--rates"])
@pytest.mark.parametrize("value", ["", "a", "0", "-1", "nan", "inf", "1,x"])
def test_race_numbers_that_are_none_are_wrong_usage(fbsearch: Fbsearch, study: Path, flag: str, value: str) -> None:
    code, _, errors = fbsearch("bench", "race", "study.yaml", f"{flag}={value}")
    assert code == 2 and "is not numbers above 0 joined by commas" in errors and flag in errors


def test_race_with_another_network_of_the_same_rank_is_refused(
    fbsearch: Fbsearch, race: Callable[..., dict[str, Any]], study: Path, tmp_path: Path
) -> None:
    first = ("--networks", "", "--configs", write_export(tmp_path, COMMON))
    race(*first)
    write_export(tmp_path, SMALL_FRACTAL, train=TrainConfig(learning_rate=0.002))
    code, _, errors = fbsearch("bench", "race", study.name, *QUICK, *first)
    assert code != 0 and "has another network under the name 'rank 1'" in errors and "`rank`" in errors


def test_race_of_configurations_for_other_images_is_refused(fbsearch: Fbsearch, study: Path, tmp_path: Path) -> None:
    write_export(tmp_path, SMALL_FRACTAL, num_classes=7)
    code, _, errors = fbsearch("bench", "race", "study.yaml", "--configs", "best.yaml")
    assert code == 1
    assert "best.yaml: rank 1: is for 1 x 8 x 8 images of 7 classes, the study's are 1 x 8 x 8 of 10" in errors


def test_race_writes_over_no_page_of_somebody_else(fbsearch: Fbsearch, study: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    code, _, errors = fbsearch("bench", "race", "study.yaml", "--output", ".")
    assert code == 1 and "README.md: is there already, and is no page of a race; --output names another" in errors
    assert (tmp_path / "README.md").read_text() == "mine"


# The table


def run_of(entrant: str, trained: str, seed: int, accuracy: float | None, *, budget: float = 1) -> RaceRun:
    key = {"entrant": entrant, "trained": trained, "budget_seconds": budget, "seed": seed, "settings": {}}
    return RaceRun(**key, val_accuracy=accuracy, failure=None if accuracy is not None else "diverged")


def row_of(entrant: str, trained: str) -> Standing:
    return Standing(entrant=entrant, note="", trained=trained, num_parameters=1, flops=1)


def test_rank_counts_the_better_way_and_puts_the_best_first() -> None:
    runs = [run_of("a", "x", 0, 0.5), run_of("a", "x", 1, 0.7), run_of("a", "y", 0, 0.8), run_of("a", "y", 1, 0.6)]
    runs += [run_of("b", "x", 0, 0.9), run_of("b", "x", 1, 0.9)]
    table = rank([row_of("a", "x"), row_of("a", "y"), row_of("b", "x")], runs)
    assert [(row.entrant, row.trained) for row in table] == [("b", "x"), ("a", "y"), ("a", "x")]
    scores = [row.scores[0] for row in table]
    assert [score.mean for score in scores] == pytest.approx([0.9, 0.7, 0.6])
    assert [score.std for score in scores] == pytest.approx([0, 0.02**0.5, 0.02**0.5])
    assert [score.counts for score in scores] == [True, True, False]


def test_rank_of_failed_and_missing_runs() -> None:
    runs = [run_of("a", "x", 0, None), run_of("a", "x", 1, 0.9), run_of("b", "x", 0, 0.5), run_of("b", "x", 1, 0.5)]
    runs.append(run_of("c", "x", 0, None))
    table = rank([row_of("c", "x"), row_of("a", "x"), row_of("b", "x"), row_of("d", "x")], runs)
    assert [row.entrant for row in table] == ["b", "a", "c", "d"], "those of all runs stand first"
    assert (table[1].scores[0].num_runs, table[1].scores[0].num_failed, table[1].scores[0].std) == (1, 1, None)
    assert (table[2].scores[0].mean, table[2].scores[0].num_failed) == (None, 1)
    assert table[3].scores == ()
