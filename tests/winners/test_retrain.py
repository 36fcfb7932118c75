"""Long runs: what is killed goes on as if nothing had been, what is finished stays, what cannot be is refused."""

import contextlib
import csv
import dataclasses
import datetime
import io
import json
import math
import multiprocessing
import multiprocessing.process
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fbsearch.cli.app import main
from fbsearch.config.export_file import Export, dump_export
from fbsearch.config.models import AugmentConfig, DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.data.dataset import Dataset, Split, load_dataset
from fbsearch.files import file_name
from fbsearch.messages import EpochStats
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import prepare_device
from fbsearch.training.evaluation import evaluate
from fbsearch.training.loop import train
from fbsearch.training.run import TrainState
from fbsearch.winners.checkpoint import load_model
from fbsearch.winners.plan import Run, plan_runs
from fbsearch.winners.plan import Settings as RunSettings
from fbsearch.winners.predictions import load_predictions
from fbsearch.winners.results import judge_fit, read_result, summarize
from fbsearch.winners.retrain import Loader, prepare

MODEL = ModelConfig(fractal_levels=(1, 1), base_channels=8, stem="conv3", pattern_resolution=8)
DATA = DataConfig(limit=300)
MEASURED = ("seconds", "step_seconds", "val_seconds", "images_per_second", "memory_mib")
Fbsearch = Callable[..., tuple[int, str, str]]

STUDY = "di/gits"
FOLDER = file_name(STUDY)


def make_export(
    num_configs: int = 1, *, data: DataConfig = DATA, shape: tuple[int, int, int] = (10, 1, 8), **model: Any
):
    """An export of small configurations, and settings of its training in `model` where TrainConfig knows them."""
    settings = {name: model.pop(name) for name in list(model) if name in TrainConfig.model_fields}
    values = {"epochs": 2, "batch_size": 32, "learning_rate": 0.02} | settings
    num_classes, in_channels, image_size = shape
    configs = [
        {
            "rank": rank, "trial": 10 + rank, "value": 0.9 - rank / 100, "num_parameters": 1234, "seed": 7,
            "num_classes": num_classes, "in_channels": in_channels, "image_size": image_size,
            "data": data, "model": MODEL.model_copy(update=model), "train": TrainConfig(**values),
        }
        for rank in range(1, num_configs + 1)
    ]  # fmt: skip
    exported = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
    return Export.model_validate({"study": STUDY, "exported": exported, "versions": {}, "configs": configs})


def write_export(folder: Path, export: Export) -> None:
    (folder / "best.yaml").write_text(dump_export(export), encoding="utf-8")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(path: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in read_csv(path)]


# The trainer: a run that goes on from a state gives the numbers of one that was never stopped.


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DATA)


def saved(state: TrainState) -> bytes:
    file = io.BytesIO()
    torch.save(dict(state), file)
    return file.getvalue()


def resumed(content: bytes) -> TrainState:
    state: TrainState = torch.load(io.BytesIO(content), weights_only=True)
    return state


def numbers(history: list[EpochStats]) -> list[tuple[float, ...]]:
    return [(s.epoch, s.train_loss, s.train_accuracy, s.val_loss, s.val_accuracy, s.learning_rate) for s in history]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "schedule", "more"),
    [
        ("adamw", "one_cycle", {}),
        ("sgd", "cosine", {"warmup_epochs": 1.5, "keep_best": True}),
        ("rmsprop", "constant", {"early_stopping": 2, "keep_best": True, "learning_rate": 0.05}),
        ("adam", "one_cycle", {"precision": "bf16"}),
        ("muon", "one_cycle", {"class_weights": "balanced"}),
    ],
)
def test_train_resumed_after_any_epoch_gives_the_same_numbers(
    digits: Dataset, optimizer: str, schedule: str, more: dict[str, Any]
) -> None:
    settings = {"epochs": 5, "batch_size": 32, "learning_rate": 0.01, "optimizer": optimizer, "schedule": schedule}
    model = MODEL.model_copy(update={"drop_path": "mixed", "fractal_levels": (2,)})
    augment = {"flip": True, "shift": 1}
    if optimizer in ("adam", "muon"):
        augment |= {"rotation": 10, "scale": 0.1, "colour": 0.2, "erasing": 0.5, "mixup": 0.2, "cutmix": 1.0}
    data = DataConfig.model_validate({"limit": 300, "augment": augment})
    config = TrialConfig(data=data, model=model, train=TrainConfig(**(settings | more)), seed=3)

    def new_net() -> FractalBrainNet:
        torch.manual_seed(config.seed)
        return FractalBrainNet(model, num_classes=10, in_channels=1)

    states: list[bytes] = []
    whole = new_net()
    history = list(train(whole, config, digits, save_state=lambda _, state: states.append(saved(state))))
    assert len(states) == len(history) >= 3
    for epoch in (1, len(history) - 1, len(history)):
        torch.manual_seed(99)  # what a new process draws before must not matter
        net = FractalBrainNet(model, num_classes=10, in_channels=1)
        rest = list(train(net, config, digits, resume_from=resumed(states[epoch - 1])))
        assert numbers(rest) == numbers(history[epoch:])
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_train_resumed_on_a_gpu_gives_the_same_numbers() -> None:
    model = MODEL.model_copy(update={"drop_path": "mixed", "fractal_levels": (2,)})
    config = TrialConfig(data=DATA, model=model, train=TrainConfig(epochs=4, batch_size=32))
    data = load_dataset(DATA, device="cuda")
    prepare_device(torch.device("cuda"))
    states: list[bytes] = []
    history = list(train(build(model).cuda(), config, data, save_state=lambda _, state: states.append(saved(state))))
    rest = list(train(build(model).cuda(), config, data, resume_from=resumed(states[1])))
    assert numbers(rest) == numbers(history[2:])


