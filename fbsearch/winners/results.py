"""What becomes of a trained network: its scores and everything written of them, one run's and all seeds' together.

Must not know how a run is trained, nor how scores are computed (`predict`) or pictures drawn (`charts`).
"""

import csv
import dataclasses
import io
import json
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fbsearch.data.dataset import Dataset
from fbsearch.errors import ConfigError
from fbsearch.messages import EpochStats
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures import training_charts as charts
from fbsearch.training.devices import choose_dtype
from fbsearch.training.loop import final_accuracy
from fbsearch.winners.checkpoint import ModelCard, save_model, write_bytes
from fbsearch.winners.plan import Run
from fbsearch.winners.predict import Scores, score, score_columns

RESULT_FORMAT = "fbsearch-result/1"
RESULT_NAME = "result.json"
# Of `judge_fit`: above this, a training error is high.
HIGH_ERROR = 0.1
SUMMARY_COLUMNS = (
    "rank", "trial", "search_value", "scored_on", "num_seeds", "accuracy_mean", "accuracy_std", "accuracy_min",
    "accuracy_max", "num_parameters", "flops", "epochs", "seconds_mean", "images_per_second_mean",
)  # fmt: skip


def finish(run: Run, data: Dataset, net: nn.Module, history: list[EpochStats]) -> dict[str, Any]:
    """Score a trained network and write all that is known of it; `result.json` last.

    A baseline's weights are not kept: it is there to be compared with.
    """
    config, folder, names = run.config, run.folder, data.info.class_names
    split = data.test or data.val
    dtype = choose_dtype(config.train.precision, split.labels_N.device)
    scores = score(net, data, split, dtype=dtype)
    columns = []
    if isinstance(net, FractalBrainNet) and config.model.drop_path in ("global", "mixed"):
        columns = [dataclasses.asdict(column) for column in score_columns(net, data, split, dtype=dtype)]
    if run.baseline is None:
        _save(run, data, net)
    result = _result(run, data, history, scores) | {"columns": columns}
    classes = [{"class": name, **dataclasses.asdict(one)} for name, one in zip(names, scores.classes(), strict=True)]
    rows = zip(names, scores.confusion_KK.tolist(), strict=True)
    confusion = [dict(zip(["is / said", *names], [name, *row_K], strict=True)) for name, row_K in rows]
    title = f"{run.study}, {run.name}"
    said = f"{title}: {scores.accuracy:.2%} of {scores.num_images} {result['scored_on']} images"
    texts = {
        "classes.csv": to_csv(classes),
        "confusion.csv": to_csv(confusion),
        "confusion.svg": charts.draw_confusion(scores.confusion_KK, names, title=said).encode(),
        "curves.svg": charts.draw_curves(history, title=title, caption=result["fit"]).encode(),
        "metrics.csv": to_csv([dataclasses.asdict(stats) for stats in history]),
    }
    if columns:
        texts["columns.csv"] = to_csv(columns)
    texts[RESULT_NAME] = json.dumps(result, indent=1).encode()
    for name, content in texts.items():
        write_bytes(folder / name, content)
    return result


def _save(run: Run, data: Dataset, net: nn.Module) -> None:
    assert isinstance(net, FractalBrainNet)
    means = {"mean": tuple(data.mean_C.tolist()), "std": tuple(data.std_C.tolist())}
    more = {"study": run.study, "keep_validation": run.keep_validation, "class_names": data.info.class_names}
    save_model(run.folder, net, ModelCard(**(dict(run.config) | means | more)))


def _result(run: Run, data: Dataset, history: list[EpochStats], scores: Scores) -> dict[str, Any]:
    config = run.config
    of_the_search = run.baseline is None
    scored_on = "test" if data.test else "validation"
    return {
        "format": RESULT_FORMAT,
        "study": run.study,
        "baseline": run.baseline,
        "rank": config.rank if of_the_search else None,
        "trial": config.trial if of_the_search else None,
        "search_value": config.value if of_the_search else None,
        "seed": config.seed,
        "scored_on": scored_on,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "num_images": scores.num_images,
        "val_accuracy": final_accuracy(history, config.train) if run.keep_validation else None,
        "epochs": len(history),
        "seconds": sum(stats.seconds for stats in history),
        "images_per_second": statistics.median(stats.images_per_second for stats in history),
        **dataclasses.asdict(run.cost()),
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
    compare_settings(run, result["settings"], path)
    return result


def compare_settings(run: Run, found: dict[str, Any], path: Path) -> None:
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
    rows = [summary_row(found[key]) for key in sorted(found)]
    write_bytes(folder / "summary.csv", to_csv(rows))
    content = [row | {"results": found[row["rank"], row["trial"]]} for row in rows]
    write_bytes(folder / "summary.json", json.dumps(content, indent=1).encode())
    return rows


def summary_row(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of all seeds of one configuration as one row."""
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


def to_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """A table with a head; what is not a number becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})
    return text.getvalue().encode(errors="backslashreplace")
