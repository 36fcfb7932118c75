"""What a second of training buys: networks trained with one trainer on a user's data for the same seconds each.

The seconds are those of the processor with one thread on a CPU, otherwise of the clock. The accuracy at S seconds is
that of a run whose schedule was made for S, on the validation images; the test split is not loaded.
"""

import dataclasses
import gc
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fbsearch.bench.common import describe_machine, machine, torch_threads
from fbsearch.bench.entrants import MAX_POINTS, Entrant, choose_entrants
from fbsearch.bench.race_page import PAGE, write_page
from fbsearch.bench.race_records import RACE_NAME, Race, RaceRun, Standing, rank
from fbsearch.config.models import AugmentConfig, ModelConfig, TrialConfig
from fbsearch.config.study_file import StudyConfig, load_study_file
from fbsearch.data.dataset import Dataset, Split, load_dataset
from fbsearch.errors import ConfigError, TrialError
from fbsearch.files import file_name, write_whole
from fbsearch.messages import FailureKind
from fbsearch.training.budget import training_clock
from fbsearch.training.devices import choose_device, choose_dtype, is_out_of_memory, prepare_device
from fbsearch.training.evaluation import evaluate
from fbsearch.training.loop import train
from fbsearch.winners.records import read_record, to_json
from fbsearch.winners.results import list_changes
from fbsearch.winners.retrain import lock_folder

# The seconds that validations may take, as a share of the budget; one is always made. A large network in a short run
# would otherwise be validated for longer than it is trained.
VALIDATION_SHARE = 0.5
TIMED_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class RaceOptions:
    """The flags of `fbsearch bench race`. `seconds` are the budgets; `output` None is reports/race/<study>."""

    networks: Sequence[str]
    optimizers: Sequence[str] = ("adamw",)
    rates: Sequence[float] = (0.004,)
    configs: Path | None = None
    seconds: Sequence[float] = (15, 60, 240)
    num_seeds: int = 3
    device: str = "auto"
    num_threads: int = 1
    output: Path | None = None
    command: str = "fbsearch bench race"


def bench_race(study_file: Path, options: RaceOptions, *, say: Callable[[str], None]) -> tuple[Race, Path]:
    """Train every entrant with every budget and seed; return the race and its folder.

    After each run race.json, the page and its figure are written. Runs that are in race.json already are not repeated,
    except those that had no memory; those of other flags stay. A run that fails is a row with its reason. Torch's
    number of threads is restored at the end. Raises ConfigError for unusable files and flags, and where race.json is of
    other data, settings, or another machine; DataError, DeviceError and StorageError as other commands do.
    """
    study = load_study_file(study_file)
    folder = Path("reports", "race", file_name(study.name)) if options.output is None else options.output
    device = choose_device(options.device)
    prepare_device(device)
    with lock_folder(folder), torch_threads(options.num_threads):
        PAGE.check(folder)
        data = load_dataset(study.data, device=device, with_test=False, on_progress=say)
        entrants = choose_entrants(
            study.train,
            data.info.shape,
            networks=options.networks,
            optimizers=options.optimizers,
            rates=options.rates,
            configs=options.configs,
        )
        track = _Track(study, data, entrants, folder, options)
        track.run_all(say)
    return track.race, folder


