"""From a folder of odd images to predictions, as somebody with real data goes: `init --images`, run, export, train."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fbsearch.config.study_file import load_study_file
from fbsearch.data.sources import HostDataset, read_dataset

Fbsearch = Callable[..., tuple[int, str, str]]

WIDTH, HEIGHT, SIDE = 36, 28, 24
# Classes with names that are no ASCII, of images whose upper or lower half is bright.
UPPER, LOWER = "café obscur", "Ørsted nuit"
SIDEWAYS = 6  # of EXIF's orientations: the upper edge is stored at the left
ORIENTATION = 0x0112


def draw(name: str, *, colour: tuple[int, int, int] = (230, 200, 160), seed: int = 0) -> Image.Image:
    """An image of a class, RGB, with noise that differs from seed to seed."""
    pixels = np.full((HEIGHT, WIDTH, 3), 20, np.int64)
    half = slice(0, HEIGHT // 2) if name == UPPER else slice(HEIGHT // 2, HEIGHT)
    pixels[half] = colour
    pixels += np.random.default_rng(seed).integers(-15, 16, (HEIGHT, WIDTH, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_odd_files(folder: Path, name: str) -> None:
    """Write an image of a class in all forms in which people have them; nested, with names that are no ASCII."""
    grey = np.asarray(draw(name).convert("L")).astype(np.uint16)
    sideways = Image.Exif()
    sideways[ORIENTATION] = SIDEWAYS
    deep = folder / "2019" / "août"
    deep.mkdir(parents=True)
    draw(name).save(folder / "jpeg.JPG", quality=95)
    draw(name).convert("1").save(folder / "one bit.png")
    draw(name).convert("L").save(deep / "grey.png")
    draw(name).convert("LA").save(deep / "grey and alpha.png")
    draw(name).convert("RGBA").save(deep / "rgba.png")
    draw(name).convert("P").save(deep / "palette.gif")
    draw(name).convert("CMYK").save(folder / "print.jpg", quality=95)
    Image.fromarray(grey * 257).save(folder / "sixteen bits.png")
    Image.fromarray(grey * 257).save(folder / "sixteen bits.tiff")
    draw(name).rotate(90, expand=True).save(folder / "sideways.jpg", quality=95, exif=sideways)


NUM_ODD = 10


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A tree of two classes: usual PNGs, odd files in both, one broken, one picture in both classes."""
    root = tmp_path / "mes images"
    for part, number in ("train", 20), ("test", 4):
        for i, name in enumerate((UPPER, LOWER)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for seed in range(number):
                draw(name, seed=1000 * i + seed).save(folder / f"é{seed:02}.png")
    for name in (UPPER, LOWER):
        write_odd_files(root / "train" / name, name)
    (root / "train" / UPPER / "broken.png").write_bytes((root / "train" / UPPER / "é00.png").read_bytes()[:-40])
    shutil.copyfile(root / "train" / LOWER / "é01.png", root / "train" / UPPER / "twice.png")
    return root


def training_images(data: HostDataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the class and the pixels of each training image, in the order of classes and files."""
    for row, label in zip(data.train.rows_M, data.train.labels_M, strict=True):
        yield data.class_names[label], data.train.images_NHWC[row]


def test_odd_files_from_init_to_predictions(fbsearch: Fbsearch, images: Path, tmp_path: Path) -> None:
    code, output, errors = fbsearch("init", "mine.yaml", "--images", images)
    assert code == 0 and "mine.yaml: written" in output
    assert "2 classes, " in errors and "24 x 24 colour" in errors
    assert "1 broken, 1 duplicates in two classes" in errors and f"{UPPER}/broken.png" in errors
    config = load_study_file(Path("mine.yaml"))
    assert config.data.image_size == SIDE

    found = read_dataset(config.data, with_test=True, notice=lambda _text: None)
    assert len(found.train.rows_M) == 2 * (20 + NUM_ODD) + 1, "all but the broken one"
    for name, pixels in training_images(found):
        upper, lower = (half.mean(dtype=float) for half in np.split(pixels, 2))
        is_upper = upper > lower
        assert abs(upper - lower) > 120, "in every form the bright half is as bright"
        assert is_upper == (name == UPPER) or name == UPPER, "the one that is in both classes"

    file = Path("mine.yaml")
    file.write_text(file.read_text().replace("budget: {seconds: 10.0}", "budget: null"))
    assert load_study_file(file).train.budget is None
    code, output, errors = fbsearch("run", file, "--trials", 2, "--workers", 0, "--device", "cpu")
    assert code == 0 and "2 trials finished" in output, errors
    name = config.name
    assert fbsearch("export", name, "--top", 1, "--output", "best.yaml")[0] == 0
    code, output, errors = fbsearch("train", "best.yaml", "--seeds", 1, "--epochs", 12, "--device", "cpu")
    assert code == 0, errors
    model = next(Path("reports").glob("*/rank-1/seed-*"))
    code, output, errors = fbsearch("predict", model, images / "train", "--top", 1, "--json")
    assert code == 1 and "broken.png" in errors, "it is named, and the others are predicted"
    answers = {one["image"]: one for one in json.loads(output)["images"]}
    right = [one["classes"][0]["class"] in path for path, one in answers.items() if "classes" in one]
    assert len(right) == 2 * (20 + NUM_ODD) + 1 and sum(right) >= 0.8 * len(right)
