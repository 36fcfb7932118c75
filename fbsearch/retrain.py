"""Trains exported configurations at full budget with several seeds, and scores each on the test split, once.

A run's folder is `<output>/<study>/rank-<R>/seed-<S>`. Its state is written after every epoch, `result.json` last: the
same command goes on after the last whole epoch, and a finished run is not repeated. Must not know Optuna, nor how
files are written whole (`checkpoint`), scores computed (`predict`) or pictures drawn (`drawings`).
"""

import csv
import dataclasses
import io
import json
import math
import platform
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from fbsearch import drawings
from fbsearch.checkpoint import (
    ModelCard,
    build_net,
    check_weights,
    choose_config,
    load_state,
    save_model,
    save_state,
    write_bytes,
)
from fbsearch.config import DataConfig, TrainConfig, TrialConfig
from fbsearch.cost import measure_cost
from fbsearch.data import Dataset, Split, load_dataset
from fbsearch.errors import ConfigError, DataError, StorageError
from fbsearch.events import EpochStats
from fbsearch.model import FractalBrainNet
from fbsearch.predict import Scores, score, score_columns
from fbsearch.study_file import Export, ExportedConfig
from fbsearch.train import TrainState, choose_device, choose_dtype, final_accuracy, train

RESULT_FORMAT = "fbsearch-result/1"
STATE_NAME = "training.pt"
RESULT_NAME = "result.json"
# Of `judge_fit`: above this, a training error is high.
HIGH_ERROR = 0.1
SUMMARY_COLUMNS = (
    "rank", "trial", "search_value", "scored_on", "num_seeds", "accuracy_mean", "accuracy_std", "accuracy_min",
    "accuracy_max", "num_parameters", "flops", "epochs", "seconds_mean", "images_per_second_mean",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the flags of `fbsearch train` say; None leaves a field of the exported TrainConfig as it is."""

    num_seeds: int = 3
    epochs: int | None = None
    early_stopping: int | None = None
    keep_best: bool | None = None
    keep_validation: bool = False
    output: Path = Path("reports")


@dataclass(frozen=True)
class Run:
    """One configuration with one seed. `config.train` and `config.seed` are this training's."""

    study: str
    config: ExportedConfig
    keep_validation: bool
    folder: Path

    @property
    def name(self) -> str:
        """The run for people."""
        return f"rank {self.config.rank}, seed {self.config.seed}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, as JSON has it: where it differs, it is another run."""
        sections = self.config.model_dump(mode="json", include={"data", "model", "train", "seed"})
        return {**sections, "keep_validation": self.keep_validation}


class View:
    """What a person sees while runs go on: a bar on a terminal, elsewhere about ten lines a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[stats]}"),
            TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self._task = TaskID(0)

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def started(self, run: "Run", done: int) -> None:
        """A run begins, or goes on after `done` epochs."""
        epochs = run.config.train.epochs
        self._task = self._progress.add_task(run.name, total=epochs, completed=done, stats="")
        after = f", going on after epoch {done}" if done else ""
        self.say(f"{run.name}: {epochs} epochs{after}")

    def epoch(self, run: "Run", stats: EpochStats) -> None:
        """One more epoch is trained, its state on disk."""
        text = f"loss {stats.train_loss:.3f}, training {stats.train_accuracy:.2%}"
        text += "" if math.isnan(stats.val_accuracy) else f", validation {stats.val_accuracy:.2%}"
        self._progress.update(self._task, completed=stats.epoch, stats=text)
        epochs = run.config.train.epochs
        if not self._console.is_terminal and (stats.epoch % max(1, epochs // 10) == 0 or stats.epoch == epochs):
            self.say(f"{run.name}: epoch {stats.epoch}/{epochs}, {text}")

    def finished(self, run: "Run", result: dict[str, Any], *, before: bool) -> None:
        """A run is finished; `before`: by an earlier command."""
        if not before:
            self._progress.remove_task(self._task)
        what = f"{run.name}: {result['scored_on']} accuracy {result['accuracy']:.2%}"
        self.say(what + (" (trained before)" if before else f"; {result['fit']}"))

    def say(self, text: str) -> None:
        """Something to read while waiting, such as how many images are decoded."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------------------------ planning


def choose_configs(export: Export, path: Path, *, rank: int | None, top: int | None) -> tuple[ExportedConfig, ...]:
    """The configuration of `rank` (1 by default) or the `top` best. ConfigError where the file has too few."""
    assert rank is None or top is None, "checked by the command line"
    if top is None:
        return (choose_config(export, path, rank=1 if rank is None else rank),)
    if top > len(export.configs):
        raise ConfigError(
            f"--top {top}: {path} holds {len(export.configs)}; `fbsearch export --top {top}` writes more, where so "
            "many trials are complete"
        )
    return tuple(sorted(export.configs, key=lambda config: config.rank)[:top])


def plan_runs(export: Export, configs: Iterable[ExportedConfig], settings: Settings) -> list[Run]:
    """Every run, checked. ConfigError where settings and configuration cannot go together."""
    runs = []
    for config in configs:
        trained = _train_config(config, settings)
        for seed in range(config.seed, config.seed + settings.num_seeds):
            folder = study_folder(settings.output, export.study) / f"rank-{config.rank}" / f"seed-{seed}"
            own = config.model_copy(update={"train": trained, "seed": seed})
            runs.append(Run(export.study, own, settings.keep_validation, folder))
    return runs


def study_folder(output: Path, study: str) -> Path:
    """Where the results of a study lie: its name without separators and leading dots."""
    return output / (re.sub(r"[^\w.-]+", "_", study).lstrip(".") or "study")


def _train_config(config: ExportedConfig, settings: Settings) -> TrainConfig:
    wanted = {"epochs": settings.epochs, "early_stopping": settings.early_stopping, "keep_best": settings.keep_best}
    values = config.train.model_dump() | {name: value for name, value in wanted.items() if value is not None}
    try:
        trained = TrainConfig.model_validate(values)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"rank {config.rank}: train: {reason}") from None
    for name in ("early_stopping", "keep_best"):
        if getattr(trained, name) and not settings.keep_validation:
            raise ConfigError(
                f"rank {config.rank}: train.{name} {json.dumps(getattr(trained, name))} needs validation images, and "
                "they are trained on: --keep-validation keeps them apart"
            )
    return trained


