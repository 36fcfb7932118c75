"""A seeded saboteur against a real search: what it does to it, and whether everything is there at the end.

    python tests/chaos.py --seeds 10 --output reports/chaos.md

A study of short trials runs as its user runs it: `fbsearch run`, and the same command again whenever it has ended
otherwise than well. Meanwhile, each fault strikes as soon as a number of trials drawn from the seed is finished.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from postgres_server import PostgresServer
from ray_cluster import NODE, cluster
from sklearn.datasets import load_digits
from small_disk import fill, mounted

from fbsearch.bench.common import describe_machine, machine
from fbsearch.errors import StorageError
from fbsearch.study.database import open_storage
from fbsearch.study.queries import best_trial
from fbsearch.study.trial_record import is_finished

STUDY = """
name: chaos
data: {name: folder, root: images, image_size: 8}
model: {base_channels: 4, pattern_resolution: 8}
train: {epochs: 6}
space:
  model.fractal_levels: {num_stages: [1, 2], level: [1, 2]}
  model.pattern: {choices: [mandelbrot, sierpinski, julia, cantor, dragon_curve]}
  train.learning_rate: {low: 0.003, high: 0.05, log: true}
search: {pruner: median}
"""
EXPLANATION = """
Each row is a study of short trials that runs as its user runs it: `fbsearch run`, and the same command again whenever
it has ended otherwise than well. Faults strike as soon as a number of trials, drawn from the seed, is finished. SQLite
has one coordinator with four workers on a disk of 24 MiB, which is filled for 5 s; PostgreSQL two coordinators with two
workers each, and the server is stopped for 10 s; Ray one coordinator with three workers on three nodes, one of which is
removed and another added, and stores in SQLite.

