"""Steps of the acceptance run: each a process with a time limit, a flushed record, and a line on the terminal.

Nothing that a step does, crashing and hanging included, keeps the next one from running.
"""

import json
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Imported once by the server that steps are forked from. It must not touch CUDA: the steps could not use it then.
PRELOADED = ["torch._dynamo", "fbsearch.cli.search", "fbsearch.winners.final_training"]
PRELOADED += ["gpu.speed", "gpu.studies", "gpu.faults"]


@dataclass(frozen=True)
class Setting:
    """What all steps need. `tiny` makes everything as small as it gets, to find mistakes without a GPU."""

    device: str
    tiny: bool
    output: Path
    packed: Path  # what gpu_pack.sh has made
    winner: Path  # an export of the search in part B, for part C

    @property
    def on_gpu(self) -> bool:
        """True for a CUDA device; unlike torch, it asks no driver, so that processes may still be forked."""
        return self.device.startswith("cuda")

    def small(self, tiny: Any, real: Any) -> Any:
        """Return the first value in a tiny run, the second in a real one."""
        return tiny if self.tiny else real


Measure = Callable[[Setting], tuple[bool, dict[str, Any]]]


@dataclass(frozen=True)
class Step:
    """A measurement, which returns whether it is as it must be and its figures; `predicted` was written before."""

    name: str
    measure: Measure
    limit_seconds: float
    predicted: dict[str, Any] = field(default_factory=dict)
    is_tiny: bool = True  # False for what a tiny run would only repeat


def run_steps(part: str, steps: list[Step], setting: Setting, *, limit_seconds: float) -> bool:
    """Run the steps of a part one after another, within the limit together; return whether all have passed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    setting.output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit_seconds
    all_passed = True
    with (setting.output / f"{part}.jsonl").open("w", encoding="utf-8") as records:
        for step in steps:
            if setting.tiny and not step.is_tiny:
                continue
            started = time.monotonic()
            ok, measured = _run(context, step, setting, seconds=min(step.limit_seconds, deadline - started))
            record = {"step": step.name, "ok": ok, "seconds": round(time.monotonic() - started, 2)}
            record |= {"predicted": step.predicted, "measured": measured}
            records.write(json.dumps(record, default=str) + "\n")
            records.flush()
            os.fsync(records.fileno())
            print(
                f"{'PASS' if ok else 'FAIL'} {part} {step.name} {record['seconds']:.0f} s {_short(measured)}",
                flush=True,
            )
            all_passed &= ok
    return all_passed


def _run(context: Any, step: Step, setting: Setting, *, seconds: float) -> tuple[bool, dict[str, Any]]:
    if seconds <= 0:
        return False, {"error": "no time was left for it"}
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, step, setting))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return False, {"error": f"stopped after {seconds:.0f} s; {step.name}.log has its output"}
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        process.join()
        return False, {"error": f"the process ended with exit code {process.exitcode}"}
    finally:
        _end(process)
        ours.close()


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a step with all processes that it has started."""
    assert process.pid is not None
    process.join(2)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.join()


def _measure(connection: Connection, step: Step, setting: Setting) -> None:
    """Run in the step's process, with its output in a file; send the result."""
    os.setsid()
    sys.stdout.flush()
    with (setting.output / f"{step.name}.log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            result = step.measure(setting)
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            result = False, {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.flush()
        connection.send(result)


def _short(measured: dict[str, Any]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in measured.items() if not isinstance(value, (list, dict)))
    return text if len(text) <= 300 else f"{text[:297]}..."
