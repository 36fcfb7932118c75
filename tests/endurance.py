"""A study of thousands of short trials while others read it: does anything grow, does the coordinator ever stand still?

    python tests/endurance.py --trials 2000 --output reports/endurance.md

Two real worker processes train networks of one block on 64 digits for an epoch. Meanwhile `fbsearch status`, `watch`,
`report` and requests to `fbsearch dashboard` follow one another without a pause.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import psutil
from chaos import best_problems, curve_problems
from rich.console import Console

from fbsearch.bench.common import describe_machine, machine
from fbsearch.cli.live import make_view
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import Event
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.database import open_storage
from fbsearch.study.locks import claim_study
from fbsearch.study.study import create_study
from fbsearch.study.trial_record import is_finished
from fbsearch.workers.local import ProcessExecutor

CONFIG = StudyConfig.model_validate(
    {
        "name": "endurance",
        "data": {"limit": 64},
        "model": {"base_channels": 4, "pattern_resolution": 8, "fractal_levels": [1]},
        "train": {"epochs": 1},
        "space": {
            "train.learning_rate": {"low": 0.003, "high": 0.05, "log": True},
            "model.pattern": {"choices": ["mandelbrot", "sierpinski", "julia", "cantor", "dragon_curve"]},
        },
    }
)
LONGEST_TURN = 1.0
MOST_SECONDS = 7200.0


@dataclasses.dataclass
class Sample:
    """What the processes held when so many trials were finished; of several workers the most."""

    num_finished: int
    coordinator_mib: float
    coordinator_files: int
    coordinator_threads: int
    worker_mib: float
    worker_files: int
    worker_threads: int


class Observer:
    """Looks at the coordinator from inside: at every turn of its loop, and at every so many finished trials."""

    def __init__(self, *, every: int, show: Any) -> None:
        self._every, self._show = every, show
        self.turns: list[float] = []
        self.samples: list[Sample] = []
        self._last = 0.0

    def __call__(self, state: SearchState, event: Event | None) -> None:
        self._show(state, event)
        if event is None:
            now = time.monotonic()
            if self._last:
                self.turns.append(now - self._last)
            self._last = now
        elif state.num_finished >= self._every * (len(self.samples) + 1):
            self.samples.append(take_sample(state.num_finished))


def take_sample(num_finished: int) -> Sample:
    """Look at this process, the coordinator, and at its workers."""
    here = psutil.Process()
    workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    figures = [(process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()) for process in workers]
    return Sample(
        num_finished,
        here.memory_info().rss / 2**20,
        here.num_fds(),
        here.num_threads(),
        *(max(column) for column in zip(*figures, strict=True)),
    )


def coordinate(url: str, *, num_trials: int, num_workers: int, every: int) -> None:
    """Search as `fbsearch run` does, and print what was seen as JSON. In a process of its own."""
    storage = open_storage(url, create=True, retries=True)
    executor = ProcessExecutor(CONFIG.data, devices=["cpu"] * num_workers)
    with claim_study(storage, CONFIG.name) as claim, make_view(Console(stderr=True), CONFIG) as view:
        study = create_study(storage, CONFIG)
        observer = Observer(every=every, show=view)
        Coordinator(study, CONFIG, executor, num_trials=num_trials, show=observer, claim=claim).run()
    print(json.dumps({"turns": observer.turns, "samples": [dataclasses.asdict(s) for s in observer.samples]}))


class Readers:
    """Threads that read the study through fbsearch's commands, one call after another, until `stop`."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._environment = folder, os.environ | {"FBSEARCH_STORAGE": url}
        self.calls: Counter[str] = Counter()
        self.errors: list[str] = []
        self._is_over = threading.Event()
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self._port = probe.getsockname()[1]
        self._dashboard = self._start("dashboard", "--port", str(self._port))
        loops = (self._commands, self._requests)
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._dashboard.kill()
        self._dashboard.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fbsearch", *arguments]
        options: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self._folder, env=self._environment, **options)

    def _commands(self) -> None:
        while not self._is_over.is_set():
            for command in (["status"], ["watch", "--once"], ["report"], ["status", "--json"]):
                process = self._start(*command)
                _, errors = process.communicate()
                self.calls[command[0]] += 1
                if process.returncode != 0:
                    self.errors.append(f"{' '.join(command)}: {errors.strip()[-300:]}")

    def _requests(self) -> None:
        pages = ["/dashboard/", "/api/studies", "/api/studies/1?after=0"]
        while not self._is_over.is_set():
            for page in pages:
                with contextlib.suppress(ConnectionRefusedError):  # it is just being started
                    try:
                        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{page}", timeout=60) as answer:
                            answer.read()
                            self.calls[f"dashboard {page}"] += 1
                    except urllib.error.HTTPError as error:
                        self.errors.append(f"dashboard {page}: {error}")
                    except urllib.error.URLError as error:
                        if not isinstance(error.reason, ConnectionRefusedError):
                            self.errors.append(f"dashboard {page}: {error}")
            self._is_over.wait(0.05)


