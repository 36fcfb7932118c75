"""The parts of a trial's time, measured on `fbsearch run` in processes of its own with a new database.

Processor time and memory are sampled from outside, so that the measured program is the one that ships.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from optuna.trial import FrozenTrial
from rich.console import Console

from fbsearch.bench.common import machine, make_table, print_report
from fbsearch.errors import SearchError
from fbsearch.study.database import open_storage
from fbsearch.study.study import load_study
from fbsearch.study.trial_record import TrialRecord, is_finished

SECONDS_BETWEEN_SAMPLES = 0.25


@dataclass
class _Usage:
    """Peak resident memory in MiB (shared pages count in each process) and the coordinator's processor seconds."""

    coordinator_mib: float = 0.0
    worker_mib: float = 0.0
    coordinator_cpu_seconds: float = 0.0
    workers: set[int] = field(default_factory=set)

    def sample(self, coordinator: psutil.Process) -> None:
        self.coordinator_mib = max(self.coordinator_mib, _resident_mib(coordinator))
        times = coordinator.cpu_times()
        self.coordinator_cpu_seconds = times.user + times.system
        for child in coordinator.children():
            # Only workers count, not the helper process of multiprocessing.
            if "spawn_main" in " ".join(child.cmdline()):
                self.workers.add(child.pid)
                self.worker_mib = max(self.worker_mib, _resident_mib(child))


def _resident_mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def bench_trial(study_file: Path, *, num_trials: int, repeats: int, workers: str, device: str) -> dict[str, Any]:
    """Run `fbsearch run STUDY_FILE --trials num_trials` with the seeds 0, 1, ... and return the figures of each run.

    The result has `machine`, `study_file` and `runs`. Raises SearchError if a run fails.
    """
    runs = [
        bench_run(study_file, num_trials=num_trials, workers=workers, device=device, seed=seed)
        for seed in range(repeats)
    ]
    return {"machine": machine(), "study_file": str(study_file), "runs": runs}


def print_trial_bench(console: Console, report: dict[str, Any]) -> None:
    """Print the report of `bench_trial`: median, lowest and highest of the runs."""
    runs = report["runs"]
    rows = []
    for key in runs[0]:
        found = sorted(run[key] for run in runs)
        rows.append((key, *(f"{value:,.4g}" for value in (statistics.median(found), found[0], found[-1]))))
    title = f"{report['study_file']}: {runs[0]['num_trials']} trials, n = {len(runs)}"
    print_report(console, report, make_table(title, ("", "median", "lowest", "highest"), rows))


def bench_run(study_file: Path, *, num_trials: int, workers: str, device: str, seed: int) -> dict[str, Any]:
    """Run a search in a new database and return its figures.

    `overhead_share` is the share of the workers' busy time (from receiving a trial to its end) outside training steps
    and validation. `idle_share` is the share of the time between the first trial's start and the last one's end in
    which workers had no trial.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/bench.db"
        arguments = ["--trials", str(num_trials), "--workers", workers, "--device", device, "--seed", str(seed)]
        command = [
            sys.executable,
            "-P",
            "-m",
            "fbsearch",
            "run",
            str(study_file),
            *arguments,
            "--storage",
            url,
            "--json",
        ]
        started = time.perf_counter()
        log = Path(folder, "log")
        usage, output = _run(command, log)
        seconds = time.perf_counter() - started
        storage = open_storage(url)
        trials = list(filter(is_finished, load_study(storage, None).get_trials(deepcopy=False)))
        storage.engine.dispose()
    return _figures(trials, usage, seconds=seconds, best=json.loads(output.splitlines()[-1])["best"]["value"])


def _run(command: list[str], log: Path) -> tuple[_Usage, str]:
    """Run a command and return what its processes used and printed. Raises SearchError if it fails."""
    usage = _Usage()
    output = log.with_suffix(".out")
    with log.open("w") as errors, output.open("w") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=errors, env=os.environ)
        coordinator = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                usage.sample(coordinator)
            except psutil.NoSuchProcess:
                break  # the coordinator or a worker has ended
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.wait() != 0:
        raise SearchError(f"`{' '.join(command)}` failed: {log.read_text().strip().splitlines()[-1]}")
    return usage, output.read_text()


def _figures(trials: list[FrozenTrial], usage: _Usage, *, seconds: float, best: float) -> dict[str, Any]:
    records = list(map(TrialRecord.of, trials))
    history = [epoch for record in records for epoch in record.history or ()]
    steps, validation = (sum(epoch[key] for epoch in history) for key in ("step_seconds", "val_seconds"))
    busy = sum(record.seconds or 0 for record in records)
    searching = search_seconds(trials)
    return {
        "num_trials": len(trials),
        "num_workers": len(usage.workers),
        "best_val_accuracy": best,
        "seconds": seconds,
        "startup_seconds": seconds - searching,
        "search_seconds": searching,
        "trials_per_hour": 3600 * len(trials) / searching,
        "step_seconds": steps,
        "val_seconds": validation,
        "busy_seconds": busy,
        "overhead_share": 1 - (steps + validation) / busy,
        "idle_share": max(0.0, 1 - busy / (searching * len(usage.workers))),
        "coordinator_cpu_share": usage.coordinator_cpu_seconds / seconds,
        "coordinator_mib": usage.coordinator_mib,
        "worker_mib": usage.worker_mib,
    }


def search_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Return the seconds from the first trial's start to the last one's end."""
    starts = [trial.datetime_start for trial in trials if trial.datetime_start]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return (max(ends) - min(starts)).total_seconds()
