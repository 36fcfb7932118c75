"""Workers on a virtual clock that train nothing: each trial is a run of a table, epoch by epoch as it was recorded."""

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fbsearch.bench.table_file import Row, Table, TableRun, config_key
from fbsearch.config.models import TrialConfig
from fbsearch.config.space import LevelsSpace, RangeSpace, field_value
from fbsearch.messages import Epoch, EpochStats, Event, Failed, Finished, Ready, Started, Stopped
from fbsearch.search.proposals import canonical


class TableExecutor:
    """The workers of a replay. `clock` is in the seconds of the table's runs; it goes on from event to event.

    A configuration that is not in the table is answered by its nearest one (`nearest_row`); `num_exact` counts the
    others. Of a row's seeds `draw` chooses one for each configuration, always the same one: two replays with the same
    `draw` see the same runs, whatever they ask for and in whichever order. A configuration that is run again, as in a
    final race, has the next seed.
    """

    def __init__(self, table: Table, *, num_workers: int, draw: int) -> None:
        self.num_workers, self.table = num_workers, table
        self.num_submitted = self.num_exact = 0
        self.runs: dict[int, tuple[Row, TableRun]] = {}  # by trial
        self._draw, self._now = draw, 0.0
        self._num_runs = Counter[str]()  # by configuration
        self._due: list[tuple[float, int, Event]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        """Return the virtual seconds since the start."""
        return self._now

    def start(self) -> None:
        for worker in range(self.num_workers):
            self._at(0.0, Ready(worker, "simulated", self.table.dataset, {}, seconds=0.0))

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        row = self._find(config)
        key = canonical(config)
        run = order_runs(row, draw=self._draw)[self._num_runs[key] % len(row.runs)]
        self._num_runs[key] += 1
        self.runs[trial] = row, run
        due = self._now
        self._at(due, Started(worker, trial, run.num_parameters, run.flops))
        for stats in epochs_of(run):
            due += stats.seconds
            self._at(due, Epoch(worker, trial, stats))
        if run.failure_kind is not None:
            self._at(due, Failed(worker, trial, run.failure_kind, run.failure or ""))
        else:
            assert run.value is not None, "a run ends with a value or a failure"
            self._at(due, Finished(worker, trial, run.value))

    def stop_trial(self, worker: int) -> None:
        left = [item for item in self._due if item[2].worker != worker]
        if len(left) == len(self._due):
            return  # the trial has ended already
        self._due = left
        heapq.heapify(self._due)
        self._at(self._now, Stopped(worker, -1))

    def kill(self, worker: int, *, reason: str) -> None:
        raise AssertionError(f"worker {worker} of a replay cannot hang: {reason}")

    def events(self, *, timeout: float) -> list[Event]:
        """Set the clock to the next event and return all of its time; without one let `timeout` seconds pass."""
        if not self._due:
            self._now += timeout
            return []
        self._now = self._due[0][0]
        events = []
        while self._due and self._due[0][0] == self._now:
            events.append(heapq.heappop(self._due)[2])
        return events

    def close(self) -> None:
        self._due = []

    def _at(self, due: float, event: Event) -> None:
        heapq.heappush(self._due, (due, next(self._order), event))

    def _find(self, config: TrialConfig) -> Row:
        self.num_submitted += 1
        row = self.table.rows.get(config_key(config, image_size=self.table.dataset.image_size))
        self.num_exact += row is not None
        return nearest_row(self.table, config) if row is None else row


def choose_run(row: Row, *, draw: int) -> TableRun:
    """Return one of a configuration's runs, the same for the same `draw`."""
    return order_runs(row, draw=draw)[0]


def order_runs(row: Row, *, draw: int) -> list[TableRun]:
    """Return a configuration's runs in the order in which a search sees them, the same for the same `draw`."""
    rng = random.Random(f"{draw} {row.key}")
    first = rng.choice(row.runs)
    others = [run for run in row.runs if run is not first]
    return [first, *rng.sample(others, len(others))]


def epochs_of(run: TableRun) -> list[EpochStats]:
    """Return the epochs of a run as a worker sends them; what a table does not hold is 0."""
    columns = zip(run.train_loss, run.train_accuracy, run.val_loss, run.val_accuracy, run.seconds, strict=True)
    return [
        EpochStats(
            epoch=epoch, train_loss=train_loss, train_accuracy=train_accuracy, val_loss=val_loss,
            val_accuracy=val_accuracy, learning_rate=0.0, seconds=seconds, step_seconds=seconds, val_seconds=0.0,
            images_per_second=0.0, memory_mib=0.0,
        )
        for epoch, (train_loss, train_accuracy, val_loss, val_accuracy, seconds) in enumerate(columns, start=1)
    ]  # fmt: skip


def nearest_row(table: Table, config: TrialConfig) -> Row:
    """Return the configuration with the least sum of distances over the searched fields; of equal ones the first.

    The distance of two values is 1 if they differ; in a range it is their share of it, on its scale; of levels it is
    the sum of the stages' differences, a stage that is missing counted as 0.
    """
    wanted = {name: field_value(config, name) for name in table.study.space}

    def distance(row: Row) -> float:
        values: Mapping[str, Any] = row.runs[0].values
        return sum(_distance(dim, values[name], wanted[name]) for name, dim in table.study.space.items())

    return min(table.rows.values(), key=distance)


def _distance(dimension: Any, ours: Any, theirs: Any) -> float:
    if isinstance(dimension, LevelsSpace):
        return float(sum(abs(a - b) for a, b in itertools.zip_longest(ours, theirs, fillvalue=0)))
    if not isinstance(dimension, RangeSpace):
        return float(ours != theirs)
    low, high = dimension.low, dimension.high
    if dimension.log:
        low, high, ours, theirs = map(math.log, (low, high, ours, theirs))
    return float(abs(ours - theirs) / (high - low))
