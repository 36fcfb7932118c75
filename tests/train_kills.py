"""`fbsearch train` killed at random moments and given again: the weights are those of a run that was never killed.

    python tests/train_kills.py --kills 20 --output reports/train-kills.md

Every run is two processes: the one that is killed with SIGKILL, and the same command again. The moment is so many rows
of metrics.csv, drawn from the seed, and then a part of an epoch's time.
"""

import argparse
import contextlib
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fbsearch.bench.common import describe_machine, machine

EPOCHS = 16
SAME_BYTES = ("model.safetensors", "model.yaml", "confusion.csv", "classes.csv", "predictions.safetensors")
# What differs from run to run: times, and what follows from them.
MEASURED = {"seconds", "step_seconds", "val_seconds", "images_per_second", "memory_mib"}
STUDY = """
name: killed
data: {limit: 600}
model: {base_channels: 8, pattern_resolution: 8, fractal_levels: [2], drop_path: mixed}
train: {epochs: 1}
space: {train.learning_rate: {low: 0.003, high: 0.05, log: true}}
"""


def fbsearch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command."""
    command = [sys.executable, "-m", "fbsearch", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end of a command; return what it has printed."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def train(folder: Path, name: str) -> subprocess.Popen[str]:
    options = ["--top", "1", "--seeds", "1", "--epochs", str(EPOCHS), "--device", "cpu", "--output", name]
    return fbsearch(folder, "train", "best.yaml", *options)


def num_rows(seed: Path) -> int:
    with contextlib.suppress(FileNotFoundError), (seed / "metrics.csv").open(newline="") as file:
        return sum(1 for _ in csv.DictReader(file))
    return 0


def find_differences(one: Path, other: Path) -> list[str]:
    """The files of two runs that are not the same, apart from times."""
    found = [name for name in SAME_BYTES if (one / name).read_bytes() != (other / name).read_bytes()]
    tables = []
    for folder in (one, other):
        with (folder / "metrics.csv").open(newline="") as file:
            tables.append([{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)])
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    found += ["metrics.csv"] if tables[0] != tables[1] else []
    return found + [key for key in ("accuracy", "loss") if results[0][key] != results[1][key]]


def kill_once(folder: Path, whole: Path, *, name: str, rng: random.Random, epoch_seconds: float) -> dict[str, Any]:
    """Train, kill, go on; return the moment and what differs from the run in `whole`."""
    seed = folder / name / whole.relative_to(folder / "whole")
    num_wanted, seconds = rng.randrange(EPOCHS + 1), rng.uniform(0, epoch_seconds)
    process = train(folder, name)
    while num_rows(seed) < num_wanted and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    was_running = process.poll() is None
    process.kill()
    process.communicate()
    row = {"rows": num_rows(seed), "was_running": was_running, "had_result": (seed / "result.json").exists()}
    finish(train(folder, name))
    return row | {"differences": find_differences(seed, whole)}


def kill_often(folder: Path, *, num_kills: int, seed: int = 0) -> list[dict[str, Any]]:
    """Train once without a disturbance, then `num_kills` times with one."""
    (folder / "killed.yaml").write_text(STUDY)
    finish(fbsearch(folder, "run", "killed.yaml", "--trials", "1", "--workers", "0", "--device", "cpu"))
    finish(fbsearch(folder, "export", "--top", "1", "--output", "best.yaml"))
    finish(train(folder, "whole"))
    whole = next(folder.glob("whole/*/rank-1/seed-*"))
    with (whole / "metrics.csv").open(newline="") as file:
        epoch_seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    rng, mean = random.Random(seed), sum(epoch_seconds) / len(epoch_seconds)
    return [
        kill_once(folder, whole, name=f"killed-{number}", rng=rng, epoch_seconds=mean) for number in range(num_kills)
    ]


def page(rows: list[dict[str, Any]], conditions: dict[str, Any], *, seconds: float) -> str:
    """The kills in Markdown."""
    lines = [
        f"| {number} | {row['rows']} of {EPOCHS} | {'yes' if row['was_running'] else 'no, it had ended'} | "
        f"{', '.join(row['differences']) or 'nothing'} |\n"
        for number, row in enumerate(rows)
    ]
    return f"""# `fbsearch train` killed and given again

`python tests/train_kills.py --kills {len(rows)} --output reports/train-kills.md`, {seconds / 60:.0f} minutes:
{describe_machine(conditions)}. Each row is a run that was killed with SIGKILL after so many whole epochs and a part of
the next, and finished by the same command. Compared with a run that was never killed are, byte for byte, the weights,
the card, the confusion matrix and the scores of the classes; and accuracy, loss and all of metrics.csv but times.

| run | epochs before the kill | was running | differs |
| --- | --- | --- | --- |
{"".join(lines)}"""


def main() -> None:
    """Kill, go on, compare; write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    conditions, started = machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fbsearch-kills-") as folder:
        rows = kill_often(Path(folder), num_kills=arguments.kills)
    arguments.output.write_text(page(rows, conditions, seconds=time.monotonic() - started), encoding="utf-8")
    sys.exit(1 if any(row["differences"] for row in rows) else 0)


if __name__ == "__main__":
    main()
