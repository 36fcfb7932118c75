"""`fbsearch run` as its users run it: real processes, real images, SIGKILL and Ctrl-C at any moment."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from optuna.trial import TrialState

from fbsearch.config.export_file import load_export
from fbsearch.study.database import open_storage
from fbsearch.study.study import load_study

pytestmark = pytest.mark.slow  # processes that import torch

CIFAR_ZIP = Path(__file__).parents[3] / "shared" / "data" / "cifar10-images.zip"
STUDIES = Path(__file__).parents[2] / "studies"

SMALL = """
name: small
data: {limit: 100}
model: {base_channels: 4, pattern_resolution: 8}
train: {epochs: 3}
space:
  model.fractal_levels: {num_stages: [1, 2], level: [1]}
  train.learning_rate: {low: 0.003, high: 0.05, log: true}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fbsearch", *arguments]


def fbsearch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=500, check=False)


@contextlib.contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, as a terminal has it; it is killed at the end of the block."""
    with subprocess.Popen(
        command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def states(folder: Path, name: str) -> list[TrialState]:
    storage = open_storage(f"sqlite:///{folder}/studies/fbsearch.db")
    found = [trial.state for trial in load_study(storage, name).trials]
    storage.engine.dispose()
    return found


def last_json(output: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return content


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline, "workers outlived their coordinator"
        time.sleep(0.05)


def test_run_default_study_then_status_export_and_again(tmp_path: Path) -> None:
    ran = fbsearch(tmp_path, "run", "--trials", "3")
    assert ran.returncode == 0, ran.stderr
    assert "[3/3]" in ran.stdout and "Best:" in ran.stdout and "fbsearch export digits" in ran.stdout
    status = last_json(fbsearch(tmp_path, "status", "--json").stdout)
    assert status["study"] == "digits" and status["storage"] == "sqlite:///studies/fbsearch.db"
    assert status["num_complete"] + status["num_pruned"] == 3 and status["num_running"] == 0
    assert status["best"]["config"]["model"]["stem"] == "pool3"
    exported = fbsearch(tmp_path, "export", "--top", "5", "--output", "best.yaml")
    assert exported.returncode == 0, exported.stderr
    best = load_export(tmp_path / "best.yaml")
    assert best.study == "digits" and len(best.configs) == min(5, status["num_complete"])
    assert best.configs[0].trial == status["best"]["trial"] and best.configs[0].value == status["best"]["value"]
    again = fbsearch(tmp_path, "run", "--trials", "3", "--json")
    assert again.returncode == 0 and last_json(again.stdout)["best"] == status["best"]
    assert len(states(tmp_path, "digits")) == 3
    for form, first in (("csv", "trial,state,value"), ("json", "[")):
        assert fbsearch(tmp_path, "export", "--format", form, "--output", f"all.{form}").returncode == 0
        assert (tmp_path / f"all.{form}").read_text().startswith(first)


def test_run_exported_configuration_builds_without_optuna(folder: Path) -> None:
    assert fbsearch(folder, "run", "small.yaml", "--trials", "2", "--workers", "0").returncode == 0
    assert fbsearch(folder, "export", "--top", "1").returncode == 0
    code = (
        "import sys, torch, fbsearch\n"
        "config = fbsearch.load_export('best.yaml').configs[0]\n"
        "shape = dict(num_classes=config.num_classes, in_channels=config.in_channels)\n"
        "model = fbsearch.FractalBrainNet(config.model, **shape)\n"
        "assert sum(p.numel() for p in model.parameters()) == config.num_parameters\n"
        "assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)\n"
        "assert 'optuna' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_run_killed_at_any_moment_ends_with_exactly_n(folder: Path) -> None:
    rng = random.Random(0)
    for num_more in (-1, 0, 1, 12):  # before the workers are ready, at the first trial, and then anywhere
        there = len(read_states(folder, "small"))
        with started(folder, "run", "small.yaml", "--trials", "120", "--workers", "2") as process:
            deadline = time.monotonic() + 240
            while not (folder / "studies").exists() or len(read_states(folder, "small")) <= there + num_more:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.3))
            children = psutil.Process(process.pid).children(recursive=True)
        wait_until_gone(children, 60)
    found = states(folder, "small")
    assert found.count(TrialState.COMPLETE) + found.count(TrialState.PRUNED) < 120, "it ended before it could be killed"
    ended = fbsearch(folder, "run", "small.yaml", "--trials", "120", "--workers", "2", "--json")
    assert ended.returncode == 0, ended.stderr
    found = states(folder, "small")
    assert found.count(TrialState.COMPLETE) + found.count(TrialState.PRUNED) == 120
    assert found.count(TrialState.RUNNING) == 0 and found.count(TrialState.WAITING) == 0
    assert last_json(ended.stdout)["num_failed"] == 0, "an interrupted trial is not a failed one"


def test_run_ctrl_c_puts_back_says_so_and_goes_on(folder: Path) -> None:
    (folder / "long.yaml").write_text(SMALL.replace("epochs: 3", "epochs: 4000") + "search: {pruner: none}\n")
    database = folder / "studies" / "fbsearch.db"
    with started(folder, "run", "long.yaml", "--trials", "4", "--workers", "2") as process:
        deadline = time.monotonic() + 240
        while not (database.exists() and process.poll() is None and TrialState.RUNNING in read_states(folder, "small")):
            assert time.monotonic() < deadline, "no trial was started"
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the coordinator and all workers
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "interrupted at 0 of 4 trials" in output and "the same command goes on" in output
    assert "Traceback" not in output
    found = states(folder, "small")
    assert set(found) == {TrialState.FAIL, TrialState.WAITING}


def read_states(folder: Path, name: str) -> list[TrialState]:
    try:
        return states(folder, name)
    except Exception:  # the database is being made
        return []


def test_run_a_second_coordinator_on_the_same_study_is_refused(folder: Path) -> None:
    with started(folder, "run", "small.yaml", "--trials", "500", "--workers", "1"):
        deadline = time.monotonic() + 240
        while not read_states(folder, "small"):  # the lock's file is there before the lock is
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second = fbsearch(folder, "run", "small.yaml", "--trials", "5", "--workers", "1")
    assert second.returncode == 1
    assert (
        second.stderr.startswith("error:") and "another `fbsearch run`" in second.stderr and "--name" in second.stderr
    )


def test_run_with_a_changed_space_says_what_changed(folder: Path) -> None:
    assert fbsearch(folder, "run", "small.yaml", "--trials", "1", "--workers", "0").returncode == 0
    (folder / "small.yaml").write_text(SMALL.replace("high: 0.05", "high: 0.1"))
    refused = fbsearch(folder, "run", "small.yaml", "--trials", "2", "--workers", "0")
    assert refused.returncode == 1
    assert "space.train.learning_rate" in refused.stderr and "0.05" in refused.stderr and "--name" in refused.stderr
    assert fbsearch(folder, "run", "small.yaml", "--trials", "1", "--workers", "0", "--name", "other").returncode == 0
    assert len(states(folder, "other")) == 1


def write_images(folder: Path, source: zipfile.ZipFile, per_class: dict[str, int]) -> None:
    taken: dict[tuple[str, ...], int] = {}
    for name in sorted(source.namelist()):
        part = Path(name).parts
        key = part[:-1]
        if name.endswith(".jpg") and taken.get(key, 0) < per_class[part[0]]:
            taken[key] = taken.get(key, 0) + 1
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read(name))


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not CIFAR_ZIP.exists():
        pytest.skip(f"{CIFAR_ZIP} is not there")
    monkeypatch.setenv("FBSEARCH_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(CIFAR_ZIP) as source:
        write_images(tmp_path / "data" / "cifar10", source, {"train": 20, "test": 5})
    (tmp_path / "data" / "images").symlink_to("cifar10")
    return tmp_path


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("*.yaml")))
def test_run_every_committed_study_file_works(cifar: Path, name: str) -> None:
    content = yaml.safe_load((STUDIES / name).read_text())
    train = content.get("train", {}) | {"epochs": 1}
    if train.get("budget") is not None:
        train["budget"] = {"seconds": 0.5}
    (cifar / name).write_text(yaml.safe_dump(content | {"train": train}))
    assert fbsearch(cifar, "validate", str(STUDIES / name)).returncode == 0
    ran = fbsearch(cifar, "run", name, "--trials", "1", "--workers", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    assert last_json(ran.stdout)["num_complete"] == 1


def test_run_names_a_broken_image_and_skips_it_if_wanted(cifar: Path) -> None:
    broken = sorted((cifar / "data" / "cifar10" / "train" / "cat").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:100])
    study = "name: s\ndata: {name: folder, root: data/cifar10}\nmodel: {base_channels: 4}\ntrain: {epochs: 1}\n"
    space = "space: {model.fractal_levels: {choices: [[1]]}}\n"
    (cifar / "s.yaml").write_text(study + space)
    refused = fbsearch(cifar, "run", "s.yaml", "--trials", "1", "--workers", "1")
    assert refused.returncode == 1 and broken.name in refused.stderr and "skip_broken" in refused.stderr
    (cifar / "s.yaml").write_text(study.replace("cifar10}", "cifar10, skip_broken: true}") + space)
    assert fbsearch(cifar, "run", "s.yaml", "--trials", "1", "--workers", "1", "--name", "t").returncode == 0
