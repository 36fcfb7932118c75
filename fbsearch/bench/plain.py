"""fbsearch against the plain way to search: the same trials by `fbsearch run` and by `plain_search`, in turns.

Both run as processes of their own, with a fresh database each. Must not know how either of them works.
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

from fbsearch.bench.common import describe_machine, machine, make_table
from fbsearch.bench.trial import bench_run, search_seconds
from fbsearch.config.study_file import StudyConfig, load_study_file, render_study
from fbsearch.errors import SearchError
from fbsearch.study.database import open_storage
from fbsearch.study.trial_record import FINISHED

PLAIN, FBSEARCH = "plain script", "fbsearch"


def bench_against_plain(
    study_file: Path, *, num_trials: int, repeats: int, workers: str, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Trials per hour of both, with the study's pruner and without pruning; `repeats` runs each, in turns.

    The sampler is `random`, so that both train the same configurations, with the seeds 0, 1 ...; nothing else of the
    study file is changed.
    The result has `machine`, `study_file`, `num_trials`, `runs` (one a search: `who`, `pruner`, `seed`, `num_trials`,
    `seconds` of the whole process, `search_seconds` from the first trial's start to the last one's end,
    `trials_per_hour` of the latter, `best_val_accuracy`) and `ratios` of medians. SearchError if a run fails.
    """
    config = load_study_file(study_file)
    found = machine(device=device)
    runs = []
    for seed in range(repeats):
        for pruner in dict.fromkeys(("none", config.search.pruner)):
            search = config.search.model_copy(update={"sampler": "random", "pruner": pruner, "seed": seed})
            variant = config.model_copy(update={"search": search})
            for who, bench in ((FBSEARCH, _bench_fbsearch), (PLAIN, _bench_plain)):
                say(f"{who}, pruner {pruner}, seed {seed}")
                figures = bench(variant, num_trials=num_trials, workers=workers, device=device)
                runs.append({"who": who, "pruner": pruner, "seed": seed, **figures})
    return {
        "machine": found,
        "study_file": str(study_file),
        "num_trials": num_trials,
        "runs": runs,
        "ratios": _ratios(runs, config.search.pruner),
    }


def _bench_fbsearch(config: StudyConfig, *, num_trials: int, workers: str, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.yaml")
        path.write_text(render_study(config), encoding="utf-8")
        run = bench_run(path, num_trials=num_trials, workers=workers, device=device, seed=config.search.seed)
    names = ("num_trials", "seconds", "search_seconds", "trials_per_hour", "best_val_accuracy")
    return {name: run[name] for name in names}


def _bench_plain(config: StudyConfig, *, num_trials: int, workers: str, device: str) -> dict[str, Any]:  # noqa: ARG001 (it has one process)
    with tempfile.TemporaryDirectory() as folder:
        path, url = Path(folder, "study.yaml"), f"sqlite:///{folder}/plain.db"
        path.write_text(render_study(config), encoding="utf-8")
        arguments = [str(path), "--trials", str(num_trials), "--storage", url, "--device", device]
        command = [sys.executable, "-W", "ignore", "-m", "fbsearch.bench.plain_search", *arguments]
        started = time.perf_counter()
        # As many threads as torch takes by itself: what a person who writes such a script gets.
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SearchError(f"`{' '.join(command)}` failed: {done.stderr.strip().splitlines()[-1]}")
        storage = open_storage(url)
        trials = optuna.load_study(study_name=config.name, storage=storage).get_trials(states=FINISHED)
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
    """How many times the trials per hour of the plain script fbsearch has."""
    plain = _median(runs, PLAIN, "none", "trials_per_hour")
    ratios = {"no pruning": _median(runs, FBSEARCH, "none", "trials_per_hour") / plain}
    if pruner != "none":
        pruned = _median(runs, FBSEARCH, pruner, "trials_per_hour")
        ratios[f"{pruner} against no pruning"] = pruned / plain
        ratios[f"both {pruner}"] = pruned / _median(runs, PLAIN, pruner, "trials_per_hour")
    return ratios


def print_plain_bench(console: Console, report: dict[str, Any]) -> None:
    """The runs of `bench_against_plain` as a table of medians, and the ratios."""
    console.print(describe_machine(report["machine"]), markup=False, highlight=False, soft_wrap=True)
    runs = report["runs"]
    rows = []
    for who, pruner in dict.fromkeys((run["who"], run["pruner"]) for run in runs):
        keys = ("seconds", "search_seconds", "trials_per_hour", "best_val_accuracy")
        rows.append((who, pruner, *(f"{_median(runs, who, pruner, key):,.4g}" for key in keys)))
    num_repeats = len({run["seed"] for run in runs})
    title = f"{report['study_file']}: {report['num_trials']} trials of the random sampler, medians of {num_repeats}"
    columns = ("", "pruner", "seconds", "search seconds", "trials/h", "best")
    console.print(make_table(title, columns, rows, num_names=2))
    for name, ratio in report["ratios"].items():
        console.print(f"trials per hour, {name}: {ratio:.2f}x the plain script's", highlight=False)
