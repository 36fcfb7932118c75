"""Record a table: train configurations of a space without pruning, and keep every epoch of every run."""

import dataclasses
import os
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbsearch.bench.common import describe_machine, machine, torch_threads
from fbsearch.bench.table_file import (
    SUFFIX,
    TableHeader,
    TableRun,
    config_key,
    journal_of,
    pack,
    parse_lines,
    read_lines,
    resolve_stem,
)
from fbsearch.config.space import draw_point, grid_points
from fbsearch.config.study_file import StudyConfig, load_study_file
from fbsearch.errors import ConfigError
from fbsearch.files import file_name, write_whole
from fbsearch.messages import Epoch, EpochStats, Failed, Finished, Started
from fbsearch.training.budget import training_clock
from fbsearch.winners.results import list_changes
from fbsearch.winners.retrain import lock_folder
from fbsearch.workers.worker import Worker

# Drawn configurations may be equal in all that has an effect: after this many draws for each the space has no other.
DRAWS_OF_EACH = 100
RUNS_BETWEEN_LINES = 10


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The flags of `fbsearch bench table`.

    `num_configs` None is every point of the space; the best `top` get `more_seeds` seeds in addition to `num_seeds`.
    """

    num_configs: int | None = None
    num_seeds: int = 3
    top: int = 0
    more_seeds: int = 0
    device: str = "auto"
    num_threads: int = 1
    output: Path | None = None
    command: str = "fbsearch bench table"


@dataclass(frozen=True)
class _Point:
    """A configuration to train: its values of the searched fields, and the key by which it is known."""

    values: dict[str, Any]
    key: str


def bench_table(study_file: Path, options: TableOptions, *, say: Callable[[str], None]) -> Path:
    """Train what is missing in the table of a study file, and return the table's path.

    Runs come seed after seed, the configurations of each in one random order, so that no configuration is measured on
    a busier machine than another. Each run is kept at once: the same command goes on after Ctrl-C or a kill, and
    further configurations and seeds are added to a table that is whole. Raises ConfigError for unusable files and
    flags, and where the table is of another study, other data or another machine; DataError, DeviceError and
    StorageError as other commands do.
    """
    study = load_study_file(study_file)
    for _ in study.corners():
        pass  # values that cannot be used together are refused before anything is trained
    path = Path("studies", "tables", file_name(study.name) + SUFFIX) if options.output is None else options.output
    with lock_folder(journal_of(path).parent), torch_threads(options.num_threads):
        worker = Worker(0, study.data, device=options.device, say=lambda notice: say(notice.text))
        _Recording(study, worker, path, options).run(say)
    return path


class _Recording:
    """A table while it is recorded."""

    def __init__(self, study: StudyConfig, worker: Worker, path: Path, options: TableOptions) -> None:
        self.study, self.worker, self.options, self.path = study, worker, options, path
        self.journal = journal_of(path)
        self.image_size = worker.ready.dataset.image_size
        self.points = _choose_points(study, options.num_configs, image_size=self.image_size)
        self.values: dict[tuple[str, int], float] = {}  # of the runs that are there, by configuration and seed

    def run(self, say: Callable[[str], None]) -> None:
        """Train what is missing, and write the table if something was."""
        self._open()
        num_before = num_done = len(self.values)
        for point, seed in self._missing(say):
            found = self._train(point, seed)
            with self.journal.open("ab") as file:
                file.write(found.model_dump_json(exclude_defaults=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self.values[point.key, seed] = found.value or 0.0
            num_done += 1
            if (num_done - num_before) % RUNS_BETWEEN_LINES == 1:
                shown = found.failure if found.value is None else f"{found.value:.2%}"
                say(f"run {num_done}, seed {seed}, {sum(found.seconds):.1f} s: {shown}")
        pack(self.journal, self.path)

    def _open(self) -> None:
        """Read the runs that are there, and leave them in the journal without a line that was cut off."""
        there = self.journal if self.journal.exists() else self.path
        lines = read_lines(there) if there.exists() else []
        header, runs = parse_lines(there, lines) if lines else (self._header(), [])
        self._check(header, there)
        for run in runs:
            config = self.study.trial(run.values, seed=run.seed)
            self.values[config_key(config, image_size=self.image_size), run.seed] = run.value or 0.0
        lines = lines or [header.model_dump_json().encode()]
        write_whole(self.journal, b"".join(line + b"\n" for line in lines))

    def _header(self) -> TableHeader:
        info = dataclasses.asdict(self.worker.ready.dataset)
        del info["class_names"]
        return TableHeader(
            command=self.options.command,
            machine=machine(num_threads=self.options.num_threads, device=str(self.worker.device)),
            dataset=info,
            study=self.study.model_dump(mode="json"),
        )

    def _check(self, found: TableHeader, there: Path) -> None:
        """Raise ConfigError where new runs cannot stand beside those of the file."""
        now = self._header()
        way_out = "--output names another file"
        sections = ("data", "model", "train", "space")
        was, wanted = ({name: header.study.get(name, {}) for name in sections} for header in (found, now))
        if changes := list_changes(was, wanted):
            raise ConfigError("\n".join([f"{there}: is a table of other settings (there -> now):", *changes, way_out]))
        if found.dataset != now.dataset:
            raise ConfigError(f"{there}: is a table of other images; {way_out}")
        if _hardware(found.machine) != _hardware(now.machine):
            here = f"{describe_machine(found.machine)}; here it is {describe_machine(now.machine)}"
            raise ConfigError(f"{there}: was measured on {here}: seconds cannot be compared; {way_out}")

    def _missing(self, say: Callable[[str], None]) -> Iterator[tuple[_Point, int]]:
        """Yield what is to be trained: first all configurations, then the best of them with further seeds."""
        wanted = [(point, seed) for seed in range(self.options.num_seeds) for point in self.points]
        missing = [(point, seed) for point, seed in wanted if (point.key, seed) not in self.values]
        say(f"{len(self.points)} configurations, {len(missing)} of {len(wanted)} runs are missing")
        yield from missing
        more = range(self.options.num_seeds, self.options.num_seeds + self.options.more_seeds)
        best = sorted(self.points, key=self._mean, reverse=True)[: self.options.top]
        missing = [(point, seed) for seed in more for point in best if (point.key, seed) not in self.values]
        if missing:
            say(f"{len(missing)} further runs of the best {len(best)}")
        yield from missing

    def _mean(self, point: _Point) -> float:
        """Return the mean accuracy of a configuration over the seeds that all have."""
        return statistics.fmean(self.values[point.key, seed] for seed in range(self.options.num_seeds))

    def _train(self, point: _Point, seed: int) -> TableRun:
        """Train one run as a search would, without stopping it."""
        config = resolve_stem(self.study.trial(point.values, seed=seed), image_size=self.image_size)
        clock = training_clock(self.worker.device)
        costs: dict[str, Any] = {"num_parameters": 0, "flops": 0}
        epochs, seconds, end = list[EpochStats](), list[float](), dict[str, Any]()
        started = clock()
        for event in self.worker.run(0, config):
            match event:
                case Started():
                    costs = {"num_parameters": event.num_parameters, "flops": event.flops}
                    started = clock()
                case Epoch(stats=stats):
                    now = clock()
                    epochs.append(stats)
                    seconds.append(round(now - started, 4))
                    started = now
                case Finished(value=value):
                    end = {"value": round(value, 6)}
                case Failed():
                    end = {"failure_kind": event.kind, "failure": event.message}
        figures = {
            name: tuple(round(getattr(stats, name), 6) for stats in epochs)
            for name in ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
        }
        return TableRun(values=point.values, seed=seed, seconds=tuple(seconds), **costs, **figures, **end)


def _hardware(machine: dict[str, Any]) -> tuple[Any, ...]:
    """Return what decides how long a run takes."""
    return machine["cpu"], machine["device"], machine["num_threads"], machine["versions"]["torch"]


def _choose_points(study: StudyConfig, count: int | None, *, image_size: int) -> list[_Point]:
    """Return `count` different configurations in random order, or all; with a higher count the first stay the same.

    ConfigError if the space has no end and no count is given, or has fewer configurations than `count`.
    """
    chosen: dict[str, _Point] = {}
    for values in _walk(study, count):
        key = config_key(study.trial(values, seed=0), image_size=image_size)
        chosen.setdefault(key, _Point(values, key))
        if len(chosen) == count:
            break
    if count is not None and len(chosen) < count:
        raise ConfigError(f"--configurations {count}: the space has {len(chosen)} different ones")
    return list(chosen.values())


def _walk(study: StudyConfig, count: int | None) -> Iterator[dict[str, Any]]:
    """Yield the points of a grid, shuffled, or draws from another space. ConfigError for the latter without a count."""
    rng = random.Random(study.search.seed)
    try:
        points = grid_points(study.space)
    except ValueError as error:
        if count is None:
            raise ConfigError(f"{error}; or say with --configurations how many to draw") from None
        yield from (draw_point(study.space, rng) for _ in range(DRAWS_OF_EACH * count))
        return
    rng.shuffle(points)
    yield from points
