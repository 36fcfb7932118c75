"""The training at the end of `fbsearch run --budget`: a `fbsearch train` in a process of its own.

The coordinator loads no torch, and whoever is interrupted goes on with that command.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from fbsearch.api.budget import NUM_SEEDS, Winner
from fbsearch.cli.options import EXIT_INTERRUPTED
from fbsearch.errors import FbsearchError
from fbsearch.winners.records import Retraining

# A training that has received Ctrl-C from the terminal needs no second one.
SECONDS_TO_END = 5.0


def train_winner(winner: Winner, *, console: Console) -> tuple[Retraining, Path]:
    """Train the winner in a process of its own; return the result of its seeds and their folder.

    Progress and errors of that process go to standard error. Raises typer.Exit after Ctrl-C or SIGTERM, and where the
    training has failed.
    """
    _say(console, f"training {NUM_SEEDS} networks for {winner.seconds:g} s each: {winner.command}")
    if winner.note:
        _say(console, winner.note)
    try:
        code, output = _run(winner.arguments)
    except KeyboardInterrupt:
        print(f"interrupted; `{winner.command}` goes on after the last whole epoch", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if code < 0:
        raise FbsearchError(f"the training was killed by signal {-code}; `{winner.command}` goes on with it")
    if code > 0:
        raise typer.Exit(code)
    content = json.loads(output.splitlines()[-1])
    (row,) = (row for row in content["configs"] if row["rank"] == 1)
    return Retraining.model_validate(row | {"results": []}), Path(content["folder"])


def _run(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Run `fbsearch` with `--json`; return its exit code and output. A signal that ends this process ends it first."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = [sys.executable, "-P", "-m", "fbsearch", *arguments, "--json"]
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            try:
                output, _ = process.communicate()
            except KeyboardInterrupt:
                try:
                    process.wait(SECONDS_TO_END)
                except subprocess.TimeoutExpired:
                    process.terminate()  # where a parent ignores SIGINT, so does it; whole epochs are kept
                    process.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return process.returncode, output


def as_dict(row: Retraining, folder: Path) -> dict[str, Any]:
    """Return what `--json` prints of the training: `test_accuracy`, or `validation_accuracy` without a test split."""
    accuracy = {"mean": row.accuracy_mean, "std": row.accuracy_std, "seeds": row.num_seeds}
    return {f"{row.scored_on}_accuracy": accuracy, "folder": str(folder)}


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
