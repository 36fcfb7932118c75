"""The baselines, trained for real on a few digits: what is trained, what goes on after a kill, what may fail alone."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fbsearch.config.choices import BaselineName, BaselineRecipe
from fbsearch.config.export_file import Export, ExportedConfig, Searched, dump_export
from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig
from fbsearch.errors import ConfigError
from fbsearch.messages import ImageShape
from fbsearch.network.model import SIZES
from fbsearch.winners import baselines as room
from fbsearch.winners.baselines import BASELINES, Baselines, fit_size, paper_recipe, untuned
from fbsearch.winners.plan import RunError, Settings
from fbsearch.winners.progress import View
from fbsearch.winners.random_search import RandomSearch, search_randomly
from fbsearch.winners.retrain import Loader

MODEL = ModelConfig(fractal_levels=(1,), base_channels=8, stem="conv3", pattern_resolution=8)
TRAIN = TrainConfig(epochs=1, batch_size=32, precision="fp32")
DATA = DataConfig(limit=80)
# One image's forward FLOPs of MODEL with 4 channels, the smaller point of the space below, is less than this.
SMALL_FLOPS = 1_000_000


def make_export(*, train_flops: int = 0, num_points: int = 2, **train: Any) -> Export:
    config = {
        "rank": 1, "trial": 3, "value": 0.5, "num_parameters": 1, "num_classes": 10, "in_channels": 1, "image_size": 8,
        "seed": 5, "data": DATA, "model": MODEL, "train": TRAIN.model_copy(update=train),
    }  # fmt: skip
    content: dict[str, Any] = {
        "study": "digits",
        "exported": "2026-11-20T00:00:00Z",
        "versions": {},
        "configs": [config],
    }
    if train_flops:
        space = {"model.base_channels": {"choices": [4, 8][:num_points]}}
        compute = {"num_trials": 3, "num_epochs": 3, "train_flops": train_flops, "seconds": 1.0}
        content["search"] = {"model": MODEL, "train": TRAIN, "space": space, "compute": compute}
    return Export.model_validate(content, strict=False)


def make_view() -> View:
    return View(Console(file=sys.stderr))


def searched(export: Export) -> tuple[Searched, ExportedConfig]:
    assert export.search is not None
    return export.search, export.configs[0]


def random_search(export: Export, folder: Path) -> RandomSearch:
    view = make_view()
    with view:
        return search_randomly("digits", *searched(export), folder, load=Loader("cpu", say=view.say), view=view)


# The random search.


def test_random_search_spends_the_searchs_flops_and_no_more(tmp_path: Path) -> None:
    found = random_search(make_export(train_flops=64 * 2 * SMALL_FLOPS), tmp_path / "draws")
    assert len(found.draws) >= 2 and 0 < found.spent <= 1
    assert {draw.config.data for draw in found.draws} == {DATA}
    assert [draw.config.seed for draw in found.draws] == list(range(len(found.draws)))
    assert len(list((tmp_path / "draws").glob("draw-*.json"))) == len(found.draws)
    best = max(draw.val_accuracy or 0 for draw in found.draws)
    assert found.best.val_accuracy == best
    assert all(draw.train_flops == draw.epochs * 64 * _flops(draw.config.model) for draw in found.draws)


def _flops(model: ModelConfig) -> int:
    from fbsearch.training.requirements import measure_cost

    return measure_cost(model, ImageShape(num_classes=10, in_channels=1, image_size=8)).flops


def test_random_search_trains_one_draw_however_small_the_budget(tmp_path: Path) -> None:
    found = random_search(make_export(train_flops=1), tmp_path)
    assert len(found.draws) == 1 and found.spent > 1


def test_random_search_killed_goes_on_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fbsearch.winners import random_search as search_room

    export = make_export(train_flops=64 * 2 * SMALL_FLOPS)
    whole = random_search(export, tmp_path / "whole")
    real = search_room._train
    numbers: list[int] = []

    def train(run: Any, number: int, *args: Any, **kwargs: Any) -> Any:
        numbers.append(number)
        if numbers == [0, 1]:
            raise KeyboardInterrupt
        return real(run, number, *args, **kwargs)

    monkeypatch.setattr(search_room, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        random_search(export, tmp_path / "killed")
    again = random_search(export, tmp_path / "killed")
    assert numbers == [0, 1, *range(1, len(whole.draws))], "the finished draw is not trained again"
    assert [(d.config, d.val_accuracy) for d in again.draws] == [(d.config, d.val_accuracy) for d in whole.draws]


def test_random_search_of_another_space_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    random_search(make_export(train_flops=1, num_points=1), tmp_path)
    with pytest.raises(ConfigError, match=r"draw-0001\.json: belongs to a random search of another space"):
        export = make_export(train_flops=1)
        search, _ = searched(export)
        other = search.model_copy(update={"train": TRAIN.model_copy(update={"batch_size": 16})})
        random_search(export.model_copy(update={"search": other}), tmp_path)
    (tmp_path / "draw-0001.json").write_text("{")
    with pytest.raises(ConfigError, match=r"draw-0001\.json: cannot be read .*delete .* to search again"):
        random_search(make_export(train_flops=1, num_points=1), tmp_path)


def test_random_search_of_draws_that_diverge_says_so(tmp_path: Path) -> None:
    export = make_export(train_flops=1)
    search, _ = searched(export)
    wild = TrainConfig(epochs=1, batch_size=8, learning_rate=1e30, schedule="constant", optimizer="sgd")
    found = random_search(export.model_copy(update={"search": search.model_copy(update={"train": wild})}), tmp_path)
    assert found.draws[0].failure is not None and found.draws[0].train_flops > 0
    with pytest.raises(RunError, match="none of 1 draws could be trained: the training loss is not finite"):
        _ = found.best


# How baselines are trained.


@pytest.mark.slow
def test_fit_size_shrinks_only_what_cannot_be_built() -> None:
    def shape(image_size: int) -> ImageShape:
        return ImageShape(num_classes=10, in_channels=1, image_size=image_size)

    assert fit_size(SIZES["medium"], shape(8)) == (SIZES["medium"], "")
    model, change = fit_size(SIZES["medium"], shape(4))
    assert (model.stem, model.fractal_levels, change) == ("auto", (2, 3, 4), ", stem auto")
    model, change = fit_size(SIZES["medium"], shape(2))
    assert (model.fractal_levels, change) == ((2, 3), ", stem auto, only 2 of 3 stages")


def test_recipes_take_only_what_is_no_tuning_from_rank_1() -> None:
    rank_1 = TrainConfig(epochs=30, learning_rate=0.5, batch_size=16, precision="fp32", keep_best=True)
    kept = TrainConfig(epochs=30, precision="fp32", keep_best=True)
    assert untuned(rank_1) == kept.model_copy(update={"optimizer": "adam", "learning_rate": 0.001, "weight_decay": 0})
    paper = paper_recipe(rank_1)
    assert (paper.epochs, paper.batch_size, paper.optimizer, paper.learning_rate) == (400, 100, "sgd", 0.02)
    assert (paper.schedule, paper.weight_decay, paper.keep_best) == ("halving", 0, True)


def make_baselines(export: Export, folder: Path, **settings: Any) -> Baselines:
    view = make_view()
    return Baselines(
        export, folder / "best.yaml", export.configs[0], Settings(num_seeds=1, output=folder, **settings),
        BaselineRecipe.SAME,
        load=Loader("cpu", say=view.say), view=view,
    )  # fmt: skip


@pytest.mark.slow
def test_baselines_that_fail_fail_alone_with_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_baselines(make_export(), tmp_path)
    monkeypatch.setattr(room, "BASELINES", ("small", "medium", "random_search"))
    real = room.retrain

    def runs_out_of_memory(runs: Any, **kwargs: Any) -> Any:
        if runs[0].baseline == "medium":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(runs, **kwargs)

    monkeypatch.setattr(room, "retrain", runs_out_of_memory)
    small, medium, search = made.train()
    assert medium.failure is not None and medium.failure.startswith("out of memory") and medium.results == ()
    assert small.failure is None and small.results[0].baseline == "small"
    assert (
        search.failure
        == f"{tmp_path / 'best.yaml'} has no section `search`; export the study again: `fbsearch export` writes it now"
    )


# The command.

Fbsearch = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_train_with_baselines_compares_all_and_trains_nothing_twice(fbsearch: Fbsearch, tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text(dump_export(make_export(train_flops=64 * SMALL_FLOPS)))
    arguments = ["train", "best.yaml", "--seeds", 2, "--device", "cpu", "--baselines", "--baseline-recipe", "paper"]
    code, output, errors = fbsearch(*arguments, "--epochs", 1, "--json")
    assert code == 0, errors
    comparison = json.loads(output)["comparison"]
    folder = tmp_path / "reports" / "digits"
    assert json.loads((folder / "comparison.json").read_text()) == comparison
    assert comparison["recipe"] == "paper" and comparison["scored_on"] == "test"
    rows = {row["name"]: row for row in comparison["rows"]}
    assert list(rows) == ["rank 1", *BASELINES]
    assert [row["failure"] for row in rows.values()] == [None] * (1 + len(BASELINES))
    assert rows["rank 1"]["verdict"] == "reference"
    assert {row["verdict"] for row in comparison["rows"][1:]} <= {"better", "worse", "no clear difference"}
    assert rows["fractalnet"]["num_parameters"] == 4_213_066
    assert "3 blocks of 3 columns, 64-128-256 channels; its paper's recipe, 1 epoch" in rows["fractalnet"]["note"]
    assert len(json.loads(output)["configs"]) == 1, "the summary is of the exported configurations"

    parts = ("rank-1", *(f"baseline-{name}" for name in BASELINES))
    seeds = {str(path.parent.relative_to(folder)) for path in folder.glob("*/*/result.json")}
    assert seeds == {f"{part}/seed-{seed}" for seed in (5, 6) for part in parts}
    results = {path.parent.parent.name: json.loads(path.read_text()) for path in folder.glob("*/seed-5/result.json")}
    assert {result["num_images"] for result in results.values()} == {360}
    assert results["baseline-fractalnet"]["settings"]["model"] == "fractalnet"
    assert results["baseline-fractalnet"]["settings"]["train"]["schedule"] == "halving"
    assert results["baseline-resnet18"]["settings"]["train"] == results["rank-1"]["settings"]["train"]
    with (folder / "baseline-medium" / "seed-5" / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1

    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/result.json")}
    code, output, _ = fbsearch(*arguments, "--epochs", 1)
    assert code == 0 and "vs rank 1" in output and "Welch's t" in output
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.slow
def test_train_of_named_baselines_killed_goes_on_after_the_last_epoch(fbsearch: Fbsearch, tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text(dump_export(make_export(epochs=12)))
    arguments = [
        "train",
        "best.yaml",
        "--seeds",
        "1",
        "--device",
        "cpu",
        "--baseline",
        "small",
        "--baseline",
        "resnet18",
    ]
    folder = tmp_path / "reports" / "digits" / "baseline-resnet18" / "seed-5"

    def num_epochs() -> int:
        return len((folder / "metrics.csv").read_text().splitlines()) - 1 if (folder / "metrics.csv").exists() else 0

    with subprocess.Popen([sys.executable, "-m", "fbsearch", *arguments], cwd=tmp_path) as process:
        deadline = time.monotonic() + 120
        while num_epochs() < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    done = num_epochs()
    assert 2 <= done < 12 and not (folder / "result.json").exists()
    code, output, errors = fbsearch(*arguments, "--json")
    assert code == 0, errors
    # The state is written before the row, and may be an epoch ahead of it.
    assert f"going on after epoch {done}\n" in errors or f"going on after epoch {done + 1}\n" in errors
    assert num_epochs() == 12
    assert [row["name"] for row in json.loads(output)["comparison"]["rows"]] == ["rank 1", "resnet18", "small"]


def test_every_baseline_has_a_name_on_the_command_line() -> None:
    assert tuple(BaselineName) == BASELINES
