"""What tests of several files share.

One thread for torch in every test and every process a test starts: on shared cores threads wait for each other.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from PIL import Image

os.environ["OMP_NUM_THREADS"] = "1"

# An example takes as long as the other programs on the machine let it.
hypothesis.settings.register_profile("fbsearch", deadline=None)
hypothesis.settings.load_profile("fbsearch")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The storage URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'fbsearch.db'}"


@pytest.fixture
def storage(url: str) -> "Iterator[RDBStorage]":
    """The database of `url`, made and open."""
    from fbsearch.storage import open_storage

    opened = open_storage(url, create=True)
    yield opened
    opened.engine.dispose()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FBSEARCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def photos() -> "list[Image.Image]":
    """Two real photographs, 427 x 640, RGB."""
    from PIL import Image

    spec = importlib.util.find_spec("sklearn")
    assert spec and spec.submodule_search_locations, "scikit-learn is a dependency"
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "images"
    return [Image.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]


@pytest.fixture
def make_tree(tmp_path: Path, photos: "list[Image.Image]") -> Callable[..., Path]:
    """Write a tree of photo crops: `make_tree(train={"a": 3, "b": 3}, size=(w, h), end=".png", mode="L")`."""
    import numpy as np

    def make(
        *, size: tuple[int, int] = (20, 20), end: str = ".png", mode: str = "RGB", **parts: dict[str, int]
    ) -> Path:
        for part, classes in parts.items():
            for label, (name, count) in enumerate(classes.items()):
                (tmp_path / "tree" / part / name).mkdir(parents=True)
                rng = np.random.default_rng([label, len(part)])
                for i in range(count):
                    x, y = rng.integers(0, [640 - size[0], 427 - size[1]])
                    crop = photos[label % 2].crop((x, y, x + size[0], y + size[1])).convert(mode)
                    crop.save(tmp_path / "tree" / part / name / f"{i:04}{end}")
        return tmp_path / "tree"

    return make
