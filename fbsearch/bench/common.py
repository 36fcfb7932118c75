"""What every benchmark shares: the machine it ran on, fair timing, and how figures are printed.

Must not know what is measured, and must not import torch: the coordinator's own benchmark uses it too.
"""

import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

VERSIONED = ("fbsearch", "torch", "numpy", "optuna")
# Shorter samples are made of several calls: a scheduler's slice is a few milliseconds.
LEAST_SECONDS = 0.1
PLAIN_WIDTH = 160


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one figure for each sample, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median in seconds: on a shared machine some samples are disturbed, and only ever upwards."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles as a share of the median; 0 for a single sample."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    num_warm_ups: int = 2,
    least_seconds: float = LEAST_SECONDS,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time functions in turns, A B A B ..., so that what else the machine does falls on all of them alike.

    Each is called `num_warm_ups` times or more before anything counts. A sample is as many calls as take at least
    `least_seconds`; there are `repeats` samples of each. `wait` is called after the calls of a sample and before the
    clock is read: torch.cuda.synchronize where the calls only queue work.
    """
    num_calls = {}
    for name, call in candidates.items():
        _sample(call, num_warm_ups, wait)
        num_calls[name] = max(1, math.ceil(least_seconds / _sample(call, 1, wait)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            samples[name].append(_sample(call, num_calls[name], wait))
    return {name: Timing(tuple(seconds)) for name, seconds in samples.items()}


def _sample(call: Callable[[], object], num_calls: int, wait: Callable[[], object]) -> float:
    """Seconds of one call, averaged over `num_calls`."""
    started = time.perf_counter()
    for _ in range(num_calls):
        call()
    wait()
    return (time.perf_counter() - started) / max(num_calls, 1)


def machine(*, num_threads: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """The conditions of a measurement, for its `--json`: hardware, versions, threads, and what else was running.

    `load` is the machine's one-minute load average before the measurement, the number of busy cores.
    """
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONED}
    return {
        "cpu": _cpu_model(),
        "num_cores": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "num_threads": num_threads,
        "device": device,
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "load": psutil.getloadavg()[0],
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine(machine: Mapping[str, Any]) -> str:
    """What `machine` has found, on one line."""
    versions = machine["versions"]
    threads = f", torch threads {machine['num_threads']}" if machine["num_threads"] else ""
    return (
        f"{machine['cpu']}, {machine['num_cores']} cores{threads}, device {machine['device']}, "
        f"torch {versions['torch']}, Python {versions['python']}, load {machine['load']:.1f}"
    )


def make_console() -> Console:
    """Where figures are printed: as wide as the terminal, and wide enough for every table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_names: int = 1) -> Table:
    """A table of figures: the first `num_names` columns to the left, numbers to the right, in one look for all."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        justify = "left" if index < num_names else "right"
        table.add_column(escape(column), justify=justify, header_style="dim", no_wrap=index >= num_names)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def format_figure(value: float | None, unit: str = "") -> str:
    """Three significant digits, thousands separated, empty for None: 1,820 or 0.0123."""
    if value is None:
        return ""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}{unit}"
