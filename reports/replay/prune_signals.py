"""What successive halving should compare: replays of the default search whose pruner sees another signal of a run.

    uv run python reports/replay/prune_signals.py studies/tables/digits.jsonl.xz

The pruner and the sampler of `tpe+successive_halving` are given the signal in place of the validation accuracy after
each epoch; the value of a whole run, by which the winner is named, stays the accuracy. Printed are means over 50
repeats: the accuracy of the winner, judged by the seeds that the search did not see, its difference to the search
of today, and the mean of all complete trials, so judged. Intervals are of 95%, by bootstrap over the repeats, which
does not know that all of them share one table.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import rankdata

from fbsearch.bench.replay_search import NO_TIMEOUT, rank
from fbsearch.bench.table_executor import TableExecutor
from fbsearch.bench.table_file import Table, read_table
from fbsearch.config.models import TrialConfig
from fbsearch.messages import Epoch, Event
from fbsearch.search.coordinator import Coordinator
from fbsearch.study.study import create_study

BUDGET, NUM_WORKERS, NUM_REPEATS = 50, 4, 50
FIELDS = {"validation accuracy": 1, "validation loss": -1, "training loss": -1}
SIGNALS = {name: (name,) for name in FIELDS} | {
    "mean rank of accuracy and training loss": ("validation accuracy", "training loss"),
    "mean rank of all three": tuple(FIELDS),
}


def measure(run, name: str) -> np.ndarray:
    """Return a run's signal after each epoch; more is better."""
    column = {"validation accuracy": run.val_accuracy, "validation loss": run.val_loss, "training loss": run.train_loss}
    return FIELDS[name] * np.array(column[name])


class SignalExecutor(TableExecutor):
    """Workers that send a signal as the accuracy of each epoch: the mean rank in the table of the fields named."""

    def __init__(self, table: Table, signals: dict[tuple[str, int], np.ndarray], *, draw: int) -> None:
        super().__init__(table, num_workers=NUM_WORKERS, draw=draw)
        self.signals = signals

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        super().submit(worker, trial, config)
        row, run = self.runs[trial]
        self._due = [(due, order, self._replace(row.key, run.seed, event, trial)) for due, order, event in self._due]

    def _replace(self, key: str, seed: int, event: Event, trial: int) -> Event:
        if not isinstance(event, Epoch) or event.trial != trial:
            return event
        value = float(self.signals[key, seed][event.stats.epoch - 1])
        return dataclasses.replace(event, stats=dataclasses.replace(event.stats, val_accuracy=value))


def make_signals(table: Table, names: tuple[str, ...]) -> dict[tuple[str, int], np.ndarray]:
    """Return the mean over `names` of each run's rank among all runs after the same epoch, in 0 to 1."""
    runs = [(row.key, run) for row in table.rows.values() for run in row.runs]
    ranks = np.mean([rankdata([measure(run, name) for _, run in runs], axis=0) for name in names], axis=0) / len(runs)
    return {(key, run.seed): signal for (key, run), signal in zip(runs, ranks, strict=True)}


def search(table: Table, signals: dict[tuple[str, int], np.ndarray], *, repeat: int) -> tuple[float, float]:
    """Return the accuracy of the winner of a search, and the mean of its complete trials, both by unseen seeds."""
    search = table.study.search.model_copy(update={"seed": repeat})
    config = table.study.model_copy(update={"search": search})
    study = create_study(optuna.storages.InMemoryStorage(), config)
    executor = SignalExecutor(table, signals, draw=repeat)
    Coordinator(
        study, config, executor, num_trials=None, timeout=BUDGET * table.seconds_of_run / NUM_WORKERS,
        trial_timeout=NO_TIMEOUT, show=lambda *_: None, num_with_attention=0, clock=executor.clock,
    ).run()  # fmt: skip
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    found = [executor.runs[trial.number] for trial in complete if trial.number in executor.runs]
    row, run = max(found, key=lambda pair: rank(pair[1]))
    return row.judge(run), float(np.mean([row.judge(run) for row, run in found]))


def main(path: Path) -> None:
    table, found = read_table(path), {}
    draws = np.random.default_rng(0).integers(NUM_REPEATS, size=(2000, NUM_REPEATS))
    for name, parts in SIGNALS.items():
        signals = make_signals(table, parts)
        found[name] = 100 * np.array([search(table, signals, repeat=repeat) for repeat in range(NUM_REPEATS)])
        gain = (found[name] - found["validation accuracy"])[draws].mean(axis=1)
        (low, low_all), (high, high_all) = np.quantile(gain, (0.025, 0.975), axis=0)
        winner, complete = found[name].mean(axis=0)
        more, more_all = (found[name] - found["validation accuracy"]).mean(axis=0)
        print(
            f"{name:40} winner {winner:.2f}%, {more:+.2f} ({low:+.2f} to {high:+.2f}); "
            f"complete {complete:.2f}%, {more_all:+.2f} ({low_all:+.2f} to {high_all:+.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