# ------------------------------------------------------------------------------------------------------------- running


def retrain(runs: Sequence[Run], *, device: str, view: View) -> list[dict[str, Any]]:
    """Train every run that has no result yet; returns all results, in order.

    Raises what the user can mend as FbsearchError: a folder with a run of other settings, damaged states, data that
    have changed or have no test split, a full disk. What was finished before stays.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":  # the same numbers for the same seed
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    loaded: dict[DataConfig, Dataset] = {}
    results = []
    for run in runs:
        with _hold(run.folder):
            result = read_result(run)
            before = result is not None
            if result is None:
                if run.config.data not in loaded:
                    loaded = {run.config.data: load_dataset(run.config.data, device=chosen, on_progress=view.say)}
                result = _run(run, prepare(loaded[run.config.data], run), view=view)
            view.finished(run, result, before=before)
            results.append(result)
    return results


def prepare(data: Dataset, run: Run) -> Dataset:
    """The data as a run trains on them: with the validation images among the training images unless they are kept.

    Mean and deviation stay those of the search's training split, under which the configuration was found.
    """
    info, config = data.info, run.config
    for name in ("num_classes", "in_channels", "image_size"):
        if getattr(info, name) != getattr(config, name):
            raise DataError(
                f"data.name: {config.data.name} now has {name} {getattr(info, name)}, at the export it had "
                f"{getattr(config, name)}: the data have changed; search and export anew"
            )
    if data.test is None and not run.keep_validation:
        raise DataError(
            f"data.name: {config.data.name} has no test split, so the validation split must give the score: "
            "--keep-validation keeps it apart"
        )
    if run.keep_validation:
        return data
    images_NHWC = torch.cat([split.images_NCHW.permute(0, 2, 3, 1) for split in (data.train, data.val)])
    train_split = Split(images_NHWC.permute(0, 3, 1, 2), torch.cat([data.train.labels_N, data.val.labels_N]))
    nothing = Split(data.val.images_NCHW[:0], data.val.labels_N[:0])
    merged = dataclasses.replace(info, num_train=info.num_train + info.num_val, num_val=0)
    return dataclasses.replace(data, info=merged, train=train_split, val=nothing)


def _run(run: Run, data: Dataset, *, view: View) -> dict[str, Any]:
    """Train one run from where it stands, score it, write everything; the result."""
    device = data.train.images_NCHW.device
    config = TrialConfig.model_validate(run.config.model_dump(include={"data", "model", "train", "seed"}))
    torch.manual_seed(config.seed)
    net = build_net(run.config).to(device)
    state, history = _read_state(run, net, device)
    view.started(run, len(history))

    def save(stats: EpochStats, state: TrainState) -> None:
        history.append(stats)
        rows = [dataclasses.asdict(one) for one in history]
        content = {"settings": json.dumps(run.settings()), "device": device.type, "history": rows, "state": state}
        save_state(run.folder / STATE_NAME, content)
        write_bytes(run.folder / "metrics.csv", _csv(rows))

    for stats in train(net, config, data, resume_from=state, save_state=save):
        view.epoch(run, stats)
    result = _finish(run, data, net, history)
    (run.folder / STATE_NAME).unlink(missing_ok=True)
    return result


def _read_state(run: Run, net: FractalBrainNet, device: torch.device) -> tuple[TrainState | None, list[EpochStats]]:
    """The state to go on from and its epochs; None and no epochs at the start."""
    path = run.folder / STATE_NAME
    if not path.exists():
        return None, []
    content = load_state(path, keys=("settings", "device", "history", "state"))
    _compare_settings(run, json.loads(content["settings"]), path)
    if content["device"] != device.type:
        raise ConfigError(
            f"{path}: was begun on {content['device']}; --device {content['device']} goes on with it, or delete it"
        )
    check_weights(path, content["state"]["model"], net)
    return content["state"], [EpochStats(**one) for one in content["history"]]


def read_result(run: Run) -> dict[str, Any] | None:
    """The result of a finished run; None if it is not finished. ConfigError if it is another run's, or no result."""
    path = run.folder / RESULT_NAME
    try:
        result: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); delete {run.folder} to train it again") from None
    if not isinstance(result, dict) or result.get("format") != RESULT_FORMAT:
        raise ConfigError(f"{path}: is no result that this fbsearch reads; delete {run.folder} to train it again")
    _compare_settings(run, result["settings"], path)
    return result


