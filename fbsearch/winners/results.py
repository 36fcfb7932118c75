"""Write what is known of a trained network: its files, its result, the summary of all seeds."""

import dataclasses
import json
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig
from fbsearch.data.dataset import Dataset, Split, resize
from fbsearch.errors import ConfigError
from fbsearch.files import write_whole
from fbsearch.messages import EpochStats
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures import training_charts as charts
from fbsearch.training.devices import choose_dtype
from fbsearch.training.loop import final_accuracy
from fbsearch.winners.checkpoint import ModelCard, save_model
from fbsearch.winners.error_analysis import ErrorAnalysis
from fbsearch.winners.plan import Run
from fbsearch.winners.predict import Scores, score, score_columns
from fbsearch.winners.predictions import Predictions, most_confident_mistakes, save_predictions
from fbsearch.winners.records import (
    RESULT_NAME,
    SUMMARY_NAME,
    ColumnScore,
    Retraining,
    ScoredOn,
    SeedResult,
    average_seeds,
    read_record,
    to_csv,
    to_json,
)

# `judge_fit` calls a training error above this high.
HIGH_ERROR = 0.1
# Pixels of the longest side of a stored picture; what is smaller is kept as it is.
PICTURE_SIDE = 96


def finish(run: Run, data: Dataset, net: nn.Module, history: list[EpochStats]) -> SeedResult:
    """Score a trained network on the test split and write its files, `result.json` last.

    Without a test split the validation split gives the score. The weights of baselines are not kept.
    """
    config, folder, names = run.config, run.folder, data.info.class_names
    split = data.test or data.val
    dtype = choose_dtype(config.train.precision, split.labels_N.device)
    scores = score(net, data, split, dtype=dtype)
    columns: list[ColumnScore] = []
    if isinstance(net, FractalBrainNet) and config.model.drop_path in ("global", "mixed"):
        columns = score_columns(net, data, split, dtype=dtype)
    if run.baseline is None:
        _save(run, data, net)
    result = _result(run, data, history, scores, columns)
    predictions = _with_pictures(scores, split, class_names=names, scored_on=result.scored_on)
    save_predictions(folder, predictions)
    errors = ErrorAnalysis((predictions,))
    table, confusion_KK = errors.classes, errors.confusion_KK.astype(int)
    rows = zip(names, confusion_KK.tolist(), strict=True)
    confusion = [dict(zip(["is / said", *names], [name, *row_K], strict=True)) for name, row_K in rows]
    title = f"{run.study}, {run.name}"
    said = f"{title}: {scores.accuracy:.2%} of {scores.num_images} {result.scored_on} images"
    texts = {
        "classes.csv": table.to_csv(index=False, lineterminator="\n").encode(errors="backslashreplace"),
        "confusion.csv": to_csv(confusion),
        "confusion.svg": charts.draw_confusion(confusion_KK, names, title=said).encode(),
        "curves.svg": charts.draw_curves(history, title=title, caption=result.fit).encode(),
        "metrics.csv": to_csv([dataclasses.asdict(stats) for stats in history]),
    }
    if columns:
        texts["columns.csv"] = to_csv([column.model_dump() for column in columns])
    texts[RESULT_NAME] = to_json(result)
    for name, content in texts.items():
        write_whole(folder / name, content)
    return result


def _with_pictures(scores: Scores, split: Split, *, class_names: tuple[str, ...], scored_on: ScoredOn) -> Predictions:
    """Return what is kept of a split's predictions: all of them, and small pictures of the most confident mistakes."""
    labels_N, said_N = scores.labels_N.astype(np.int32), scores.said_N.astype(np.int32)
    confidence_N = scores.shares_NK.max(axis=1)
    rows_M = most_confident_mistakes(labels_N, said_N, confidence_N)
    pictures_MHWC = split.images_NCHW[torch.from_numpy(rows_M).long().to(split.images_NCHW.device)].permute(0, 2, 3, 1)
    if len(rows_M) and pictures_MHWC.shape[1] > PICTURE_SIDE:
        pictures_MHWC = resize(pictures_MHWC.cpu(), PICTURE_SIDE)
    return Predictions(
        class_names=class_names,
        scored_on=scored_on,
        labels_N=labels_N,
        said_N=said_N,
        confidence_N=confidence_N,
        shares_NK=scores.shares_NK.astype(np.float16),
        rows_M=rows_M,
        pictures_MHWC=pictures_MHWC.cpu().numpy(),
    )


