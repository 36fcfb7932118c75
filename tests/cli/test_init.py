"""`fbsearch init --images`: a study file that suits a folder of real images, and what is said of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fbsearch.config.study_file import StudyConfig, load_study_file
from fbsearch.config.suggestion import FolderFacts, suggest_image_size, suggest_study

Fbsearch = Callable[..., tuple[int, str, str]]
MakeTree = Callable[..., Path]


def test_init_with_images_writes_a_study_that_validates(fbsearch: Fbsearch, make_tree: MakeTree) -> None:
    """Odd files beside common ones: palette, RGBA, CMYK, another size, one that is broken, one in two classes."""
    tree = make_tree(train={"a": 9, "b": 5}, test={"a": 2, "b": 2}, size=(50, 40))
    first = tree / "train" / "a"
    for name, mode in ("p.png", "P"), ("alpha.png", "RGBA"), ("print.jpg", "CMYK"):
        with Image.open(first / "0000.png") as image:
            image.convert(mode).resize((90, 33)).save(first / name)
    (first / "0001.png").write_bytes(b"no image")
    shutil.copyfile(first / "0002.png", tree / "test" / "b" / "same.png")
    code, output, errors = fbsearch("init", "my.yaml", "--images", str(tree))
    assert code == 0 and "my.yaml: written" in output
    config = load_study_file(Path("my.yaml"))
    assert (config.name, config.data.root, config.data.image_size) == (tree.name, str(tree), 32)
    assert config.data.skip_broken and config.data.augment.flip
    assert "2 classes, " in errors and "1 broken, 1 duplicates in two classes" in errors
    assert "note: 1 broken image: " in errors and "a/0001.png; the file says `skip_broken: true`" in errors
    assert "an image that is in two classes cannot be learned" in errors
    assert "half of the images have a shorter side of at least 40" in errors
    assert "a trial trains for at most 10 s, so 100 trials for at most 16 min 40 s" in errors
    code, output, errors = fbsearch("validate", "my.yaml")
    assert code == 0 and "my.yaml: fine" in output


def test_init_of_a_folder_that_is_no_tree_says_what_is_missing(fbsearch: Fbsearch, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    code, _, errors = fbsearch("init", "my.yaml", "--images", str(tmp_path / "pictures"))
    assert code == 1 and "has no folder train/ (found: cat)" in errors
    assert not Path("my.yaml").exists()


@pytest.mark.parametrize(("side", "chosen"), [(3, 8), (8, 8), (27, 24), (28, 24), (32, 32), (63, 48), (4000, 64)])
def test_suggest_image_size_is_one_that_the_images_fill(side: int, chosen: int) -> None:
    assert suggest_image_size(side) == chosen


def suggest(**facts: object) -> StudyConfig:
    usual = {"root": "images", "side": 64, "num_train": 5_000, "is_colour": True, "has_broken": False}
    return suggest_study("images", FolderFacts(**(usual | facts)))  # type: ignore[arg-type]


def test_suggest_study_gives_few_images_small_batches_and_short_trials() -> None:
    studies = [suggest(num_train=number) for number in (200, 5_000, 100_000)]
    assert [study.train.batch_size for study in studies] == [32, 64, 128]
    assert [study.train.budget and study.train.budget.seconds for study in studies] == [10, 20, 60]


def test_suggest_study_mirrors_only_colour_images() -> None:
    assert suggest().data.augment.flip and not suggest(is_colour=False).data.augment.flip
