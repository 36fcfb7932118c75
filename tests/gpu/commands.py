"""Commands of fbsearch as the steps run them, and what a study's database says afterwards."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml
from gpu.harness import Setting

from fbsearch.study.database import open_storage
from fbsearch.study.study import load_study
from fbsearch.study.trial_record import TrialRecord, is_finished


class Command:
    """A running `fbsearch ARGUMENTS` in its own folder. A tiny run starts it as a copy of this process."""

    def __init__(self, setting: Setting, folder: Path, *arguments: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "output.txt"
        words = [str(argument) for argument in arguments]
        self._process: Any
        if setting.tiny:
            self._process = multiprocessing.get_context("fork").Process(target=_main, args=(folder, self.output, words))
            self._process.start()
        else:
            with self.output.open("w") as file:
                command = [sys.executable, "-P", "-m", "fbsearch", *words]
                self._process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def is_running(self) -> bool:
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll() is None
        return bool(self._process.is_alive())

    def wait(self) -> str:
        """Return what was printed; RuntimeError with its end if the command failed."""
        if isinstance(self._process, subprocess.Popen):
            code = self._process.wait()
        else:
            self._process.join()
            code = self._process.exitcode
        text = self.output.read_text(errors="replace")
        print(text)
        if code:
            raise RuntimeError(f"exit code {code}: {' '.join(text.split()[-60:])}")
        return text


def _main(folder: Path, output: Path, words: list[str]) -> None:
    from fbsearch.cli.app import main
    from fbsearch.workers.local import ProcessExecutor

    os.chdir(folder)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    ProcessExecutor.context = multiprocessing.get_context("fork")  # type: ignore[assignment]
    sys.argv = ["fbsearch", *words]
    main()


def write_study(folder: Path, **content: Any) -> Path:
    """Write a study file into an empty folder: a study of an earlier run there would go on."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def read_study(folder: Path) -> dict[str, Any]:
    """Return the figures of the study in a folder's database."""
    storage = open_storage(f"sqlite:///{folder / 'fbsearch.db'}")
    study = load_study(storage, None)
    trials = study.get_trials(deepcopy=False)
    storage.engine.dispose()
    records = [TrialRecord.of(trial) for trial in trials]
    finished = [trial for trial in trials if is_finished(trial)]
    history = [epoch for record in records for epoch in record.history or ()]
    busy = sum(record.seconds or 0.0 for record in records)
    trained = sum(epoch["step_seconds"] + epoch["val_seconds"] for epoch in history)
    starts = [trial.datetime_start for trial in trials if trial.datetime_start]
    ends = [trial.datetime_complete for trial in finished if trial.datetime_complete]
    seconds = (max(ends) - min(starts)).total_seconds() if ends else 0.0
    values = [trial.value for trial in finished if trial.value is not None and trial.state.name == "COMPLETE"]
    return {
        "num_finished": len(finished),
        "num_complete": len(values),
        "num_epochs": len(history),
        "best": max(values, default=0.0),
        "search_seconds": seconds,
        "trials_an_hour": 3600 * len(finished) / seconds if seconds else 0.0,
        "busy_share_in_steps": trained / busy if busy else 0.0,
        "failures": _count(f"{record.failure.kind}: {record.failure.message}" for record in records if record.failure),
        "executions": _count(json.dumps(record.execution) for record in records if record.execution),
    }


def _count(texts: Iterable[str]) -> dict[str, int]:
    return dict(Counter(text[:200] for text in texts))


def workers_of(command: Command) -> list[psutil.Process]:
    """Return the worker processes of a running search."""
    children = psutil.Process(command.pid).children(recursive=True)
    return [child for child in children if child.is_running() and "resource_tracker" not in " ".join(child.cmdline())]


def wait_until(condition: Any, *, seconds: float) -> bool:
    """Return whether a condition became true in time."""
    deadline = time.monotonic() + seconds
    while not (done := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done
