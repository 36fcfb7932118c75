"""Stored predictions: what is written is read, what does not fit together is refused, and pictures are small."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from made_predictions import make_predictions

from fbsearch.errors import ConfigError
from fbsearch.winners.predictions import (
    NUM_PICTURES,
    PREDICTIONS_NAME,
    load_predictions,
    most_confident_mistakes,
    save_predictions,
)


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    names = ("a", os.fsdecode(b"\xff"), "日本")  # the second is the name of a folder that is no UTF-8
    written = make_predictions(300, class_names=names)
    save_predictions(tmp_path, written)
    found = load_predictions(tmp_path)
    assert found is not None and (found.class_names, found.scored_on) == (names, "test")
    for field in dataclasses.fields(found):
        if field.name.rpartition("_")[2].isupper():
            assert np.array_equal(getattr(found, field.name), getattr(written, field.name)), field.name


def test_folder_of_an_older_version_has_no_predictions(tmp_path: Path) -> None:
    assert load_predictions(tmp_path) is None


def test_most_confident_mistakes_are_in_order_and_leave_out_what_is_right() -> None:
    labels, said = np.zeros(100, dtype=np.int32), np.ones(100, dtype=np.int32)
    said[::2] = 0
    confidence = np.linspace(0.5, 1, 100, dtype=np.float32)
    rows = most_confident_mistakes(labels, said, confidence)
    assert rows.tolist() == list(range(99, 99 - 2 * NUM_PICTURES, -2))
    assert most_confident_mistakes(labels, labels, confidence).tolist() == []


def written(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    save_predictions(folder, make_predictions(300))
    with safetensors.safe_open(folder / PREDICTIONS_NAME, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("labels", np.full(300, 7, dtype=np.int32), "labels are not all in 0 to 2"),
        ("labels", np.zeros(299, dtype=np.int32), r"predicted has shape \[300\], which does not fit"),
        ("predicted", np.zeros(300, dtype=np.int64), r"predicted has type int64 and shape \[300\]"),
        ("picture_rows", np.full(NUM_PICTURES, -1, dtype=np.int32), "picture_rows are not all in 0 to 299"),
        ("confidence", np.full(300, np.nan, dtype=np.float32), "confidence: not all are in 0 to 1"),
        (
            "probabilities",
            np.zeros((300, 4), dtype=np.float16),
            r"probabilities has shape \[300, 4\], which does not fit",
        ),
        ("pictures", np.zeros((NUM_PICTURES, 8, 8, 2), dtype=np.uint8), "it holds no images"),
    ],
)
def test_file_whose_parts_do_not_fit_is_refused(tmp_path: Path, name: str, value: Any, said: str) -> None:
    tensors, metadata = written(tmp_path)
    safetensors.numpy.save_file(tensors | {name: value}, tmp_path / PREDICTIONS_NAME, metadata)
    with pytest.raises(ConfigError, match=rf"{PREDICTIONS_NAME}: cannot be read \({said}.*\); delete it"):
        load_predictions(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"format": "fbsearch-predictions/9"}, {"class_names": "["}, {"class_names": "[1, 2, 3]"}, {"scored_on": "x"}],
)
def test_file_of_another_format_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    tensors, metadata = written(tmp_path)
    safetensors.numpy.save_file(tensors, tmp_path / PREDICTIONS_NAME, metadata | change)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_predictions(tmp_path)


def test_file_that_lacks_a_part_or_is_cut_off_is_refused(tmp_path: Path) -> None:
    tensors, metadata = written(tmp_path)
    path = tmp_path / PREDICTIONS_NAME
    whole = path.read_bytes()
    del tensors["labels"]
    safetensors.numpy.save_file(tensors, path, metadata)
    for content in (path.read_bytes(), whole[:-1], whole[:100], b"", b"\xff" * 50):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            load_predictions(tmp_path)
