"""The time that the coordinator and its database take, measured with simulated workers that train nothing.

A simulated worker lives in the coordinator's process and sends the events of a trial of a known length at the times
at which a real worker would. Each figure is measured in a new process.
"""

import heapq
import itertools
import math
import multiprocessing
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import psutil
from rich.console import Console

from fbsearch.bench.common import format_figure, machine, make_table, print_report
from fbsearch.config.models import TrainConfig, TrialConfig
from fbsearch.config.study_file import SearchConfig, StudyConfig
from fbsearch.messages import DatasetInfo, Epoch, EpochStats, Event, Finished, Ready, Started, Stopped
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.database import hide_password, open_storage
from fbsearch.study.locks import claim_study
from fbsearch.study.study import create_study

NUM_EPOCHS = 10
SHORT_SECONDS = 0.05
DIGITS = DatasetInfo(
    num_classes=10, in_channels=1, image_size=8, num_train=1150, num_val=287, num_test=360,
    class_names=tuple(map(str, range(10))),
)  # fmt: skip


class SimulatedExecutor:
    """Workers that train nothing: each trial sends its epochs evenly over `trial_seconds`."""

    def __init__(self, *, num_workers: int, trial_seconds: float) -> None:
        self.num_workers, self._trial_seconds = num_workers, trial_seconds
        self.busy_seconds = 0.0
        self._due: list[tuple[float, int, Event]] = []
        self._order = itertools.count()

    def start(self) -> None:
        for worker in range(self.num_workers):
            self._at(0.0, Ready(worker, "simulated", DIGITS, {}, seconds=0.0))

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        now, epochs = time.monotonic(), config.train.epochs
        self._at(now, Started(worker, trial, num_parameters=1000 * config.model.base_channels, flops=10**6))
        for epoch in range(1, epochs + 1):
            stats = _epoch_stats(config, epoch)
            self._at(now + self._trial_seconds * epoch / epochs, Epoch(worker, trial, stats))
        self._at(now + self._trial_seconds, Finished(worker, trial, stats.val_accuracy))
        self.busy_seconds += self._trial_seconds

    def kill(self, worker: int, *, reason: str) -> None:
        raise AssertionError(f"simulated worker {worker} cannot hang: {reason}")

    def stop_trial(self, worker: int) -> None:
        now = time.monotonic()
        left = sorted(item for item in self._due if item[2].worker == worker)
        if not left:
            return  # the trial has ended already
        self._due = [item for item in self._due if item[2].worker != worker]
        heapq.heapify(self._due)
        self.busy_seconds -= max(0.0, left[-1][0] - now)
        self._at(now, Stopped(worker, -1))

    def events(self, *, timeout: float) -> list[Event]:
        if self._due:
            time.sleep(max(0.0, min(timeout, self._due[0][0] - time.monotonic())))
        events, now = [], time.monotonic()
        while self._due and self._due[0][0] <= now:
            events.append(heapq.heappop(self._due)[2])
            if self.num_workers == 1:
                break  # a single worker sends one event at a time
        return events

    def close(self) -> None:
        self._due = []

    def _at(self, due: float, event: Event) -> None:
        heapq.heappush(self._due, (due, next(self._order), event))


def _epoch_stats(config: TrialConfig, epoch: int) -> EpochStats:
    """Return one epoch of a learning curve that depends on the sampled values, so that samplers and pruners work."""
    distance = abs(math.log(config.train.learning_rate / 0.01)) / 3
    top = max(0.1, 0.99 - 0.2 * distance - 0.4 / config.model.base_channels - 0.001 * (config.seed % 7))
    accuracy = top * (1 - math.exp(-epoch))
    return EpochStats(
        epoch=epoch, train_loss=1 / epoch, train_accuracy=accuracy, val_loss=1 / epoch, val_accuracy=accuracy,
        learning_rate=config.train.learning_rate, seconds=0.5, step_seconds=0.4, val_seconds=0.1,
        images_per_second=2300.0, memory_mib=512.0,
    )  # fmt: skip


