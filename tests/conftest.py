"""What tests of several files share.

One thread for torch in every test and every process a test starts: on shared cores threads wait for each other.
"""

import collections
import gc
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from PIL import Image
    from postgres_server import PostgresServer
    from ray.cluster_utils import Cluster

    from fbsearch.config.models import DataConfig
    from fbsearch.workers.ray import RayExecutor

os.environ["OMP_NUM_THREADS"] = "1"

# Where a shell started pytest in the background, Ctrl-C is ignored, and every process that a test starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example takes as long as the other programs on the machine let it.
hypothesis.settings.register_profile("fbsearch", deadline=None)
hypothesis.settings.load_profile("fbsearch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with the most slow tests first, so that no worker is left with a long one at the end."""
    num_slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow[item.path])


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """Give each file to one worker, and all tests on Ray to one, so that there is only one cluster."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if file.endswith("/test_ray.py") or "[ray" in nodeid else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def quick_workers() -> None:
    """Fork the workers of searches in the test's own process. `fbsearch run` in a process of its own spawns them."""
    from forked import forked_context

    from fbsearch.workers.local import ProcessExecutor

    ProcessExecutor.context = forked_context()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The storage URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'fbsearch.db'}"


@pytest.fixture
def storage(url: str) -> "Iterator[RDBStorage]":
    """The database of `url`, made and open."""
    from fbsearch.study.database import open_storage

    opened = open_storage(url, create=True)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    from small_disk import mounted

    with mounted(tmp_path / "disk") as folder:
        yield folder
        gc.collect()  # the connection of a database that could not be opened goes with Optuna's half-made storage


@pytest.fixture(scope="session")
def postgres() -> "Iterator[PostgresServer]":
    """A real PostgreSQL server. Without its programs the test is left out, under FBSEARCH_NEED_POSTGRES it fails."""
    from postgres_server import PostgresServer, find_binaries

    if find_binaries() is None:
        missing = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
        pytest.fail(missing) if os.environ.get("FBSEARCH_NEED_POSTGRES") else pytest.skip(missing)
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: "PostgresServer") -> str:
    """The storage URL of a new, empty PostgreSQL database."""
    return postgres.new_database()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache of its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FBSEARCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> "Iterator[Cluster]":
    """A Ray cluster of real processes with one CPU, on loopback, behind a token; nodes can be added and removed."""
    from ray_cluster import cluster

    with cluster() as made:
        yield made


@pytest.fixture
def make_ray(ray_cluster: "Cluster") -> "Iterator[Callable[..., RayExecutor]]":
    """Make an executor on that cluster: `make_ray(DATA, num_workers=2)`. Its `close` disconnects."""
    import ray

    from fbsearch.workers.ray import RayExecutor
    from fbsearch.workers.ray_cluster import QUIET

    def make(data: "DataConfig", *, num_workers: int = 1, **options: float) -> "RayExecutor":
        ray.init(ray_cluster.address, **QUIET)
        return RayExecutor(data, num_workers=num_workers, num_gpus=0, **options)

    yield make
    ray.shutdown()


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


@pytest.fixture
def fbsearch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder, in this process: (exit code, output, errors)."""
    from fbsearch.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FBSEARCH_STORAGE", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["fbsearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        output, errors = capsys.readouterr()
        code = caught.value.code
        return code if isinstance(code, int) else 0, output, errors

    return run
