"""Many sequences of disturbances of a search (`any_order.py`), and the page that counts what struck.

python tests/property_tests.py --sequences 20000 --output reports/property-tests.md
"""

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from any_order import SearchInAnyOrder
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

SEQUENCES_OF_A_PART = 100
INTRODUCTION = """# Searches disturbed in any order

`python tests/property_tests.py --sequences N --output reports/property-tests.md` draws sequences of disturbances with
hypothesis: simulated workers speak, fail, die, hang and are heard early or late; the coordinator is killed between any
two SQL statements, interrupted, and started again for another N; the SQLite file is locked; a second coordinator tries
to begin. Coordinator, storage and file are the real ones. After each step, and at the end of each search, which then
runs on undisturbed: at most N trials counted, none twice, none lost, nothing changed that had ended, every learning
curve whole and as the worker told it, the best is the best, every running trial has a worker, every failed one its
reason and its next attempt. A sequence that breaks one of these ends the command with the shortest one found.
"""


def run_sequences(folder: Path, *, num_sequences: int, num_steps: int, is_same: bool) -> Counter[str]:
    """Draw sequences of up to `num_steps` steps, the same ones each time if `is_same`; return how often what struck."""
    SearchInAnyOrder.folder = folder
    SearchInAnyOrder.counts.clear()
    chosen = settings(
        max_examples=num_sequences,
        stateful_step_count=num_steps,
        derandomize=is_same,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(SearchInAnyOrder, settings=chosen)
    finally:
        SearchInAnyOrder.close()
    return SearchInAnyOrder.counts


def run_part(num_steps: int) -> Counter[str]:
    """Draw a part of the sequences, in a file of their own."""
    with tempfile.TemporaryDirectory(prefix="fbsearch-any-order-") as folder:
        return run_sequences(Path(folder), num_sequences=SEQUENCES_OF_A_PART, num_steps=num_steps, is_same=False)


def main() -> None:
    """Draw many sequences in parts, each with a file of its own; write the counts after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    started = time.monotonic()
    for _ in range(0, arguments.sequences, SEQUENCES_OF_A_PART):
        # In a process of its own: a claim keeps a descriptor of the database's file for as long as its process lives.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            total += pool.submit(run_part, arguments.steps).result()
        arguments.output.write_text(page(total, seconds=time.monotonic() - started), encoding="utf-8")


def page(counts: Counter[str], *, seconds: float) -> str:
    """The counts in Markdown."""
    rows = "".join(f"| {what} | {count:,} |\n" for what, count in sorted(counts.items()))
    return f"{INTRODUCTION}\n| in {seconds / 60:.0f} minutes | times |\n| --- | ---: |\n{rows}"


if __name__ == "__main__":
    main()
