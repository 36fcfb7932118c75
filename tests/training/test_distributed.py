"""Several processes training one network: parts of a batch, and torchrun for real, on a CPU with gloo."""

import csv
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.nn.functional as F
import yaml
from rich.console import Console

from fbsearch.config.export_file import load_export
from fbsearch.errors import ConfigError
from fbsearch.training.distributed import Team, is_launched, join, own_device
from fbsearch.winners.plan import Settings, plan_runs
from fbsearch.winners.progress import View
from fbsearch.winners.retrain import Loader, retrain

NUM_EPOCHS = 6
MEASURED = ("seconds", "step_seconds", "val_seconds", "images_per_second", "memory_mib")
EXPORT = {
    "format": "fbsearch-export/1",
    "study": "digits",
    "exported": datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC),
    "versions": {},
    "configs": [
        {
            "rank": 1, "trial": 3, "value": 0.9, "num_parameters": 1000, "seed": 7,
            "num_classes": 10, "in_channels": 1, "image_size": 8,
            "data": {"name": "digits"},
            "model": {"fractal_levels": [2], "base_channels": 16, "stem": "conv3", "drop_path": "none", "dropout": 0.0},
            "train": {"epochs": NUM_EPOCHS, "batch_size": 32, "learning_rate": 0.02},
        }
    ],
}  # fmt: skip


@pytest.mark.parametrize(("num_processes", "batch"), [(2, 64), (2, 7), (3, 64), (4, 5)])
def test_parts_make_up_the_batch_and_the_scaled_losses_its_gradient(num_processes, batch):
    logits, labels = torch.randn(batch, 10, requires_grad=True), torch.randint(0, 10, (batch,))
    F.cross_entropy(logits, labels).backward()
    whole = logits.grad
    logits.grad = None
    parts = []
    for rank in range(num_processes):
        team = Team(rank, num_processes)
        own = team.part(labels)
        parts.append(own)
        loss_scale = team.loss_scale(len(own), batch)
        (F.cross_entropy(team.part(logits), own) * loss_scale / num_processes).backward()  # the average over processes
    assert torch.equal(torch.cat(parts), labels)
    torch.testing.assert_close(logits.grad, whole)


def test_team_of_one_does_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model, value = torch.nn.Linear(2, 2), torch.tensor(3.0)
    with join("cpu") as team:
        assert team.leads and team.wrap(model) is model and team.sum(value) is value and team.loss_scale(5, 5) == 1.0
    random = torch.get_rng_state()
    team.seed_epoch(1, 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert not is_launched() and own_device("auto") == "auto"


def test_processes_that_would_get_nothing_are_refused():
    Team(0, 2).check(batch_size=4, num_images=100)
    with pytest.raises(ConfigError, match=r"batch_size 4 .*too few for 3 processes; start fewer"):
        Team(0, 3).check(batch_size=4, num_images=100)


def test_processes_draw_other_numbers_and_the_same_again():
    def draw(rank: int, epoch: int) -> list[float]:
        Team(rank, 2).seed_epoch(5, epoch)
        return torch.rand(3).tolist()

    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(rank, epoch)) for rank in (0, 1) for epoch in (0, 1)}) == 4


def torchrun(folder: Path, output: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    command += ["fbsearch", "train", "best.yaml", "--seeds", "1", "--device", "cpu", "--output", output]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in MEASURED} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_torchrun_killed_goes_on_and_scores_like_one_process(tmp_path):
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(EXPORT), encoding="utf-8")
    process = torchrun(tmp_path, "killed")
    metrics = tmp_path / "killed" / "digits" / "rank-1" / "seed-7" / "metrics.csv"
    deadline = time.monotonic() + 300
    while len(rows(metrics)) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.communicate()
    assert process.returncode != 0
    done = len(rows(metrics))
    assert 2 <= done < NUM_EPOCHS and not metrics.with_name("result.json").exists()

    for output in ("killed", "whole"):
        process = torchrun(tmp_path, output)
        said, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        # One process speaks, once.
        assert said.count("test accuracy") == 1 and said.count("Results are in") == 1
        assert (f"going on after epoch {done}" in said) == (output == "killed")
    whole = tmp_path / "whole" / "digits" / "rank-1" / "seed-7" / "metrics.csv"
    assert [row["epoch"] for row in rows(metrics)] == [str(epoch + 1) for epoch in range(NUM_EPOCHS)]
    assert rows(metrics) == rows(whole), "what follows a break is what would have followed without it"

    best = tmp_path / "best.yaml"
    runs = plan_runs(load_export(best), load_export(best).configs, Settings(num_seeds=1, output=tmp_path / "one"))
    (one,) = retrain(runs, load=Loader("cpu", say=print), view=View(Console(quiet=True)))
    two = json.loads(whole.with_name("result.json").read_text())
    assert one.num_images == two["num_images"] == 360
    # A difference of gradients would leave a net that guesses; seeds of so short a training differ by some points.
    assert two["accuracy"] > 0.85
    assert abs(one.accuracy - two["accuracy"]) < 0.08