def endure(folder: Path, *, num_trials: int, num_workers: int, every: int) -> dict[str, Any]:
    """Run one study beside its readers; return the figures and what was wrong."""
    url = f"sqlite:///{folder}/endurance.db"
    open_storage(url, create=True).engine.dispose()
    conditions, started = machine(), time.monotonic()
    command = [sys.executable, __file__, "--coordinate", url, "--trials", str(num_trials)]
    command += ["--workers", str(num_workers), "--every", str(every)]
    coordinator = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    wait_for_study(url)
    readers = Readers(folder, url)
    try:
        output, _ = coordinator.communicate(timeout=MOST_SECONDS)
    finally:
        coordinator.kill()
        readers.stop()
    assert coordinator.returncode == 0, f"the coordinator ended with {coordinator.returncode}"
    found = json.loads(output.splitlines()[-1])
    problems = check(url, num_trials=num_trials) + readers.errors
    return found | {
        "machine": conditions, "seconds": time.monotonic() - started, "calls": readers.calls, "problems": problems,
    }  # fmt: skip


def wait_for_study(url: str) -> None:
    """Wait until the coordinator has made the study."""
    storage = open_storage(url)
    while not storage.get_all_studies():
        time.sleep(0.1)
    storage.engine.dispose()


def check(url: str, *, num_trials: int) -> list[str]:
    """What is wrong with the study at its end."""
    storage = open_storage(url)
    study = optuna.load_study(study_name=CONFIG.name, storage=storage)
    finished = [trial for trial in study.get_trials(deepcopy=False) if is_finished(trial)]
    problems = [text for trial in finished for text in curve_problems(trial)] + list(best_problems(study, finished))
    if len(finished) != num_trials:
        problems.append(f"{len(finished)} finished instead of {num_trials}")
    storage.engine.dispose()
    return problems


def page(found: dict[str, Any], *, num_trials: int) -> str:
    """The figures in Markdown."""
    heads = [
        "finished",
        *(f"{who}: {what}" for who in ("coordinator", "worker") for what in ("MiB", "files", "threads")),
    ]
    rows = [[f"{cell:.0f}" for cell in sample.values()] for sample in found["samples"]]
    table = "".join("| " + " | ".join(row) + " |\n" for row in [heads, ["---:"] * len(heads), *rows])
    turns = sorted(found["turns"])
    median, longest, slow = turns[len(turns) // 2], turns[-1], sum(turn > LONGEST_TURN for turn in turns)
    calls = ", ".join(f"{count:,} of {what}" for what, count in found["calls"].items())
    problems = "".join(f"- {problem}\n" for problem in found["problems"]) or "None.\n"
    return f"""# A study of {num_trials:,} short trials

`python tests/endurance.py --trials {num_trials} --output reports/endurance.md`: two worker processes train networks of
one block on 64 digits for an epoch, {found["seconds"] / 60:.0f} minutes in all. Read meanwhile without a pause:
{calls}.
{describe_machine(found["machine"])}.

{table}
Turns of the coordinator's loop, which waits up to 0.5 s for events: {len(turns):,}, median {median:.2f} s, 99% under
{turns[int(0.99 * len(turns))]:.2f} s, longest {longest:.2f} s, {slow} over {LONGEST_TURN:.0f} s.

Lost, duplicated, not whole, or an error of a reader:

{problems}"""


def main() -> None:
    """Run the study and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--coordinate", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    numbers = {"num_trials": arguments.trials, "num_workers": arguments.workers, "every": arguments.every}
    if arguments.coordinate:
        coordinate(arguments.coordinate, **numbers)
        return
    with tempfile.TemporaryDirectory(prefix="fbsearch-endurance-") as folder:
        found = endure(Path(folder), **numbers)
    arguments.output.write_text(page(found, num_trials=arguments.trials), encoding="utf-8")
    sys.exit(1 if found["problems"] else 0)


if __name__ == "__main__":
    main()