def _compare_settings(run: Run, found: dict[str, Any], path: Path) -> None:
    """ConfigError that lists what differs between a run and what its folder holds."""
    wanted = _flatten(run.settings())
    before = _flatten(found)
    names = [name for name in wanted | before if wanted.get(name) != before.get(name)]
    if names:
        lines = [f"  {name}: {json.dumps(before.get(name))} -> {json.dumps(wanted.get(name))}" for name in names]
        raise ConfigError(
            "\n".join([f"{path}: is of a training with other settings:", *lines])
            + f"\n--output names another folder; or delete {run.folder}"
        )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, which is made; a killed holder's lock is free at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise StorageError(f"{folder}: another fbsearch train is at work there") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}; --output names another folder") from None
    try:
        yield
    finally:
        lock.release()


# ------------------------------------------------------------------------------------------------------------- results


def _finish(run: Run, data: Dataset, net: FractalBrainNet, history: list[EpochStats]) -> dict[str, Any]:
    """Score a trained network and write all that is known of it; `result.json` last."""
    config, folder, names = run.config, run.folder, data.info.class_names
    split = data.test or data.val
    dtype = choose_dtype(config.train.precision, split.labels_N.device)
    scores = score(net, data, split, dtype=dtype)
    columns = []
    if config.model.drop_path in ("global", "mixed"):
        columns = [dataclasses.asdict(column) for column in score_columns(net, data, split, dtype=dtype)]
    means = {"mean": tuple(data.mean_C.tolist()), "std": tuple(data.std_C.tolist())}
    card = ModelCard(**(dict(config) | means), study=run.study, keep_validation=run.keep_validation, class_names=names)
    save_model(folder, net, card)
    result = _result(run, data, history, scores) | {"columns": columns}
    classes = [{"class": name, **dataclasses.asdict(one)} for name, one in zip(names, scores.classes(), strict=True)]
    rows = zip(names, scores.confusion_KK.tolist(), strict=True)
    confusion = [dict(zip(["is / said", *names], [name, *row_K], strict=True)) for name, row_K in rows]
    title = f"{run.study}, {run.name}"
    said = f"{title}: {scores.accuracy:.2%} of {scores.num_images} {result['scored_on']} images"
    texts = {
        "classes.csv": _csv(classes),
        "confusion.csv": _csv(confusion),
        "confusion.svg": drawings.draw_confusion(scores.confusion_KK, names, title=said).encode(),
        "curves.svg": drawings.draw_curves(history, title=title, caption=result["fit"]).encode(),
        "metrics.csv": _csv([dataclasses.asdict(stats) for stats in history]),
    }
    if columns:
        texts["columns.csv"] = _csv(columns)
    texts[RESULT_NAME] = json.dumps(result, indent=1).encode()
    for name, content in texts.items():
        write_bytes(folder / name, content)
    return result