class _Track:
    """The runs of a race, the finished ones and those to come."""

    def __init__(
        self, study: StudyConfig, data: Dataset, entrants: list[Entrant], folder: Path, options: RaceOptions
    ) -> None:
        self.study, self.data, self.options, self.path = study, data, options, folder / RACE_NAME
        self.device = data.device
        self.entrants = {(entrant.name, entrant.trained): entrant for entrant in entrants}
        self.failures: dict[str, str] = {}
        self.rows = [self._describe(entrant) for entrant in entrants]
        way_out = f"delete it to race anew, or name another folder with --output (now {folder})"
        before = read_record(self.path, Race, way_out=way_out)
        self.race = self._begin() if before is None else before
        if before is not None:
            self._check_conditions(before, self._begin())
            self._check_names(before)
            self.race = before.model_copy(update={"command": options.command})

    def _begin(self) -> Race:
        info = dataclasses.asdict(self.data.info)
        del info["class_names"], info["num_test"]
        is_gpu = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if is_gpu else "cpu"
        return Race(
            study=self.study.name,
            command=self.options.command,
            machine=machine(num_threads=self.options.num_threads, device=name),
            dataset=info,
            augment=self.study.data.augment.model_dump(),
            precision=str(choose_dtype(self.study.train.precision, self.device)).removeprefix("torch."),
        )

    def _check_conditions(self, before: Race, now: Race) -> None:
        """Raise ConfigError where runs of this command cannot stand beside those of the file."""
        way_out = "--output names another folder"
        for name in ("num_train", "num_val", "image_size", "fingerprint"):
            found, wanted = before.dataset.get(name), now.dataset[name]
            if found != wanted:
                raise ConfigError(f"{self.path}: is a race on other data ({name}: {found} -> {wanted}); {way_out}")
        # A field that the version of then did not have was at its default, which does nothing.
        augment = AugmentConfig().model_dump() | before.augment
        for name, found in (("augment", augment), ("precision", before.precision)):
            wanted = getattr(now, name)
            if found != wanted:
                raise ConfigError(
                    f"{self.path}: is a race with other settings ({name}: {found} -> {wanted}); {way_out}"
                )
        if _hardware(before.machine) != _hardware(now.machine):
            found = f"{describe_machine(before.machine)}; here it is {describe_machine(now.machine)}"
            raise ConfigError(f"{self.path}: was measured on {found}: a second buys other work; {way_out}")

    def _check_names(self, before: Race) -> None:
        """Raise ConfigError where another network of the file has an entrant's name: they would be one in the table."""
        models = {run.entrant: run.settings["model"] for run in before.runs}
        for entrant in self.entrants.values():
            model = entrant.settings(1.0, self.study.data)["model"]
            if models.get(entrant.name, model) != model:
                raise ConfigError(
                    f"{self.path}: has another network under the name {entrant.name!r}; give that configuration of the "
                    "export another `rank`, or name another folder with --output"
                )

    def _describe(self, entrant: Entrant) -> Standing:
        """Return the row of an entrant; keep the reason why its network cannot be built."""
        row = Standing(
            entrant=entrant.name,
            note=entrant.note,
            trained=entrant.trained,
            num_parameters=None,
            flops=None,
            remark=entrant.remark,
        )
        try:
            cost = entrant.cost(self.data.info.shape)
        except ConfigError as error:
            self.failures[entrant.name] = str(error)
            return row
        return row.model_copy(update={"num_parameters": cost.num_parameters, "flops": cost.flops})

    def run_all(self, say: Callable[[str], None]) -> None:
        """Train what has not been trained, seed after seed, so that an interrupted race has runs of all entrants."""
        done = {run.key: run for run in self.race.runs if run.failure_kind is not FailureKind.OUT_OF_MEMORY}
        wanted = itertools.product(range(self.options.num_seeds), self.options.seconds, self.entrants.items())
        pending = []
        for seed, seconds, (_, entrant) in wanted:
            run = self._plan(entrant, seconds, seed)
            if run.key not in done:
                pending.append(run)
            elif changes := list_changes(done[run.key].settings, run.settings):
                raise ConfigError(
                    "\n".join([f"{self.path}: has {run.name} with other settings:", *changes])
                    + "\n--output names another folder"
                )
        self._write([])
        minutes = sum(run.budget_seconds for run in pending) / 60
        say(f"{len(pending)} runs, {minutes:,.1f} min of training and, on top, their validation; {len(done)} are done")
        for number, run in enumerate(pending, start=1):
            result = self._run(run)
            self._write([result])
            found = result.failure if result.val_accuracy is None else f"{result.val_accuracy:.2%}"
            say(f"{number}/{len(pending)} {result.name}: {found}")

    def _plan(self, entrant: Entrant, seconds: float, seed: int) -> RaceRun:
        key = {"entrant": entrant.name, "trained": entrant.trained, "budget_seconds": seconds, "seed": seed}
        return RaceRun(**key, settings=entrant.settings(seconds, self.study.data))

    def _write(self, more: list[RaceRun]) -> None:
        """Add runs to the race, or replace those of the same key, and write all files."""
        keys = {run.key for run in more}
        runs = (*(run for run in self.race.runs if run.key not in keys), *more)
        rows = {(row.entrant, row.trained): row for row in (*self.race.table, *self.rows)}
        self.race = self.race.model_copy(update={"runs": runs, "table": rank(rows.values(), runs)})
        write_whole(self.path, to_json(self.race))
        write_page(self.race, self.path.parent)

    def _run(self, run: RaceRun) -> RaceRun:
        """Train one run and return it with its result, or with the reason of its failure."""
        entrant = self.entrants[run.entrant, run.trained]
        if entrant.name in self.failures:
            return _failed(run, FailureKind.INVALID_CONFIGURATION, self.failures[entrant.name])
        try:
            return run.model_copy(update=self._train(entrant, run))
        except TrialError as error:
            return _failed(run, error.kind, str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return _failed(run, FailureKind.OUT_OF_MEMORY, "out of memory; the same command tries it again")

    def _train(self, entrant: Entrant, run: RaceRun) -> dict[str, Any]:
        torch.manual_seed(run.seed)
        net = entrant.build(self.data.info.shape).to(self.device)
        trial = TrialConfig(
            data=entrant.data_config(self.study.data),
            model=ModelConfig(),  # which the trainer does not read
            train=entrant.train_config(run.budget_seconds, num_points=self._count_points(net, entrant, run)),
            seed=run.seed,
        )
        used, num_images = 0.0, 0
        curve = []
        clock = training_clock(self.device)
        parts = train(net, trial, self.data)
        while True:
            started, started_here = time.perf_counter(), clock()
            stats = next(parts, None)
            if stats is None:
                break
            share = 1 - stats.val_seconds / (time.perf_counter() - started)
            used += (clock() - started_here) * share
            num_images += stats.num_images
            curve.append((used, stats.val_accuracy))
        return {"val_accuracy": curve[-1][1], "num_images": num_images, "curve": tuple(curve)}

    def _count_points(self, net: nn.Module, entrant: Entrant, run: RaceRun) -> int:
        """Return how often a run is validated, so that this takes no more than its share of the seconds."""
        images_NCHW, labels_N = self.data.val.images_NCHW, self.data.val.labels_N
        few = Split(images_NCHW[:TIMED_IMAGES], labels_N[:TIMED_IMAGES])
        dtype, clock = choose_dtype(entrant.train.precision, self.device), training_clock(self.device)
        net.to(memory_format=torch.channels_last)
        for _ in range(2):  # the first time chooses algorithms
            started = clock()
            evaluate(net, self.data, few, dtype=dtype)
            seconds = (clock() - started) * len(labels_N) / len(few.labels_N)
        return max(1, min(MAX_POINTS, int(VALIDATION_SHARE * run.budget_seconds / seconds)))


def _hardware(machine: dict[str, Any]) -> tuple[Any, ...]:
    """Return what decides how much a second buys."""
    return machine["cpu"], machine["device"], machine["num_threads"], machine["versions"]["torch"]


def _failed(run: RaceRun, kind: FailureKind, reason: str) -> RaceRun:
    return run.model_copy(update={"failure_kind": kind, "failure": reason})
