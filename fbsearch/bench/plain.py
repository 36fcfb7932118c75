"""Trials per hour of `fbsearch run` and of the plain script in `plain_search`, with the same trials, in turns.

Both run in processes of their own with a new database each.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from fbsearch.bench.common import machine, make_table, print_report
from fbsearch.bench.trial import bench_run, search_seconds
from fbsearch.config.study_file import load_study_file, render_study
from fbsearch.errors import ConfigError, SearchError
from fbsearch.study.database import open_storage
from fbsearch.study.trial_record import FINISHED

PLAIN, FBSEARCH = "plain script", "fbsearch"
FIGURES = ("seconds", "search_seconds", "trials_per_hour", "best_val_accuracy")


def bench_against_plain(
    study_file: Path, *, num_trials: int, repeats: int, workers: str, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the trials per hour of both, without pruning and with the study's pruner, `repeats` runs each.

    Everything is as in the study file, except the seeds 0, 1, ... and the sampler: `random`, so that both train the
    same configurations.
    The result has `machine`, `study_file`, `num_trials`, `runs` (one for each search: `who`, `pruner`, `seed`,
    `num_trials`, `seconds` of the whole process, `search_seconds` from the first trial's start to the last one's end,
    `trials_per_hour` of the latter, `best_val_accuracy`) and `ratios` of medians. Raises SearchError if a run fails.
    """
    config = load_study_file(study_file)
    if config.train.budget is not None:
        raise ConfigError(f"{study_file}: train.budget: the plain script trains whole passes; null compares equal work")
    if config.search.goals != ("val_accuracy",):
        raise ConfigError(f"{study_file}: search.metric, search.objectives: the plain script maximises val_accuracy")
    found = machine(device=device)
    runs = []
    for seed in range(repeats):
        for pruner in dict.fromkeys(("none", config.search.pruner)):
            search = config.search.model_copy(update={"sampler": "random", "pruner": pruner, "seed": seed})
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "study.yaml")
                path.write_text(render_study(config.model_copy(update={"search": search})), encoding="utf-8")
                say(f"{FBSEARCH}, pruner {pruner}, seed {seed}")
                ours = bench_run(path, num_trials=num_trials, workers=workers, device=device, seed=seed)
                say(f"{PLAIN}, pruner {pruner}, seed {seed}")
                plain = _bench_plain(path, num_trials=num_trials, device=device)
            for who, figures in ((FBSEARCH, ours), (PLAIN, plain)):
                shared = {name: figures[name] for name in ("num_trials", *FIGURES)}
                runs.append({"who": who, "pruner": pruner, "seed": seed, **shared})
    return {
        "machine": found,
        "study_file": str(study_file),
        "num_trials": num_trials,
        "runs": runs,
        "ratios": _ratios(runs, config.search.pruner),
    }


def _bench_plain(study_file: Path, *, num_trials: int, device: str) -> dict[str, Any]:
    url = f"sqlite:///{study_file.with_name('plain.db')}"
    arguments = [str(study_file), "--trials", str(num_trials), "--storage", url, "--device", device]
    command = [sys.executable, "-P", "-W", "ignore", "-m", "fbsearch", "bench", "plain-search", *arguments]
    started = time.perf_counter()
    # torch's own number of threads, as in a script that a user writes.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SearchError(f"`{' '.join(command)}` failed: {done.stderr.strip().splitlines()[-1]}")
    storage = open_storage(url)
    trials = optuna.load_study(study_name=None, storage=storage).get_trials(states=FINISHED)
    storage.engine.dispose()
    searching = search_seconds(trials)
    return {
        "num_trials": len(trials),
        "seconds": seconds,
        "search_seconds": searching,
        "trials_per_hour": 3600 * len(trials) / searching,
        "best_val_accuracy": max(trial.value for trial in trials if trial.value is not None),
    }


def _median(runs: list[dict[str, Any]], who: str, pruner: str, key: str) -> float:
    return statistics.median(float(run[key]) for run in runs if (run["who"], run["pruner"]) == (who, pruner))


def _ratios(runs: list[dict[str, Any]], pruner: str) -> dict[str, float]:
    """Return the trials per hour of fbsearch divided by those of the plain script, and those of pruning likewise."""
    plain = _median(runs, PLAIN, "none", "trials_per_hour")
    ratios = {"no pruning": _median(runs, FBSEARCH, "none", "trials_per_hour") / plain}
    if pruner != "none":
        pruned = _median(runs, FBSEARCH, pruner, "trials_per_hour")
        ratios[f"{pruner} against no pruning"] = pruned / plain
        ratios[f"both {pruner}"] = pruned / _median(runs, PLAIN, pruner, "trials_per_hour")
    return ratios


def print_plain_bench(console: Console, report: dict[str, Any]) -> None:
    """Print the report of `bench_against_plain`: a table of medians, and the ratios."""
    runs = report["runs"]
    rows = []
    for who, pruner in dict.fromkeys((run["who"], run["pruner"]) for run in runs):
        rows.append((who, pruner, *(f"{_median(runs, who, pruner, key):,.4g}" for key in FIGURES)))
    num_repeats = len({run["seed"] for run in runs})
    title = f"{report['study_file']}: {report['num_trials']} trials of the random sampler, medians of {num_repeats}"
    columns = ("", "pruner", "seconds", "search seconds", "trials/h", "best")
    ratios = (f"trials per hour, {name}: {ratio:.2f}x the plain script's" for name, ratio in report["ratios"].items())
    print_report(console, report, make_table(title, columns, rows, num_names=2), *ratios)
