"""A folder of somebody else, in which a command is run: its Python files are not executed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fbsearch.workers.executor import num_gpus

PROGRAM = Path(sys.executable).with_name("fbsearch")
# What Python and the package's __init__ import before the first line of __main__: without -P from the current folder.
BEFORE_US = "import sys, runpy, importlib.util, typing; print(*sys.modules)"
PACKAGES = ("torch", "numpy", "optuna", "yaml", "rich", "typer", "pydantic", "PIL", "plotly", "safetensors", "filelock")
SMALL = """
name: small
data: {limit: 100}
model: {base_channels: 4, pattern_resolution: 8}
train: {epochs: 1}
space:
  model.fractal_levels: {num_stages: [1], level: [1]}
  train.learning_rate: {low: 0.003, high: 0.05, log: true}
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def folder(tmp_path: Path, marker: Path) -> Path:
    """A study file among Python files that have the names of modules, and tell when they are executed."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    before_us = subprocess.run([sys.executable, "-c", BEFORE_US], capture_output=True, text=True, check=True).stdout
    for name in {*sys.stdlib_module_names, *PACKAGES} - set(before_us.split()):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write(__file__ + chr(10))\nraise ImportError\n")
    (folder / "small.yaml").write_text(SMALL)
    return folder


def run(folder: Path, *command: str | Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("FBSEARCH_STORAGE", "PYTHONSAFEPATH")}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_commands_in_a_hostile_folder_execute_nothing_of_it(folder: Path, marker: Path) -> None:
    run(folder, PROGRAM, "validate", "--untrusted", "small.yaml")
    module = [sys.executable, "-m", "fbsearch"]  # as torchrun starts it; the workers and their tracker are spawned
    run(folder, *module, "run", "--untrusted", "small.yaml", "--trials", "1", "--workers", "2", "--device", "cpu")
    run(folder, PROGRAM, "export", "--top", "1")
    run(folder, PROGRAM, "train", "--untrusted", "best.yaml", "--seeds", "1", "--device", "cpu")
    run(folder, PROGRAM, "report")
    assert not marker.exists(), marker.read_text()


@pytest.mark.slow
def test_ray_in_a_hostile_folder_executes_nothing_of_it(folder: Path, marker: Path) -> None:
    pytest.importorskip("ray")
    run(folder, PROGRAM, "run", "small.yaml", "--trials", "1", "--ray", "local", "--workers", "1", "--device", "cpu")
    assert not marker.exists(), marker.read_text()


@pytest.mark.slow
def test_probe_for_gpus_in_a_hostile_folder_executes_nothing_of_it(
    folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    num_gpus(drivers=[Path("/dev/null")])
    assert not marker.exists(), marker.read_text()