def _result(run: Run, data: Dataset, history: list[EpochStats], scores: Scores) -> dict[str, Any]:
    config = run.config
    shape = {"num_classes": config.num_classes, "in_channels": config.in_channels, "image_size": config.image_size}
    scored_on = "test" if data.test else "validation"
    return {
        "format": RESULT_FORMAT,
        "study": run.study,
        "rank": config.rank,
        "trial": config.trial,
        "search_value": config.value,
        "seed": config.seed,
        "scored_on": scored_on,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "num_images": scores.num_images,
        "val_accuracy": final_accuracy(history, config.train) if run.keep_validation else None,
        "epochs": len(history),
        "seconds": sum(stats.seconds for stats in history),
        "images_per_second": statistics.median(stats.images_per_second for stats in history),
        **dataclasses.asdict(measure_cost(config.model, **shape)),
        "fit": judge_fit(history, num_val=data.info.num_val, score=scores.accuracy, scored_on=scored_on),
        "device": str(data.train.labels_N.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": run.settings(),
    }


def judge_fit(history: Sequence[EpochStats], *, num_val: int, score: float, scored_on: str) -> str:
    """One line on over- or underfitting, from the gap between training and validation.

    The documents' definition: overfitting is a low training error while the validation error rises. Here: a training
    error of at most HIGH_ERROR, and at the end a validation error above its lowest by more than twice its
    sampling error (the lowest of many is low by chance too).
    Underfitting: a training error above HIGH_ERROR that the validation error does not exceed by more than twice its
    sampling error. The training error is counted while training, under augmentation, dropout and drop-path, so it is
    rather too high.
    """
    last = history[-1]
    error = 1 - last.train_accuracy
    if not num_val:
        return (
            f"training error {error:.2%}, {scored_on} error {1 - score:.2%}; whether the validation error rose cannot "
            "be said, its images were trained on (--keep-validation keeps them apart)"
        )
    val_error = 1 - last.val_accuracy
    best = max(history, key=lambda stats: stats.val_accuracy)
    noise = math.sqrt(val_error * (1 - val_error) / num_val)
    gap = f"training error {error:.2%}, validation error {val_error:.2%}"
    lowest = f"the validation error was lowest, {1 - best.val_accuracy:.2%}, in epoch {best.epoch}"
    if error <= HIGH_ERROR and best.val_accuracy - last.val_accuracy > 2 * noise:
        return f"overfitting: {gap}; {lowest}, and rose while the training error is low"
    if error > HIGH_ERROR and val_error - error <= 2 * noise:
        return f"underfitting: {gap}; the training error itself is high: more epochs or a larger network may help"
    return f"no overfitting and no underfitting: {gap}; {lowest}, and did not clearly rise"


def summarize(folder: Path) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each configuration from the results under a study's folder.

    Written there as summary.csv and summary.json, one row a rank and trial (a study that went on may have exported
    another trial as the same rank); returned. Deviations are of the sample (n - 1), None
    for a single seed.
    """
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"rank-*/seed-*/{RESULT_NAME}")):
        try:
            result = json.loads(path.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{path}: cannot be read ({error}); delete {path.parent} to train it again") from None
        found.setdefault((result["rank"], result["trial"]), []).append(result)
    rows = [_summary_row(found[key]) for key in sorted(found)]
    write_bytes(folder / "summary.csv", _csv(rows))
    content = [row | {"results": found[row["rank"], row["trial"]]} for row in rows]
    write_bytes(folder / "summary.json", json.dumps(content, indent=1).encode())
    return rows


def _summary_row(results: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [result["accuracy"] for result in results]
    values = results[0] | {
        "num_seeds": len(results),
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracy_min": min(accuracies),
        "accuracy_max": max(accuracies),
        "epochs": max(result["epochs"] for result in results),
        "seconds_mean": statistics.mean(result["seconds"] for result in results),
        "images_per_second_mean": statistics.mean(result["images_per_second"] for result in results),
    }
    return {name: values[name] for name in SUMMARY_COLUMNS}


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """A table with a head; what is not a number becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})
    return text.getvalue().encode(errors="backslashreplace")


def print_summary(console: Console, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """The summary for people, with what the score means and what to do next."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("rank", "trial", "search", "seeds", "accuracy", "of", "parameters", "images/s", "s"):
        table.add_column(column, justify="left" if column == "of" else "right", no_wrap=True)
    for row in rows:
        spread = "" if row["accuracy_std"] is None else f" \N{PLUS-MINUS SIGN} {row['accuracy_std']:.2%}"
        cells = [row["rank"], row["trial"], f"{row['search_value']:.2%}", row["num_seeds"]]
        cells += [f"{row['accuracy_mean']:.2%}{spread}", row["scored_on"], f"{row['num_parameters']:,}"]
        cells += [f"{row['images_per_second_mean']:,.0f}", f"{row['seconds_mean']:.1f}"]
        table.add_row(*map(str, cells))
    console.print(table)
    if any(row["scored_on"] == "validation" for row in rows):
        console.print(
            "There is no test split: these are scores of the validation split, by which the search chose; "
            "on new images expect less.",
            highlight=False,
            soft_wrap=True,
        )
    lines = [f"Results are in {folder}. Next:"]
    model = shlex.quote(str(next(iter(sorted(folder.glob("rank-*/seed-*/model.safetensors")))).parent))
    lines += [f"  fbsearch predict {model} IMAGE...", f"  fbsearch export-model {model} --format onnx"]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
