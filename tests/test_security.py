"""What must not leak, and where a file of somebody else must not lead."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fbsearch.config.models import DataConfig, TrainConfig
from fbsearch.data.untrusted import check_paths
from fbsearch.errors import ConfigError

SECRET = "geheim-4711"
SERVER = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/studies"  # nobody listens there


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work" / "data" / "train" / "cats").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("root", ["data", "data/train", "not/there/yet", "."])
def test_check_paths_below_the_current_folder_is_allowed(here: Path, root: str) -> None:
    inner = here / "data" / "train" / "cats" / "b.png"
    inner.symlink_to(here / "data")
    check_paths(Path("s.yaml"), data=DataConfig(root=root), train=TrainConfig(tensorboard="runs"))


@pytest.mark.parametrize("value", ["/etc", "~", "~root/x", "..", "data/../../outside", "data/..", "link", "link/x"])
def test_check_paths_that_leave_are_refused(here: Path, value: str) -> None:
    (here / "link").symlink_to(here.parent / "outside")
    for key, data, train in (
        ("data.root", DataConfig(root=value), TrainConfig()),
        ("train.tensorboard", DataConfig(), TrainConfig(tensorboard=value)),
    ):
        with pytest.raises(ConfigError, match=rf"s.yaml: {key}: .* leaves the current folder.*--untrusted"):
            check_paths(Path("s.yaml"), data=data, train=train)


@pytest.mark.parametrize(
    "link", ["data/train", "data/train/cats", "data/train/cats/a.png", "data/train/cats/1/2/3/4/a.png", "data/val/1/.2"]
)
def test_check_paths_links_out_of_an_image_tree_are_refused(here: Path, link: str) -> None:
    path = here / link
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rename(here / "aside")
    path.symlink_to(here.parent / "outside" / ("a.png" if link.endswith("png") else ""))
    with pytest.raises(ConfigError, match="leaves the current folder"):
        check_paths(Path("s.yaml"), data=DataConfig(name="folder", root="data"), train=TrainConfig())


def test_check_paths_follows_links_to_folders_inside_and_out_of_them(here: Path) -> None:
    (here / "data" / "val").symlink_to(here / "elsewhere")
    (here / "elsewhere" / "cats").mkdir(parents=True)
    (here / "elsewhere" / "cats" / "circle").symlink_to(here / "elsewhere")
    data = DataConfig(name="folder", root="data")
    check_paths(Path("s.yaml"), data=data, train=TrainConfig())
    (here / "elsewhere" / "cats" / "a.png").symlink_to(here.parent / "outside" / "a.png")
    with pytest.raises(ConfigError, match=r"leaves the current folder through .*elsewhere/cats/a.png"):
        check_paths(Path("s.yaml"), data=data, train=TrainConfig())


def fbsearch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fbsearch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize("command", [["run"], ["validate"]])
def test_untrusted_study_file_with_a_path_that_leaves_is_refused(here: Path, command: list[str]) -> None:
    Path("s.yaml").write_text("data: {name: folder, root: ../outside}\n")
    found = fbsearch(*command, "s.yaml", "--untrusted")
    assert found.returncode == 1 and "leaves the current folder" in found.stderr
    assert list(here.iterdir()) == [here / "data", here / "s.yaml"] or not (here / "studies").exists()


@pytest.mark.slow
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_storage_password_is_in_no_message_and_no_traceback(debug: list[str]) -> None:
    for command in (["status"], ["run", "--trials", "1", "--workers", "2", "--device", "cpu"]):
        found = fbsearch(*debug, *command, FBSEARCH_STORAGE=SERVER)
        assert found.returncode == 1 and "cannot be reached" in found.stderr
        assert ("Traceback" in found.stderr) == bool(debug)
        assert SECRET not in found.stdout + found.stderr


def test_storage_password_as_an_argument_is_said_to_be_seen() -> None:
    found = fbsearch("status", "--storage", SERVER)
    assert "process list" in found.stderr and "FBSEARCH_STORAGE" in found.stderr
    assert SECRET not in found.stdout + found.stderr


@pytest.mark.slow
def test_storage_password_reaches_no_worker_database_or_output(tmp_path: Path) -> None:
    # SQLite ignores a query that it does not know, so that a real search runs on a URL with a password.
    file = tmp_path / "s.db"
    command = [sys.executable, "-m", "fbsearch", "run", "--trials", "1", "--workers", "2", "--device", "cpu"]
    environment = os.environ | {"FBSEARCH_STORAGE": f"sqlite:///{file}?password={SECRET}"}
    seen = 0
    with (tmp_path / "output").open("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        coordinator = psutil.Process(process.pid)
        while process.poll() is None:
            assert SECRET not in " ".join(coordinator.cmdline())
            for child in coordinator.children(recursive=True):
                try:
                    known = [*child.cmdline(), *child.environ().values()]
                except psutil.Error:
                    continue  # it ended while it was looked at
                seen += any("spawn_main" in text for text in known)
                assert not any(SECRET in text for text in known)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.3)
    assert process.returncode == 0 and seen
    for path in (file, tmp_path / "output"):
        assert SECRET.encode() not in path.read_bytes()