`database replaced` deletes the SQLite file or puts an older copy in its place: the command must end with an error, and
what it held must lie beside; it is moved back, as the error says. `images changed` exchanges two images of different
classes and kills all workers: the command must end with an error that says so; the images are put back. At the end each
study must have exactly the trials asked for, none running, none that was seen finished lost or changed, every learning
curve whole, every failed trial its reason, and the best trial that the curves say. `(same command again after an
error)` is a command that ended with an error and was given again; the errors stand below the table.
"""
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_OF_FULL_DISK = 5.0
SECONDS_WITHOUT_SERVER = 10.0
# A worker that says nothing for so long is taken for hung; a fresh one has to import torch on a machine that is busy.
TRIAL_TIMEOUT_SECONDS = 20.0
MOST_SECONDS = 900.0


@dataclasses.dataclass
class Outcome:
    """What a run under sabotage came to. `lost`: finished trials that were seen and were not there at the end."""

    where: str
    seed: int
    faults: dict[str, int]
    num_finished: int
    num_failed: int
    num_lost: int
    num_duplicated: int
    problems: list[str]
    errors: list[str]  # with which a command ended that was given again
    seconds: float


class Sabotage:
    """One study under faults. `where` is `sqlite`, `postgresql` or `ray`: what there is to break differs."""

    def __init__(self, folder: Path, *, where: str, seed: int, num_trials: int, storage: str, run: list[str]) -> None:
        self.folder, self.where, self.seed, self.num_trials, self.storage = folder, where, seed, num_trials, storage
        (folder / "chaos.yaml").write_text(STUDY)
        write_images(folder / "images")
        self._command = [sys.executable, "-m", "fbsearch", "run", "chaos.yaml", "--trials", str(num_trials), *run]
        self._random = random.Random(seed)
        self._coordinators: dict[int, subprocess.Popen[bytes]] = {}
        self._ended_well: set[int] = set()
        self._seen: dict[int, tuple[TrialState, float | None]] = {}
        self._faults: Counter[str] = Counter()
        self._errors: list[str] = []
        self._struck: list[psutil.Process] = []
        self._database: optuna.storages.RDBStorage | None = None
        self._study: optuna.Study | None = None
        self._timer: threading.Timer | None = None
        self._problems: list[str] = []

    def go(self, plan: dict[str, tuple[int, Callable[[], None]]], *, num_coordinators: int) -> Outcome:
        """Search to the end; `plan` gives each kind of fault: how often, and what does it."""
        started = time.monotonic()
        strikes = sorted(
            (self._random.randrange(1, max(2, int(0.85 * self.num_trials))), number, kind, strike)
            for number, (kind, (count, strike)) in enumerate(plan.items())
            for _ in range(count)
        )
        try:
            while len(self._ended_well) < num_coordinators:
                assert time.monotonic() < started + MOST_SECONDS, f"not finished; see {self.folder}/*.log"
                self._keep_running(num_coordinators)
                self._look()
                while strikes and strikes[0][0] <= len(self._seen):
                    _, _, kind, strike = strikes.pop(0)
                    strike()
                    self._faults[kind] += 1
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            for process in self._coordinators.values():
                process.kill()
                process.wait()
            for worker in self._struck:  # one that hangs cannot see that its coordinator was killed
                with contextlib.suppress(psutil.Error):
                    worker.kill()
        problems = [*self._problems, *(f"{kind} never struck" for _, _, kind, _ in strikes)]
        return self._check(problems, seconds=time.monotonic() - started)

    def _keep_running(self, num_coordinators: int) -> None:
        for number in range(num_coordinators):
            process, log_file = self._coordinators.get(number), self.folder / f"run-{number}.log"
            if number in self._ended_well or (process is not None and process.poll() is None):
                continue
            if process is not None and process.returncode == 0:
                self._ended_well.add(number)
                continue
            if process is not None and process.returncode != -signal.SIGKILL:
                self._faults["(same command again after an error)"] += 1
                self._errors.append("\n".join(log_file.read_text(errors="replace").splitlines()[-4:]))
                time.sleep(1)
            with log_file.open("ab") as log:
                cache = str(self.folder / "cache")
                environment = os.environ | {"FBSEARCH_STORAGE": self.storage, "FBSEARCH_CACHE": cache}
                self._coordinators[number] = subprocess.Popen(
                    self._command, cwd=self.folder, env=environment, stdout=log, stderr=log
                )

    def _look(self) -> None:
        """Remember every finished trial; the database may be away, or not there yet."""
        with contextlib.suppress(
            StorageError, KeyError, OSError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError
        ):
            self._database = self._database or open_storage(self.storage)
            self._study = self._study or optuna.load_study(study_name="chaos", storage=self._database)
            for trial in self._study.get_trials(deepcopy=False):
                if is_finished(trial):
                    self._seen.setdefault(trial.number, (trial.state, trial.value))

    # What can be done to it

    def kill_coordinator(self) -> None:
        """SIGKILL to one that runs. It is gone on return: the next fault must not take it for one that is alive."""
        if running := self._running():
            killed = self._random.choice(running)
            killed.kill()
            killed.wait()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        """The coordinators that run."""
        return [process for process in self._coordinators.values() if process.poll() is None]

    def _workers(self) -> list[psutil.Process]:
        """The worker processes of all coordinators."""
        if self.where == "ray":
            return [process for process in psutil.process_iter() if _is_actor(process)]
        found = []
        for process in self._coordinators.values():
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
                found += [child for child in children if _is_worker(child)]
        return found

    def _wait_for(self, found: Callable[[], Any]) -> Any:
        """Wait until a look finds something, and keep the coordinators running; None after a minute."""
        deadline = time.monotonic() + 60
        while not (what := found()) and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self._keep_running(len(self._coordinators))
        return what or None

    def kill_worker(self) -> None:
        """SIGKILL, as the kernel's OOM killer sends it."""
        self._signal_worker(signal.SIGKILL)

    def hang_worker(self) -> None:
        """SIGSTOP: alive, silent, and holding its pipe open."""
        self._signal_worker(signal.SIGSTOP)

    def _signal_worker(self, number: signal.Signals) -> None:
        workers = self._wait_for(self._workers)
        worker = self._random.choice(workers) if workers else None
        with contextlib.suppress(psutil.Error):
            if worker is not None:
                worker.send_signal(number)
                self._struck.append(worker)

    def fill_disk(self) -> None:
        """Leave no room where the database lies, for a while."""
        self._timer = threading.Timer(SECONDS_OF_FULL_DISK, fill(self.folder).unlink)
        self._timer.start()

    def replace_database(self) -> None:
        """Delete the database or put an older copy in its place; then do what the command says, and move it back."""
        if self._timer is not None:
            self._timer.join()  # without room there is nowhere to save it
        path = Path(self.storage.removeprefix("sqlite:///"))
        # With workers it is in the middle of its search; one that has only begun may make a new database instead.
        self._wait_for(lambda: any(_has_open(process.pid, path) for process in self._running()) and self._workers())
        holders = self._running()
        self._close()
        if self._random.random() < 0.5:
            older = path.with_name("older.db")
            shutil.copy(path, older)
            older.replace(path)
        else:
            path.unlink()
        self._wait_for_errors(holders, sign="while it was in use")
        saved = list(path.parent.glob(f"{path.stem}-saved-*.db"))
        if len(saved) != 1:
            self._problems.append(f"the replaced database was saved as {saved}")
            return
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            name.unlink(missing_ok=True)
        saved[0].replace(path)

    def change_images(self) -> None:
        """Exchange the labels of two images and kill all workers: those that are started then are refused."""
        workers = self._wait_for(self._workers) or []
        holders = self._running()
        one, other = (self.folder / "images" / "train" / f"{label}/{label}.png" for label in (3, 5))
        before = one.read_bytes(), other.read_bytes()
        one.write_bytes(before[1])
        other.write_bytes(before[0])
        for worker in workers:
            with contextlib.suppress(psutil.Error):
                worker.kill()
        self._wait_for_errors(holders, sign="have changed")
        one.write_bytes(before[0])
        other.write_bytes(before[1])

    def _wait_for_errors(self, holders: list[subprocess.Popen[bytes]], *, sign: str) -> None:
        """Wait until these coordinators have ended; at least one of them with an error, unless all is finished."""
        for process in holders:
            process.wait(timeout=MOST_SECONDS)
        if all(process.returncode == 0 for process in holders):
            self._look()
            if len(self._seen) < self.num_trials:
                self._problems.append(f"no command ended with an error that says {sign!r}")
        logs = "".join(log.read_text(errors="replace") for log in self.folder.glob("run-*.log"))
        if any(process.returncode for process in holders) and sign not in logs:
            self._problems.append(f"no error says {sign!r}")

    def _close(self) -> None:
        """Let go of the database that is looked at."""
        if self._database is not None:
            self._database.engine.dispose()
        self._database = self._study = None

    # What must be true at the end

    def _check(self, problems: list[str], *, seconds: float) -> Outcome:
        assert self._study is not None and self._database is not None, "the study was never there"
        self._database.engine.dispose()
        fresh = open_storage(self.storage)  # nothing remembered of what was seen before
        study = optuna.load_study(study_name="chaos", storage=fresh)
        trials = study.get_trials(deepcopy=False)
        finished = [trial for trial in trials if is_finished(trial)]
        if len(finished) != self.num_trials:
            problems.append(f"{len(finished)} finished instead of {self.num_trials}")
        problems += [f"trial {trial.number} is still running" for trial in trials if trial.state == TrialState.RUNNING]
        there = {trial.number: (trial.state, trial.value) for trial in trials}
        lost = [number for number, seen in self._seen.items() if there.get(number) != seen]
        tries = Counter(
            (trial.user_attrs.get("retry_of", trial.number), trial.user_attrs.get("attempt", 1)) for trial in finished
        )
        num_duplicated = sum(count - 1 for count in (*tries.values(), *Counter(t.number for t in trials).values()))
        for trial in finished:
            problems += curve_problems(trial)
        problems += best_problems(study, finished)
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        mute = [trial.number for trial in failed if "failure" not in trial.user_attrs]
        problems += [f"trial {number} failed without a reason" for number in mute]
        fresh.engine.dispose()
        return Outcome(
            where=self.where,
            seed=self.seed,
            faults=dict(self._faults),
            num_finished=len(finished),
            num_failed=len(failed),
            errors=self._errors,
            num_lost=len(lost),
            num_duplicated=num_duplicated,
            problems=problems,
            seconds=seconds,
        )


