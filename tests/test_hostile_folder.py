"""A folder of somebody else, in which a command is run: its Python files are not executed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fbsearch.workers.executor import num_gpus

PROGRAM = Path(sys.executable).with_name("fbsearch")
# Without -P, Python itself finds these in the current folder before the first line of a program that -m names.
BEFORE_US = {"contextlib", "functools", "types", "warnings", "collections", "keyword", "operator", "reprlib", "enum"}
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
    for name in {*sys.stdlib_module_names, *PACKAGES} - BEFORE_US:
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
def test_probe_for_gpus_in_a_hostile_folder_executes_nothing_of_it(
    folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    num_gpus(drivers=[Path("/dev/null")])
    assert not marker.exists(), marker.read_text()
