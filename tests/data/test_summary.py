"""The summary of a data set: real images, with what is doubtful in them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fbsearch.config.models import DataConfig
from fbsearch.data.summary import summarise
from fbsearch.errors import DataError


def summary(root: Path, **fields: Any) -> str:
    return summarise(DataConfig(name="folder", root=str(root), **fields), notice=lambda _text: None)


def test_summary_of_digits() -> None:
    text = summarise(DataConfig(), notice=lambda _text: None)
    assert text.startswith(
        "10 classes, 1,150 / 287 / 360 images to train / validate / test, 8 x 8 grey, smallest class "
    )
    assert text.endswith(" to train, 0 broken, 0 duplicates in two classes")


def test_summary_counts_images_in_two_classes_once_wherever_they_are(make_tree: Callable[..., Path]) -> None:
    tree = make_tree(train={"a": 4, "b": 3}, val={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    for target in ("train/b/copy.png", "val/b/copy.png", "test/a/copy.png"):
        shutil.copyfile(tree / "train" / "a" / "0000.png", tree / target)
    shutil.copyfile(tree / "test" / "b" / "0000.png", tree / "train" / "a" / "other.png")
    text = summary(tree, image_size=10)
    assert text.startswith(
        "2 classes, 9 / 5 / 3 images to train / validate / test, 10 x 10 colour, smallest class 'b': 4"
    )
    assert text.endswith("0 broken, 2 duplicates in two classes")


def test_summary_counts_broken_images_or_names_them(make_tree: Callable[..., Path]) -> None:
    tree = make_tree(train={"a": 9, "b": 4}, test={"a": 1, "b": 2}, mode="L")
    broken = [*sorted((tree / "train" / "a").iterdir())[2:], tree / "test" / "b" / "0001.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:-200])
    assert "4 / 2 / 2 images to train / validate / test, 20 x 20 grey" in summary(tree, skip_broken=True)
    assert "8 broken" in summary(tree, skip_broken=True)
    with pytest.raises(
        DataError, match=r"8 broken images: .*a/0002\.png, .*a/0006\.png and 3 more\. .*skip_broken: true"
    ):
        summary(tree)


def test_summary_does_not_download(tmp_path: Path) -> None:
    text = summarise(DataConfig(name="cifar10", root=str(tmp_path / "none")), notice=lambda _text: None)
    assert "not read" in text and not (tmp_path / "none").exists()