def _save(run: Run, data: Dataset, net: nn.Module) -> None:
    assert isinstance(net, FractalBrainNet)
    means = {"mean": tuple(data.mean_C.tolist()), "std": tuple(data.std_C.tolist())}
    more = {"study": run.study, "keep_validation": run.keep_validation, "class_names": data.info.class_names}
    save_model(run.folder, net, ModelCard(**(dict(run.config) | means | more)))


def _result(
    run: Run, data: Dataset, history: list[EpochStats], scores: Scores, columns: list[ColumnScore]
) -> SeedResult:
    config = run.config
    is_winner = run.baseline is None
    scored_on: ScoredOn = "test" if data.test else "validation"
    return SeedResult(
        study=run.study,
        baseline=run.baseline,
        rank=config.rank if is_winner else None,
        trial=config.trial if is_winner else None,
        search_value=config.value if is_winner else None,
        seed=config.seed,
        scored_on=scored_on,
        accuracy=scores.accuracy,
        loss=scores.loss,
        num_images=scores.num_images,
        val_accuracy=final_accuracy(history, config.train) if run.keep_validation else None,
        epochs=len(history),
        seconds=sum(stats.seconds for stats in history),
        images_per_second=statistics.median(stats.images_per_second for stats in history),
        **dataclasses.asdict(run.cost()),
        fit=judge_fit(history, num_val=data.info.num_val, score=scores.accuracy, scored_on=scored_on),
        device=str(data.train.labels_N.device),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        settings=run.settings(),
        columns=columns,
    )


def judge_fit(history: Sequence[EpochStats], *, num_val: int, score: float, scored_on: str) -> str:
    """Return one line on over- or underfitting, from the gap between training and validation error.

    The documents define overfitting as a low training error while the validation error rises. Here the training error
    is at most HIGH_ERROR, and the last validation error exceeds the lowest by more than twice its sampling error (the
    lowest of many is also low by chance). Underfitting is a training error above HIGH_ERROR that the validation error
    exceeds by at most twice its sampling error. The training error is measured during training, under augmentation,
    dropout and drop-path, and is therefore an upper bound.
    """
    last = history[-1]
    error = 1 - last.train_accuracy
    if not num_val:
        return (
            f"training error {error:.2%}, {scored_on} error {1 - score:.2%}; it is unknown whether the "
            "validation error rose, because its images were trained on (--keep-validation keeps them apart)"
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


def read_result(run: Run) -> SeedResult | None:
    """Read the result of a finished run; None if it is not finished. ConfigError if it is damaged or another run's."""
    path = run.folder / RESULT_NAME
    result = _read(path)
    if result is not None:
        compare_settings(run, result.settings, path)
    return result


def _read(path: Path) -> SeedResult | None:
    return read_record(path, SeedResult, way_out=f"delete {path.parent} to train it again")


def compare_settings(run: Run, found: dict[str, Any], path: Path) -> None:
    """Raise a ConfigError that lists the differences between the settings of a run and those in its folder."""
    lines = list_changes(found, run.settings())
    if lines:
        raise ConfigError(
            "\n".join([f"{path}: belongs to a training with other settings:", *lines])
            + f"\n--output names another folder; or delete {run.folder}"
        )


def list_changes(found: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return a line for each of the settings, sections of JSON values, that differs from what was found in a file."""
    wanted = _flatten(settings)
    # Fields that the version of then did not have: their defaults are its behaviour.
    sections = {"data": DataConfig(), "model": ModelConfig(), "train": TrainConfig()}
    defaults = _flatten({name: section.model_dump(mode="json") for name, section in sections.items()})
    before = {name: value for name, value in defaults.items() if name in wanted} | _flatten(found)
    names = [name for name in wanted | before if wanted.get(name) != before.get(name)]
    return [f"  {name}: {json.dumps(before.get(name))} -> {json.dumps(wanted.get(name))}" for name in names]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def summarize(folder: Path) -> list[Retraining]:
    """Combine the results of all seeds under a study's folder and write them as summary.json and summary.csv.

    There is a row for each rank and trial: a study that went on may have exported another trial as the same rank.
    """
    found: dict[tuple[int, int], list[SeedResult]] = {}
    for path in sorted(folder.glob(f"rank-*/seed-*/{RESULT_NAME}")):
        result = _read(path)
        if result is not None and result.rank is not None and result.trial is not None:
            found.setdefault((result.rank, result.trial), []).append(result)
    rows = [
        Retraining(
            rank=rank,
            trial=trial,
            search_value=results[0].search_value,
            scored_on=results[0].scored_on,
            **average_seeds(results),
            results=results,
        )
        for (rank, trial), results in sorted(found.items())
    ]
    write_whole(folder / "summary.csv", to_csv([row.row() for row in rows]))
    write_whole(folder / SUMMARY_NAME, to_json(rows))
    return rows
