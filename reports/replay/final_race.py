"""What a final race is worth: name the winner of replayed searches with and without it, and judge it by new seeds.

    uv run python reports/replay/final_race.py studies/tables/digits.jsonl.xz reports/replay/digits/final_race.jsonl

Searches of the time of 50 whole runs see one seed of each configuration. A race of K with R new runs ends the search
earlier, by the time of K x R runs, gives its K best R of the table's other seeds, and names the best mean. Every
configuration that is named is trained with two seeds that are not in the table: its mean there is the score. These runs
are kept in the second file, and made if it lacks them (a second each). Printed are means over 50 repeats, and over all
choices of the seeds of the race; intervals of 95%, by bootstrap over the repeats, do not know that these share a table.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna

from fbsearch.bench.common import torch_threads
from fbsearch.bench.replay_search import NO_TIMEOUT, rank
from fbsearch.bench.table_executor import TableExecutor
from fbsearch.bench.table_file import Row, Table, TableRun, read_table, resolve_stem
from fbsearch.config.study_file import SearchConfig
from fbsearch.messages import Event, Finished
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.study import create_study
from fbsearch.workers.worker import Worker

BUDGET, NUM_WORKERS, NUM_REPEATS = 50, 4, 50
SEARCHES = (("tpe", "successive_halving"), ("tpe", "none"), ("random", "none"))
# (raced, new runs of each)
RACES = ((0, 0), *itertools.product((2, 3, 4, 5), (1, 2)))
NEW_SEEDS = (3, 4)
Ended = list[tuple[float, Row, TableRun]]


def search(table: Table, *, sampler: str, pruner: str, repeat: int) -> Ended:
    """Search a table; return its complete runs, and when they ended."""
    settings = SearchConfig.model_validate({"sampler": sampler, "pruner": pruner, "seed": repeat})
    config = table.study.model_copy(update={"search": settings})
    study = create_study(optuna.storages.InMemoryStorage(), config)
    executor = TableExecutor(table, num_workers=NUM_WORKERS, draw=repeat)
    ended: Ended = []

    def note(_state: SearchState, event: Event | None) -> None:
        if isinstance(event, Finished):
            ended.append((executor.clock(), *executor.runs[event.trial]))

    Coordinator(
        study, config, executor, num_trials=None, timeout=BUDGET * table.seconds_of_run / NUM_WORKERS,
        trial_timeout=NO_TIMEOUT, show=note, num_with_attention=0, clock=executor.clock,
    ).run()  # fmt: skip
    return ended


def name(table: Table, ended: Ended, *, num_raced: int, num_runs: int) -> list[str]:
    """Return the key of the configuration that is named, for each choice of the race's seeds."""
    until = (BUDGET - num_raced * num_runs) * table.seconds_of_run / NUM_WORKERS
    in_time = [(row, run) for when, row, run in ended if when <= until]
    found = sorted(in_time, key=lambda pair: rank(pair[1]), reverse=True)
    if num_raced == 0:
        return [found[0][0].key]
    seen = [(row, run, [other for other in row.runs if other is not run]) for row, run in found[:num_raced]]
    named = []
    for drawn in itertools.product(*(itertools.combinations(others, num_runs) for _, _, others in seen)):
        totals = [
            (-run.value - sum(new.value for new in runs), run.num_parameters, row.key)
            for (row, run, _), runs in zip(seen, drawn, strict=True)
        ]
        named.append(min(totals)[2])
    return named


def train_missing(table: Table, keys: list[str], kept: Path) -> dict[str, float]:
    """Train what the file lacks; return the mean accuracy of each configuration over the new seeds."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    found = {(_label(line["values"]), line["seed"]): line["value"] for line in map(json.loads, lines)}
    values = {key: table.rows[key].runs[0].values for key in keys}
    labels = {key: _label(values[key]) for key in keys}
    missing = [(key, seed) for seed in NEW_SEEDS for key in keys if (labels[key], seed) not in found]
    with torch_threads(1):
        worker = Worker(0, table.study.data, device="cpu", say=print) if missing else None
        for key, seed in missing:
            config = table.study.trial(values[key], seed=seed)
            for event in worker.run(0, resolve_stem(config, image_size=table.dataset.image_size)):
                if isinstance(event, Finished):
                    found[labels[key], seed] = event.value
                    with kept.open("a") as file:
                        line = {"values": values[key], "seed": seed, "value": round(event.value, 6)}
                        file.write(json.dumps(line) + "\n")
    return {key: float(np.mean([found[labels[key], seed] for seed in NEW_SEEDS])) for key in keys}


def _label(values: dict) -> str:
    return json.dumps(values, sort_keys=True)


def lines(table: Table, kept: Path) -> Iterator[str]:
    ended = {
        (sampler, pruner): [search(table, sampler=sampler, pruner=pruner, repeat=n) for n in range(NUM_REPEATS)]
        for sampler, pruner in SEARCHES
    }
    named = {
        (arm, race): [name(table, one, num_raced=race[0], num_runs=race[1]) for one in repeats]
        for arm, repeats in ended.items()
        for race in RACES
    }
    keys = sorted({key for repeats in named.values() for choices in repeats for key in choices})
    worth = train_missing(table, keys, kept)
    draws = np.random.default_rng(0).integers(NUM_REPEATS, size=(2000, NUM_REPEATS))
    yield f"{len(keys)} configurations are named, each judged by seeds {NEW_SEEDS}"
    for arm in ended:
        score = {
            race: 100 * np.array([np.mean([worth[key] for key in choices]) for choices in named[arm, race]])
            for race in RACES
        }
        claimed = np.mean([100 * max(run.value for _, _, run in one) for one in ended[arm]])
        yield f"{'+'.join(arm)}: the best run of a search shows {claimed:.2f}%"
        for race, values in score.items():
            gain = values - score[0, 0]
            low, high = np.quantile(gain[draws].mean(axis=1), (0.025, 0.975))
            what = f"  race of {race[0]}, {race[1]} new runs: {values.mean():.2f}%"
            yield f"{what}, {gain.mean():+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    for line in lines(read_table(Path(sys.argv[1])), Path(sys.argv[2])):
        print(line, flush=True)