def bench_search(
    *,
    storage: str | None,
    sizes: Sequence[int],
    say: Callable[[str], None],
    num_timed: int = 40,
    num_short: int = 300,
    num_rounds: int = 8,
    long_seconds: float = 5.0,
) -> dict[str, Any]:
    """Measure the seconds of a trial at `sizes` finished trials, the throughput, and how busy 64 workers are.

    A trial has NUM_EPOCHS epochs; its time begins at the end of the trial before. `num_timed` trials are timed at each
    size; `num_short` trials run on 8 workers, and `num_rounds` trials of `long_seconds` on each of 64. `storage` None
    is a new SQLite file.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = storage or f"sqlite:///{Path(folder, 'bench.db')}"
        names = [f"bench-search-{secrets.token_hex(4)}" for _ in range(len(sizes) + 2)]
        report: dict[str, Any] = {"machine": machine(), "storage": hide_password(storage or "sqlite:///FILE")}
        report["trials"] = []
        for size, name in zip(sizes, names, strict=False):
            say(f"a study of {size:,} finished trials")
            if size:
                _in_process(_search, url, name, {"sampler": "random"}, 64, 0.0, size)
            report["trials"].append({"size": size} | _in_process(_search, url, name, {}, 1, 0.0, size + num_timed))
        many = (("short", 8, SHORT_SECONDS, num_short), ("long", 64, long_seconds, 64 * num_rounds))
        for (key, num_workers, seconds, count), name in zip(many, names[-2:], strict=True):
            say(f"{count} trials of {seconds} s on {num_workers} workers")
            report[key] = _in_process(_search, url, name, {"pruner": "none"}, num_workers, seconds, count)
            report[key] |= {"num_workers": num_workers, "trial_seconds": seconds}
        if storage is not None:
            _in_process(_delete, storage, names)
    return report


def _in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process. Its arguments go through a pipe: a password is on no command line."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _delete(url: str, names: list[str]) -> None:
    storage = open_storage(url)
    for name in names:
        optuna.delete_study(study_name=name, storage=storage)


def _search(
    url: str, name: str, search: dict[str, str], num_workers: int, trial_seconds: float, num_trials: int
) -> dict[str, Any]:
    """Search until a study has `num_trials` trials and return the figures of this process."""
    settings = SearchConfig.model_validate(search)
    config = StudyConfig(name=name, train=TrainConfig(epochs=NUM_EPOCHS), search=settings)
    executor = SimulatedExecutor(num_workers=num_workers, trial_seconds=trial_seconds)
    ends: list[tuple[float, bool]] = []

    def note_end(_state: SearchState, event: Event | None) -> None:
        if isinstance(event, (Ready, Finished, Stopped)):
            ends.append((time.monotonic(), isinstance(event, Finished)))

    started = time.monotonic()
    storage = open_storage(url, create=True)
    with claim_study(storage, name) as claim:
        study = create_study(storage, config)
        coordinator = Coordinator(study, config, executor, num_trials=num_trials, show=note_end, claim=claim)
        cpu_before = time.process_time()
        state = coordinator.run()
    elapsed, cpu = ends[-1][0] - ends[0][0], time.process_time() - cpu_before
    whole = [end - before for (before, _), (end, is_whole) in itertools.pairwise(ends) if is_whole]
    num_ended = state.num_finished - state.num_finished_before
    return {
        "num_trials": num_ended,
        "num_whole": len(whole),
        "open_seconds": ends[0][0] - started,
        "seconds_per_trial": statistics.median(whole),
        "max_seconds_per_trial": max(whole),
        "cpu_seconds_per_trial": cpu / num_ended,
        "trials_per_second": num_ended / elapsed,
        "busy": executor.busy_seconds / (elapsed * num_workers),
        "mib": psutil.Process().memory_info().rss / 2**20,
    }


def print_search_bench(console: Console, report: dict[str, Any]) -> None:
    """Print the report of `bench_search` as tables."""
    trials = [
        (
            f"{row['size']:,}",
            format_figure(1000 * row["seconds_per_trial"], " ms"),
            format_figure(1000 * row["max_seconds_per_trial"], " ms"),
            format_figure(1000 * row["cpu_seconds_per_trial"], " ms"),
            format_figure(row["open_seconds"], " s"),
            format_figure(row["mib"], " MiB"),
            str(row["num_whole"]),
        )
        for row in report["trials"]
    ]
    columns = ("finished trials", "median", "longest", "processor", "opening", "memory", "n")
    many = [
        (
            f"{row['num_workers']} of {row['trial_seconds']} s",
            format_figure(row["trials_per_second"]),
            f"{row['busy']:.1%}",
            format_figure(1000 * row["cpu_seconds_per_trial"], " ms"),
            str(row["num_trials"]),
        )
        for row in (report["short"], report["long"])
    ]
    print_report(
        console,
        report,
        f"{report['storage']}; simulated workers: nothing is trained",
        make_table(f"One trial: ask, {NUM_EPOCHS} reports, tell", columns, trials),
        make_table("Workers and trials", ("", "trials/s", "busy", "processor", "n"), many),
    )