def build(model: ModelConfig) -> FractalBrainNet:
    torch.manual_seed(0)
    return FractalBrainNet(model, num_classes=10, in_channels=1)


# The command: killed, gone on, finished.


def metrics_rows(folder: Path) -> int:
    try:
        return len(read_csv(folder / "metrics.csv"))
    except FileNotFoundError:
        return 0


def run_command(folder: Path, *arguments: str) -> None:
    """`fbsearch ARGUMENTS` in `folder`, as the whole of a process; what it prints goes to output.txt there."""
    os.chdir(folder)
    sys.argv = ["fbsearch", *arguments]
    with Path("output.txt").open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        main()


def start_command(folder: Path, *arguments: str) -> multiprocessing.process.BaseProcess:
    """The same in a new process, a copy of one that has imported torch, so that it trains after 0.1 instead of 5 s."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fbsearch.winners.retrain", "torch._dynamo"])
    process = context.Process(target=run_command, args=(folder, *arguments))
    process.start()
    return process


@pytest.mark.slow
def test_train_killed_at_any_moment_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """SIGKILL at random moments; then the files are those of an uninterrupted run, byte by byte."""
    write_export(tmp_path, make_export(epochs=16, drop_path="mixed", fractal_levels=(2,)))
    command = ["train", "best.yaml", "--seeds", "1", "--device", "cpu", "--output"]
    process = start_command(tmp_path, *command, "whole")
    process.join()
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()
    rng = random.Random(0)
    folder = tmp_path / "killed" / FOLDER / "rank-1" / "seed-7"
    done = 0
    for goal in (0, 1, 4, 8):
        process = start_command(tmp_path, *command, "killed")
        while metrics_rows(folder) < goal and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        output = (tmp_path / "output.txt").read_text()
        assert process.exitcode == -signal.SIGKILL, output
        assert not (folder / "result.json").exists()
        # The state is written before the row, so that it may be one epoch ahead of the rows, and never behind.
        assert goal <= metrics_rows(folder) < 16 and done <= metrics_rows(folder)
        done = metrics_rows(folder)
    process = start_command(tmp_path, *command, "killed")
    process.join()
    output = (tmp_path / "output.txt").read_text()
    assert f"going on after epoch {done}\n" in output or f"going on after epoch {done + 1}\n" in output
    other = tmp_path / "whole" / FOLDER / "rank-1" / "seed-7"
    for name in ("model.safetensors", "model.yaml", "confusion.csv", "classes.csv", "predictions.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert without_times(folder / "metrics.csv") == without_times(other / "metrics.csv")
    results = [json.loads((path / "result.json").read_text()) for path in (folder, other)]
    assert results[0]["accuracy"] == results[1]["accuracy"] and results[0]["loss"] == results[1]["loss"]
    left = {path.name for path in folder.iterdir() if not path.name.endswith(".partial")}
    assert left == {path.name for path in other.iterdir()} and "training.pt" not in left


@pytest.mark.slow
def test_train_writes_all_results_and_trains_a_finished_seed_no_more(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(2, epochs=2, drop_path="global", fractal_levels=(2, 1)))
    code, output, errors = fbsearch("train", "best.yaml", "--top", 2, "--seeds", 2, "--device", "cpu")
    assert (code, errors) == (0, "")
    folder = tmp_path / "reports" / FOLDER
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")) == [
        f"rank-{rank}/seed-{seed}" for rank in (1, 2) for seed in (7, 8)
    ]
    seed = folder / "rank-1" / "seed-7"
    assert {path.name for path in seed.iterdir()} >= {
        "model.safetensors", "model.yaml", "metrics.csv", "curves.svg", "confusion.svg", "confusion.csv",
        "classes.csv", "columns.csv", "predictions.safetensors", "result.json",
    }  # fmt: skip
    result = json.loads((seed / "result.json").read_text())
    assert result["scored_on"] == "test" and result["num_images"] == 360
    assert [row["epoch"] for row in read_csv(seed / "metrics.csv")] == ["1", "2"]
    assert {row["val_loss"] for row in read_csv(seed / "metrics.csv")} == {""}, "validation images were trained on"
    assert [row["depth"] for row in read_csv(seed / "columns.csv")] == ["1", "2", "0"]

    data, model = load_dataset(DATA), load_model(seed)
    assert data.test is not None
    assert evaluate(model.net, data, data.test)[1] == pytest.approx(result["accuracy"])
    confusion = read_csv(seed / "confusion.csv")
    assert sum(int(row[row["is / said"]]) for row in confusion) == round(360 * result["accuracy"])
    classes = read_csv(seed / "classes.csv")
    assert sum(int(row["support"]) for row in classes) == 360
    assert list(classes[0]) == [
        "class", "precision", "precision_low", "precision_high", "recall", "recall_low", "recall_high", "f1", "f1_low",
        "f1_high", "support",
    ]  # fmt: skip
    check_predictions(seed, data.test, accuracy=result["accuracy"])
    assert "Where rank 1 errs, of 360 test images:\n  macro-F1 " in output and "Where rank 2 errs" in output

    rows = read_csv(folder / "summary.csv")
    accuracies = [json.loads((folder / "rank-1" / f"seed-{s}" / "result.json").read_text())["accuracy"] for s in (7, 8)]
    assert float(rows[0]["accuracy_mean"]) == pytest.approx(statistics.mean(accuracies))
    assert float(rows[0]["accuracy_std"]) == pytest.approx(statistics.stdev(accuracies))
    assert [row["rank"] for row in rows] == ["1", "2"] and {row["num_seeds"] for row in rows} == {"2"}
    assert f"{statistics.mean(accuracies):.2%}" in output

    written = {path: path.stat().st_mtime_ns for path in folder.rglob("seed-*/*") if path.name != ".lock"}
    code, output, _ = fbsearch("train", "best.yaml", "--top", 2, "--seeds", 2, "--device", "cpu", "--json")
    configs = json.loads(output)["configs"]
    assert code == 0 and configs[0]["num_seeds"] == configs[0]["errors"]["num_seeds"] == 2
    assert 0 < configs[0]["errors"]["macro_f1"] < 1 and len(configs[0]["errors"]["hardest_classes"]) == 3
    assert {path: path.stat().st_mtime_ns for path in written} == written


def check_predictions(folder: Path, split: Split, *, accuracy: float) -> None:
    """The stored predictions are of the split, in its order, and the pictures are those of its images."""
    found = load_predictions(folder)
    assert found is not None and np.array_equal(found.labels_N, split.labels_N)
    assert found.is_right_N.mean() == pytest.approx(accuracy)
    np.testing.assert_allclose(found.shares_NK.sum(axis=1), 1, atol=2e-3)
    np.testing.assert_allclose(found.shares_NK.max(axis=1), found.confidence_N, atol=1e-3)
    assert len(found.rows_M) == min(24, int((~found.is_right_N).sum())) > 0
    assert np.array_equal(found.pictures_MHWC, split.images_NCHW.permute(0, 2, 3, 1)[found.rows_M])


def test_train_keeps_small_pictures_of_large_images(
    fbsearch: Fbsearch, tmp_path: Path, make_tree: Callable[..., Path]
) -> None:
    root = make_tree(train={"a": 8, "b": 8}, test={"a": 6, "b": 6}, size=(128, 128))
    data = DataConfig(name="folder", root=str(root), image_size=128)
    # At a learning rate of nearly nothing, all images are said to be of one class.
    write_export(tmp_path, make_export(data=data, shape=(2, 3, 128), epochs=1, stem="patch4", learning_rate=1e-7))
    code, _, errors = fbsearch("train", "best.yaml", "--seeds", 1, "--device", "cpu")
    assert (code, errors) == (0, "")
    found = load_predictions(tmp_path / "reports" / FOLDER / "rank-1" / "seed-7")
    assert found is not None and found.pictures_MHWC.shape[1:] == (96, 96, 3) and found.pictures_MHWC.std() > 10


def test_train_says_that_a_network_keeps_nothing_of_the_fractal(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(epochs=1, pattern="none"))
    code, output, errors = fbsearch("train", "best.yaml", "--seeds", 1, "--device", "cpu")
    note = "Rank 1 is a common convolutional network: no block of level 2 or more, and no masks."
    assert (code, errors) == (0, "") and note in output
    _, output, _ = fbsearch("train", "best.yaml", "--seeds", 1, "--device", "cpu", "--json")
    assert json.loads(output)["notes"] == [note]


def test_train_with_the_split_kept_may_stop_early_and_keep_the_best(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(schedule="constant"))
    arguments = ["train", "best.yaml", "--seeds", 1, "--epochs", 30, "--device", "cpu"]
    code, output, errors = fbsearch(*arguments, "--keep-validation", "--early-stopping", 2, "--keep-best")
    assert (code, errors) == (0, "")
    folder = tmp_path / "reports" / FOLDER / "rank-1" / "seed-7"
    history = [float(row["val_accuracy"]) for row in read_csv(folder / "metrics.csv")]
    assert len(history) == 1 + history.index(max(history)) + 2 < 30
    result = json.loads((folder / "result.json").read_text())
    assert result["val_accuracy"] == max(history) and result["scored_on"] == "test"
    data = load_dataset(DATA)
    assert evaluate(load_model(folder).net, data, data.val)[1] == pytest.approx(max(history))
    assert "fitting" in output


def make_run(export: Export, folder: Path, **settings: Any) -> Run:
    return plan_runs(export, export.configs[:1], RunSettings(num_seeds=1, output=folder, **settings))[0]


def test_run_settings_leave_out_what_changes_no_number(tmp_path: Path) -> None:
    on, off = (make_run(make_export(cuda_graph=value), tmp_path) for value in (True, False))
    assert on.settings() == off.settings()


def test_loader_loads_once_for_configurations_that_augment_differently() -> None:
    load = Loader("cpu", say=print)
    data = DataConfig(limit=50)
    turned = data.model_copy(update={"augment": AugmentConfig(rotation=10)})
    assert load(turned) is load(data) and load(data) is not load(DataConfig(limit=60))


def test_prepare_merges_validation_into_training_unless_it_is_kept(digits: Dataset, tmp_path: Path) -> None:
    merged = prepare(digits, make_run(make_export(), tmp_path))
    assert len(merged.train.labels_N) == 300 and len(merged.val.labels_N) == 0
    assert torch.equal(merged.train.images_NCHW, torch.cat([digits.train.images_NCHW, digits.val.images_NCHW]))
    assert torch.equal(merged.train.labels_N, torch.cat([digits.train.labels_N, digits.val.labels_N]))
    assert merged.train.images_NCHW.permute(0, 2, 3, 1).is_contiguous()
    assert merged.test is digits.test and (merged.info.num_train, merged.info.num_val) == (300, 0)
    assert prepare(digits, make_run(make_export(), tmp_path, keep_validation=True)) is digits


# What cannot be.


def error_of(result: tuple[int, str, str]) -> str:
    code, _, errors = result
    assert code == 1 and errors.startswith("error: ") and "Traceback" not in errors, errors
    return errors.removeprefix("error: ").removesuffix("\n")


def test_train_rank_or_top_out_of_range_says_what_there_is(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(2))
    assert error_of(fbsearch("train", "best.yaml", "--rank", 7)) == "--rank 7: best.yaml holds the ranks 1, 2"
    assert error_of(fbsearch("train", "best.yaml", "--top", 3)).startswith("--top 3: best.yaml holds 2; ")
    code, _, errors = fbsearch("train", "best.yaml", "--rank", 1, "--top", 1)
    assert code == 2 and "--rank and --top cannot be used together" in errors
    code, _, errors = fbsearch("train", "best.yaml", "--epochs", 1, "--seconds", 1)
    assert code == 2 and "--epochs and --seconds cannot be used together" in errors
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format: fbsearch-export/2", "its format is 'fbsearch-export/2', this fbsearch reads 'fbsearch-export/1'"),
        ("name: digits", "it is no export"),
        ("- 1", "expected keys and values"),
    ],
)
@pytest.mark.parametrize("command", ["train", "summary"])
def test_train_of_a_file_that_is_no_export_says_so(
    fbsearch: Fbsearch, tmp_path: Path, command: str, text: str, said: str
) -> None:
    (tmp_path / "best.yaml").write_text(text)
    assert said in error_of(fbsearch(command, "best.yaml"))


@pytest.mark.parametrize("flag", [["--early-stopping", 3], ["--keep-best"]])
def test_train_what_needs_validation_images_is_refused_without_them(
    fbsearch: Fbsearch, tmp_path: Path, flag: list[Any]
) -> None:
    write_export(tmp_path, make_export())
    message = error_of(fbsearch("train", "best.yaml", *flag))
    assert f"train.{flag[0][2:].replace('-', '_')}" in message and "--keep-validation keeps them apart" in message


def test_train_epochs_below_the_warmup_are_refused(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(epochs=8, schedule="cosine", warmup_epochs=4.0))
    message = error_of(fbsearch("train", "best.yaml", "--epochs", 3))
    assert message == "rank 1: train: warmup_epochs 4 must be below epochs 3"


def test_train_seconds_replace_the_passes_and_epochs_replace_a_budget(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(epochs=2, budget={"flops": 1e6}))
    arguments = ["train", "best.yaml", "--seeds", 1, "--device", "cpu", "--output"]
    for output, flag, budget in (("s", ["--seconds", 0.2], {"seconds": 0.2}), ("e", ["--epochs", 1], None)):
        code, _, errors = fbsearch(*arguments, output, *flag)
        assert code == 0, errors
        (result,) = (tmp_path / output).glob("*/rank-1/seed-7/result.json")
        assert json.loads(result.read_text())["settings"]["train"]["budget"] == budget


def test_train_other_settings_in_the_same_folder_are_refused(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(epochs=1))
    arguments = ["train", "best.yaml", "--seeds", 1, "--device", "cpu"]
    assert fbsearch(*arguments)[0] == 0
    message = error_of(fbsearch(*arguments, "--epochs", 2))
    assert "  train.epochs: 1 -> 2\n--output names another folder" in message


def test_train_without_test_images_scores_the_validation_split_and_says_so(
    fbsearch: Fbsearch, tmp_path: Path, make_tree: Callable[..., Path]
) -> None:
    root = make_tree(train={"a": 20, "b": 20}, size=(8, 8))
    data = DataConfig(name="folder", root=str(root), image_size=8)
    write_export(tmp_path, make_export(data=data, shape=(2, 3, 8), epochs=1))
    arguments = ["train", "best.yaml", "--seeds", 1, "--device", "cpu"]
    message = error_of(fbsearch(*arguments))
    assert "folder has no test split" in message and "--keep-validation keeps it apart" in message
    code, output, _ = fbsearch(*arguments, "--keep-validation")
    assert code == 0 and "validation accuracy" in output and "There is no test split" in output
    result = json.loads((tmp_path / "reports" / FOLDER / "rank-1/seed-7/result.json").read_text())
    assert result["scored_on"] == "validation" and result["accuracy"] == result["val_accuracy"]


def test_train_on_data_that_have_changed_is_refused(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(shape=(9, 1, 8)))
    assert "digits now has num_classes 10, at the export it had 9" in error_of(fbsearch("train", "best.yaml"))


@pytest.fixture
def half_done(tmp_path: Path) -> Path:
    """The folder of a run that a full disk has stopped after its first epoch, as the state of a killed one."""
    export = make_export(epochs=2)
    write_export(tmp_path, export)
    run = make_run(export, tmp_path / "reports")
    from fbsearch.winners import progress, retrain

    class Killed(Exception):
        pass

    class View(progress.View):
        def epoch(self, run: Run, stats: EpochStats) -> None:
            raise Killed

    from rich.console import Console

    with pytest.raises(Killed):
        view = View(Console(file=io.StringIO()))
        retrain.retrain([run], load=retrain.Loader("cpu", say=view.say), view=view)
    return run.folder


def test_train_state_that_is_damaged_or_another_networks_is_named(
    fbsearch: Fbsearch, tmp_path: Path, half_done: Path
) -> None:
    path = half_done / "training.pt"
    whole = path.read_bytes()
    arguments = ["train", "best.yaml", "--seeds", 1, "--device", "cpu"]
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path.relative_to(tmp_path)}: cannot be read, it is cut off" in error_of(fbsearch(*arguments))

    content = torch.load(io.BytesIO(whole), weights_only=True)
    content["state"]["model"]["classifier.1.weight"] = torch.zeros(3, 3)
    torch.save(content, path)
    assert "classifier.1.weight has shape [3, 3], not [8, 16]" in error_of(fbsearch(*arguments))

    torch.save(torch.load(io.BytesIO(whole), weights_only=True) | {"device": "cuda"}, path)
    assert "was started on cuda: continue with --device cuda" in error_of(fbsearch(*arguments))

    path.write_bytes(whole)
    code, output, _ = fbsearch(*arguments)
    assert code == 0 and "going on after epoch 1" in output and not path.exists()


def test_train_result_that_is_damaged_is_named(fbsearch: Fbsearch, tmp_path: Path, half_done: Path) -> None:
    run = make_run(make_export(epochs=2), tmp_path / "reports")
    assert read_result(run) is None
    for text in ("{", "[]", '{"format": "fbsearch-result/9"}'):
        (half_done / "result.json").write_text(text)
        assert f"delete {half_done.relative_to(tmp_path)}" in error_of(fbsearch("train", "best.yaml", "--seeds", 1))


def test_train_two_at_once_in_one_folder_are_refused(fbsearch: Fbsearch, tmp_path: Path, half_done: Path) -> None:
    from filelock import FileLock

    with FileLock(half_done / ".lock"):
        assert "another fbsearch is at work there" in error_of(fbsearch("train", "best.yaml", "--seeds", 1))


# What is said of a run.


def test_train_out_of_memory_names_batch_size_and_way_out(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(base_channels=2**20))  # 10**13 bytes a convolution: no machine has them
    message = error_of(fbsearch("train", "best.yaml", "--seeds", 1))
    assert "rank 1, seed 7: out of memory with train.batch_size 32" in message and "lower" in message


def make_history(*epochs: tuple[float, float, float]) -> list[EpochStats]:
    """Epochs of (training accuracy, validation loss, validation accuracy)."""
    zero = EpochStats(0, *([0.0] * 10))
    return [
        dataclasses.replace(zero, epoch=i, train_accuracy=train_accuracy, val_loss=loss, val_accuracy=accuracy)
        for i, (train_accuracy, loss, accuracy) in enumerate(epochs, start=1)
    ]


@pytest.mark.parametrize(
    ("epochs", "verdict"),
    [
        (
            [(0.5, 1.0, 0.6), (0.9, 0.3, 0.9), (0.999, 0.5, 0.85)],
            "overfitting: training error 0.10%, validation error 15",
        ),
        ([(0.3, 2.0, 0.3), (0.4, 1.8, 0.41)], "underfitting: training error 60.00%, validation error 59.00%"),
        ([(0.5, 1.0, 0.6), (0.98, 0.2, 0.97), (0.99, 0.3, 0.97)], "no overfitting and no underfitting"),
        ([(0.5, 1.0, 0.6), (0.98, 0.2, 0.97), (0.99, 0.3, 0.965)], "no overfitting and no underfitting"),
        ([(0.5, 1.0, 0.6), (0.7, 1.2, 0.5)], "no overfitting and no underfitting"),
    ],
)
def test_judge_fit_follows_the_gap(epochs: list[tuple[float, float, float]], verdict: str) -> None:
    assert judge_fit(make_history(*epochs), num_val=500, score=0.9, scored_on="test").startswith(verdict)


def test_judge_fit_without_validation_images_says_that_it_cannot() -> None:
    line = judge_fit(make_history((0.99, math.nan, math.nan)), num_val=0, score=0.95, scored_on="test")
    assert line.startswith("training error 1.00%, test error 5.00%; it is unknown whether the validation error rose")


def test_summary_of_one_seed_has_no_deviation(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_export(tmp_path, make_export(epochs=1))
    assert fbsearch("train", "best.yaml", "--seeds", 1, "--device", "cpu")[0] == 0
    (row,) = summarize(tmp_path / "reports" / FOLDER)
    assert row.accuracy_std is None and row.num_seeds == 1
    assert yaml.safe_load((tmp_path / "reports" / FOLDER / "rank-1/seed-7/model.yaml").read_text())["seed"] == 7
