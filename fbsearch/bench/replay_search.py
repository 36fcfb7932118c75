"""One replay of a table: a sampler and a pruner behind the coordinator of `fbsearch run`, on a virtual clock."""

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna

from fbsearch.bench.common import choose_names
from fbsearch.bench.hypervolume import HypervolumeScale, check_objectives
from fbsearch.bench.replay_records import Replay
from fbsearch.bench.table_executor import TableExecutor, choose_run
from fbsearch.bench.table_file import Row, Table, TableRun
from fbsearch.config.goals import PARETO_PRUNERS, SINGLE_SAMPLERS
from fbsearch.config.study_file import SearchConfig, StudyConfig
from fbsearch.errors import ConfigError
from fbsearch.messages import Event, Finished
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.sampling import make_pruner
from fbsearch.study.study import create_study

ONE_EPOCH = "one_epoch"
# The share of its seconds that ONE_EPOCH gives to first epochs.
FIRST_SHARE = 0.5
SAMPLERS = ("tpe", "random", "nsga2", "cmaes", "gp")
NO_TIMEOUT = 1e9

MakePruner = Callable[[StudyConfig], optuna.pruners.BasePruner]


def _percentile_75(config: StudyConfig) -> optuna.pruners.BasePruner:
    warm_up = max(1, config.train.epochs // 4)
    return optuna.pruners.PercentilePruner(75, n_startup_trials=10, n_warmup_steps=warm_up, n_min_trials=10)


def _of_study_file(name: str) -> MakePruner:
    return lambda config: make_pruner(_with_search(config, pruner=name))


PRUNERS: dict[str, MakePruner] = {
    **{name: _of_study_file(name) for name in ("none", "median", "successive_halving", "hyperband")},
    "percentile_75": _percentile_75,
}


@dataclass(frozen=True)
class Arm:
    """A sampler and a pruner, or ONE_EPOCH: one epoch of many configurations, then the best of them to their end."""

    sampler: str
    pruner: str = ""

    @property
    def name(self) -> str:
        return f"{self.sampler}+{self.pruner}" if self.pruner else self.sampler


def parse_arms(names: Sequence[str], *, objectives: Sequence[str] | None = None) -> list[Arm]:
    """Return the arms of their names, each once. ConfigError for names that are none, or have one objective only."""
    samplers, pruners = tuple(SAMPLERS), tuple(PRUNERS)
    if objectives is not None:
        check_objectives(objectives)
        samplers = tuple(name for name in SAMPLERS if name not in SINGLE_SAMPLERS)
        pruners = PARETO_PRUNERS
    if not names:
        raise ConfigError(f"--arms: names none; write SAMPLER+PRUNER or {ONE_EPOCH}, several joined by commas")
    arms = []
    for name in dict.fromkeys(names):
        sampler, _, pruner = name.partition("+")
        if name != ONE_EPOCH or objectives is not None:
            choose_names([sampler], samplers, flag=f"--arms {name}: sampler")
            choose_names([pruner], pruners, flag=f"--arms {name}: pruner")
        arms.append(Arm(sampler, pruner))
    return arms


def replay(
    table: Table, arm: Arm, *, num_workers: int, repeat: int, seconds: float, objectives: tuple[str, ...] | None = None
) -> Replay:
    """Search a table for so many virtual seconds. KeyboardInterrupt if Ctrl-C has stopped the search.

    `repeat` is the seed of the sampler and chooses the table's runs that are shown: all arms see the same. With
    several `objectives` the front's hypervolume stands in the place of the best trial's accuracy.
    """
    if arm.name == ONE_EPOCH:
        return _replay_one_epoch(table, num_workers=num_workers, repeat=repeat, seconds=seconds)
    goals = {} if objectives is None else {"objectives": objectives}
    config = _with_search(table.study, sampler=arm.sampler, pruner="none", seed=repeat, **goals)
    study = create_study(optuna.storages.InMemoryStorage(), config)
    study.pruner = PRUNERS[arm.pruner](config)
    executor = TableExecutor(table, num_workers=num_workers, draw=repeat)
    found: dict[int, float] = {}  # the best trials, or all complete ones, with the seconds at which they were

    def note(state: SearchState, event: Event | None) -> None:
        if objectives is not None and isinstance(event, Finished):
            found.setdefault(event.trial, executor.clock())
        elif objectives is None and state.best is not None:
            found.setdefault(state.best.number, executor.clock())

    started = time.process_time()
    state = Coordinator(
        study, config, executor, num_trials=None, timeout=seconds, trial_timeout=NO_TIMEOUT, show=note,
        num_with_attention=0, clock=executor.clock,
    ).run()  # fmt: skip
    if state.end == "interrupted":
        raise KeyboardInterrupt
    chosen = [(when, *executor.runs[number]) for number, when in found.items()]
    judge = _judge if objectives is None else HypervolumeScale.of(table, objectives).over_time
    return Replay(
        arm=arm.name,
        num_workers=num_workers,
        repeat=repeat,
        incumbents=judge(chosen, until=seconds),
        num_trials=len(executor.runs),
        num_complete=state.num_complete,
        exact=executor.num_exact / executor.num_submitted,
        search_seconds=time.process_time() - started,
    )


def rank(run: TableRun) -> tuple[float, int]:
    """Return what orders runs as a search orders trials: the higher accuracy, then the smaller network."""
    return run.value or 0.0, -run.num_parameters


def name_after_all(table: Table, *, repeat: int) -> float:
    """Return the accuracy, judged by the unseen seeds, of what a search names that trains every configuration once."""
    runs = [(row, choose_run(row, draw=repeat)) for row in table.rows.values()]
    row, run = max(runs, key=lambda pair: rank(pair[1]))
    return row.judge(run)


def _with_search(config: StudyConfig, **changes: object) -> StudyConfig:
    search = SearchConfig.model_validate(config.search.model_dump() | changes)
    return config.model_copy(update={"search": search})


def _judge(found: Sequence[tuple[float, Row, TableRun]], *, until: float) -> tuple[tuple[float, float], ...]:
    return tuple((round(when, 3), round(row.judge(run), 6)) for when, row, run in found if when <= until)


def _replay_one_epoch(table: Table, *, num_workers: int, repeat: int, seconds: float) -> Replay:
    """Train one epoch of random configurations, then the best of them from there to their end, the best first.

    This is no search of the coordinator, which cannot go on with a trial that it has pruned.
    """
    rows = list(table.rows.values())
    random.Random(repeat).shuffle(rows)
    chosen = [(row, run) for row in rows if (run := choose_run(row, draw=repeat)).value is not None]
    free = [0.0] * num_workers
    looked: list[tuple[Row, TableRun]] = []
    for row, run in chosen:
        if free[0] + run.seconds[0] > FIRST_SHARE * seconds:
            break
        heapq.heapreplace(free, free[0] + run.seconds[0])
        looked.append((row, run))
    ended = []
    for row, run in sorted(looked, key=lambda pair: pair[1].val_accuracy[0], reverse=True):
        end = heapq.heapreplace(free, free[0] + sum(run.seconds[1:])) + sum(run.seconds[1:])
        if end <= seconds:
            ended.append((end, row, run))
    best, found = (-1.0, 0), []
    for end, row, run in sorted(ended, key=lambda item: item[0]):
        if rank(run) > best:
            best = rank(run)
            found.append((end, row, run))
    return Replay(
        arm=ONE_EPOCH, num_workers=num_workers, repeat=repeat, incumbents=_judge(found, until=seconds),
        num_trials=len(looked), num_complete=len(ended), exact=1.0, search_seconds=0.0,
    )  # fmt: skip
