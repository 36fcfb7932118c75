"""The parts that all benchmarks share: conditions of the machine, interleaved timing, printing of figures."""

import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fbsearch.errors import ConfigError

VERSIONED = ("fbsearch", "torch", "numpy", "optuna")
# A sample of several calls takes at least this long: a scheduler's slice is a few milliseconds.
MIN_SAMPLE_SECONDS = 0.1
PLAIN_WIDTH = 160


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one figure for each sample, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median in seconds. Disturbances on a shared machine only ever lengthen a sample."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range as a share of the median; 0 for a single sample."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    num_warm_ups: int = 2,
    min_seconds: float = MIN_SAMPLE_SECONDS,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time functions in turns (A B A B ...), so that disturbances of the machine affect all of them alike.

    Each function is called `num_warm_ups` times, then once to estimate its time; neither counts. Then `repeats`
    samples are taken of each; a sample is as many calls as take at least `min_seconds`. `wait` is called after the
    calls of a sample, before the clock is read: torch.cuda.synchronize where the calls only queue work.
    """

    def sample(call: Callable[[], object], num_calls: int) -> float:
        """Return the seconds of one call, averaged over `num_calls`."""
        started = clock()
        for _ in range(num_calls):
            call()
        wait()
        return (clock() - started) / max(num_calls, 1)

    num_calls = {}
    for name, call in candidates.items():
        sample(call, num_warm_ups)
        num_calls[name] = max(1, math.ceil(min_seconds / sample(call, 1)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            samples[name].append(sample(call, num_calls[name]))
    return {name: Timing(tuple(seconds)) for name, seconds in samples.items()}


def machine(*, num_threads: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Return the conditions of a measurement for its `--json`: hardware, versions, threads and load.

    `load` is the one-minute load average before the measurement, in busy cores.
    """
    return {
        "cpu": _cpu_model(),
        "num_cores": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "num_threads": num_threads,
        "device": device,
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in VERSIONED},
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
    """Return the content of `machine` on one line."""
    versions = machine["versions"]
    threads = f", torch threads {machine['num_threads']}" if machine["num_threads"] else ""
    return (
        f"{machine['cpu']}, {machine['num_cores']} cores{threads}, device {machine['device']}, "
        f"torch {versions['torch']}, Python {versions['python']}, load {machine['load']:.1f}"
    )


def choose_names(names: Sequence[str], allowed: Iterable[str], *, flag: str) -> list[str]:
    """Return the names, each once. Raises ConfigError, which names the flag, for one that is not allowed."""
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{flag} {name}: unknown; allowed: {', '.join(allowed)}, several joined by commas")
    return list(dict.fromkeys(names))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with this number of threads within the context."""
    import torch  # `bench search` measures the memory of a process without it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_console() -> Console:
    """Return a console as wide as the terminal, or wide enough for every table where there is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def print_report(console: Console, report: Mapping[str, Any], *parts: str | Table) -> None:
    """Print the machine that a benchmark ran on, then lines of text and tables."""
    for part in (describe_machine(report["machine"]), *parts):
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, num_names: int = 1) -> Table:
    """Return a table for `print_report`: the first `num_names` columns are aligned left, the figures right."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        is_figure = index >= num_names
        table.add_column(column, justify="right" if is_figure else "left", header_style="dim", no_wrap=is_figure)
    for row in rows:
        table.add_row(*row)
    return table


def format_figure(value: float | None, unit: str = "") -> str:
    """Return three significant digits with thousands separated, such as 1,820 or 0.0123; empty for None."""
    if value is None:
        return ""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}{unit}"