def curve_problems(trial: FrozenTrial) -> Iterator[str]:
    """What is wrong with a stored learning curve: each epoch once, in order, the same as the reported values."""
    history = trial.user_attrs["history"]
    epochs = [stats["epoch"] for stats in history]
    if epochs != list(range(1, len(history) + 1)):
        yield f"trial {trial.number}: epochs {epochs}"
    if {stats["epoch"]: stats["val_accuracy"] for stats in history} != trial.intermediate_values:
        yield f"trial {trial.number}: its curve is not what was reported"
    if trial.state == TrialState.COMPLETE and len(history) != trial.user_attrs["config"]["train"]["epochs"]:
        yield f"trial {trial.number}: complete after {len(history)} epochs"


def best_problems(study: optuna.Study, finished: list[FrozenTrial]) -> Iterator[str]:
    """Whether the best trial is the one that the learning curves say."""
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    highest = max((trial.user_attrs["history"][-1]["val_accuracy"] for trial in complete), default=-math.inf)
    best = best_trial(study)
    if best is None or best.value != highest:
        yield f"the best is {best and best.value}, by the curves {highest}"


def write_images(folder: Path) -> None:
    """Write 120 handwritten digits as an image tree of ten classes."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:120], digits.target[:120], strict=True)):
        path = folder / "train" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).save(path)


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(Path(file.path) == path for file in psutil.Process(pid).open_files())
    return False


def _is_actor(process: psutil.Process) -> bool:
    """Whether a process is a worker in the Ray cluster of this process; there may be other clusters."""
    with contextlib.suppress(psutil.Error):
        if "RayWorker" in " ".join(process.cmdline()):
            return process.environ().get("RAY_AUTH_TOKEN") == os.environ["RAY_AUTH_TOKEN"]
    return False


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    return False


# --------------------------------------------------------------------------------------------------------- the places


def on_sqlite(
    folder: Path, *, seed: int, num_trials: int = 60, num_workers: int = 4, with_changed_files: bool = True
) -> Outcome:
    """Workers killed and hung, the coordinator killed, the disk full, the database replaced and the images changed."""
    with mounted(folder / "disk", size="24m") as disk:
        storage = f"sqlite:///{disk}/chaos.db"
        run = ["--workers", str(num_workers), "--trial-timeout", str(TRIAL_TIMEOUT_SECONDS)]
        sabotage = Sabotage(disk, where="sqlite", seed=seed, num_trials=num_trials, storage=storage, run=run)
        plan = {
            "worker killed": (3, sabotage.kill_worker),
            "worker hung": (1, sabotage.hang_worker),
            "coordinator killed": (2, sabotage.kill_coordinator),
            "disk full": (1, sabotage.fill_disk),
        }
        if with_changed_files:
            plan["database replaced"] = (1, sabotage.replace_database)
            plan["images changed"] = (1, sabotage.change_images)
        return sabotage.go(plan, num_coordinators=1)


def on_postgresql(folder: Path, *, seed: int, num_trials: int = 60, num_workers: int = 2) -> Outcome:
    """Two coordinators; their workers and themselves killed, the server stopped."""
    with PostgresServer() as server:
        run = ["--workers", str(num_workers), "--trial-timeout", str(TRIAL_TIMEOUT_SECONDS)]
        url = server.new_database()
        sabotage = Sabotage(folder, where="postgresql", seed=seed, num_trials=num_trials, storage=url, run=run)

        def stop_server() -> None:
            server.stop("immediate")
            time.sleep(SECONDS_WITHOUT_SERVER)
            server.start()

        plan = {
            "worker killed": (3, sabotage.kill_worker),
            "worker hung": (1, sabotage.hang_worker),
            "coordinator killed": (2, sabotage.kill_coordinator),
            "server stopped": (1, stop_server),
            "images changed": (1, sabotage.change_images),
        }
        return sabotage.go(plan, num_coordinators=2)


def on_ray(folder: Path, *, seed: int, num_trials: int = 60, num_workers: int = 3) -> Outcome:
    """Workers on three nodes of a cluster: actors killed and hung, the coordinator killed, a node removed."""
    with cluster() as ray_cluster:
        nodes = [ray_cluster.add_node(**NODE) for _ in range(num_workers - 1)]
        run = ["--workers", str(num_workers), "--ray", ray_cluster.address]
        run += ["--trial-timeout", str(TRIAL_TIMEOUT_SECONDS)]
        storage = f"sqlite:///{folder}/chaos.db"
        sabotage = Sabotage(folder, where="ray", seed=seed, num_trials=num_trials, storage=storage, run=run)

        def remove_node() -> None:
            ray_cluster.remove_node(nodes.pop(), allow_graceful=False)
            ray_cluster.add_node(**NODE)

        plan = {
            "worker killed": (2, sabotage.kill_worker),
            "worker hung": (1, sabotage.hang_worker),
            "coordinator killed": (1, sabotage.kill_coordinator),
            "node removed": (1, remove_node),
            "database replaced": (1, sabotage.replace_database),
            "images changed": (1, sabotage.change_images),
        }
        return sabotage.go(plan, num_coordinators=1)


PLACES = {"sqlite": on_sqlite, "postgresql": on_postgresql, "ray": on_ray}


def table(outcomes: list[Outcome]) -> str:
    """The outcomes in Markdown: what was done to each run, and what came of it."""
    kinds = list(dict.fromkeys(kind for outcome in outcomes for kind in sorted(outcome.faults)))
    heads = ["place", "seed", *kinds, "finished", "failed, tried again", "lost", "duplicated", "seconds"]
    rows = [
        [
            outcome.where,
            outcome.seed,
            *(outcome.faults.get(kind, 0) for kind in kinds),
            outcome.num_finished,
            outcome.num_failed,
            outcome.num_lost,
            outcome.num_duplicated,
            round(outcome.seconds),
        ]
        for outcome in outcomes
    ]
    sums = ["all", len(outcomes), *(sum(outcome.faults.get(kind, 0) for outcome in outcomes) for kind in kinds)]
    sums += [
        sum(getattr(o, key) for o in outcomes) for key in ("num_finished", "num_failed", "num_lost", "num_duplicated")
    ]
    lines = [heads, ["---"] * len(heads), *rows, [*sums, ""]]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def page(outcomes: list[Outcome], conditions: dict[str, Any], *, seeds: int, trials: int) -> str:
    """The page of the report: what was done, on which machine, the table, and the errors that commands ended with."""
    ends = Counter(
        error.strip().splitlines()[-1][:300] for outcome in outcomes for error in outcome.errors if error.strip()
    )
    errors = "".join(f"- {count} times: `{line}`\n" for line, count in ends.most_common()) or "None.\n"
    problems = "".join(
        f"- {outcome.where}, seed {outcome.seed}: {problem}\n" for outcome in outcomes for problem in outcome.problems
    )
    head = f"""# What the chaos test did, and what was lost

