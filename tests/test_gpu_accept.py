"""The acceptance run for GPUs, without one: all its steps at their smallest, and what becomes of steps that fail."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from gpu.harness import Setting, Step, run_steps

SCRIPT = Path(__file__).with_name("gpu_accept.py")


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "A", "B", "C", "--device", "cpu", "--tiny", "--output", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    for part, num_steps in (("A", 7), ("B", 4), ("C", 5)):
        records = read_records(tmp_path / f"{part}.jsonl")
        assert len(records) == num_steps
        for record in records:
            assert lines.pop(0).startswith(f"PASS {part} {record['step']} ")
            assert record["ok"] and record["predicted"] and record["measured"]


def raises(setting: Setting) -> tuple[bool, dict[str, Any]]:
    raise ValueError("a typo")


def crashes(setting: Setting) -> tuple[bool, dict[str, Any]]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return True, {}


def hangs(setting: Setting) -> tuple[bool, dict[str, Any]]:
    threading.Event().wait()
    return True, {}


def misses(setting: Setting) -> tuple[bool, dict[str, Any]]:
    print("what it has printed")
    return False, {"accuracy": 0.5}


def passes(setting: Setting) -> tuple[bool, dict[str, Any]]:
    return True, {"accuracy": 0.9}


def test_steps_that_fail_in_any_way_keep_none_from_running(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    setting = Setting("cpu", True, tmp_path, tmp_path, tmp_path)
    functions = (raises, crashes, hangs, misses, passes)
    limits = {hangs: 1.0}
    steps = [Step(one.__name__, one, limits.get(one, 300.0), {"accuracy": ">= 0.8"}) for one in functions]
    assert not run_steps("A", steps, setting, limit_seconds=600)
    records = read_records(tmp_path / "A.jsonl")
    assert [record["ok"] for record in records] == [False] * 4 + [True]
    errors = [record["measured"].get("error", "") for record in records]
    assert errors == ["ValueError: a typo", "the process ended with exit code -11", errors[2], "", ""]
    assert errors[2].startswith("stopped after 1 s")
    assert (tmp_path / "misses.log").read_text() == "what it has printed\n"
    assert [line.split()[:3] for line in capfd.readouterr().out.splitlines()][-2:] == [
        ["FAIL", "A", "misses"],
        ["PASS", "A", "passes"],
    ]


def test_part_whose_time_is_over_says_so_of_every_step(tmp_path: Path) -> None:
    setting = Setting("cpu", True, tmp_path, tmp_path, tmp_path)
    assert not run_steps("B", [Step("late", passes, 60.0)], setting, limit_seconds=0)
    assert read_records(tmp_path / "B.jsonl")[0]["measured"] == {"error": "no time was left for it"}