`python tests/chaos.py --seeds {seeds} --trials {trials} --output reports/chaos.md`, {datetime.date.today()}.
{describe_machine(conditions)}.
"""
    return f"{head}{EXPLANATION}\n{table(outcomes)}\n## Problems\n\n{problems or 'None.'}\n\n## Ends\n\n{errors}"


def sabotage_one(place: str, *, seed: int, num_trials: int) -> Outcome:
    """One study in a folder of its own, which is removed."""
    with tempfile.TemporaryDirectory(prefix="fbsearch-chaos-") as folder:
        return PLACES[place](Path(folder), seed=seed, num_trials=num_trials)


def main() -> None:
    """Run every place with every seed; write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--places", default=",".join(PLACES))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    outcomes: list[Outcome] = []
    conditions = machine()
    # A process for each: Ray keeps a cluster's token as long as its process lives, and the next one has another.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for seed in range(arguments.seeds):
            for place in arguments.places.split(","):
                outcomes.append(pool.submit(sabotage_one, place, seed=seed, num_trials=arguments.trials).result())
                print(json.dumps(dataclasses.asdict(outcomes[-1])), flush=True)
                text = page(outcomes, conditions, seeds=arguments.seeds, trials=arguments.trials)
                arguments.output.write_text(text, encoding="utf-8")
    sys.exit(1 if any(outcome.problems or outcome.num_lost or outcome.num_duplicated for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
