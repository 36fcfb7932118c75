"""Random search of a study's space with the compute that the study spent, as a baseline.

Compute is counted in FLOPs (`SearchCompute.train_flops`), which are the same on every machine. Each draw is trained in
full on the training split and scored on the validation split, as the study's trials were; nothing is pruned. A finished
draw is written to a file and not trained again.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fbsearch.config.export_file import ExportedConfig, SearchCompute, Searched
from fbsearch.config.models import TrialConfig
from fbsearch.config.space import draw_point
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError, TrialError
from fbsearch.files import write_whole
from fbsearch.training.budget import FORWARD_PASSES_OF_A_STEP
from fbsearch.training.devices import is_out_of_memory
from fbsearch.training.loop import final_accuracy, train
from fbsearch.training.requirements import Cost, measure_cost
from fbsearch.winners.plan import Run, RunError
from fbsearch.winners.progress import View
from fbsearch.winners.records import Draw, read_record, to_json
from fbsearch.winners.retrain import Loader, lock_folder, prepare

RANDOM_SEED = 20161107
# The search gives up after this many points in a row that cannot be built.
MAX_UNBUILDABLE = 100


@dataclass(frozen=True)
class RandomSearch:
    """The draws of a random search that has spent at most `budget_flops`, the compute of the study."""

    draws: tuple[Draw, ...]
    budget_flops: int

    @property
    def best(self) -> Draw:
        """Return the draw of the highest validation accuracy, of equal ones the smallest. RunError where all failed."""
        trained = [draw for draw in self.draws if draw.failure is None]
        if not trained:
            raise RunError(f"none of {len(self.draws)} draws could be trained: {self.draws[0].failure}")
        return max(trained, key=lambda draw: (draw.val_accuracy, -draw.num_parameters, -draw.number))

    @property
    def spent(self) -> float:
        """Return the share of the budget that was spent; above 1 only where the first draw alone costs more."""
        return sum(draw.train_flops for draw in self.draws) / self.budget_flops


def search_randomly(
    study: str, search: Searched, config: ExportedConfig, folder: Path, *, load: Loader, view: View
) -> RandomSearch:
    """Draw and train configurations until the next one would exceed the budget; train at least one.

    `config` gives data and shape. Each draw is written to `folder`. Raises ConfigError where the folder holds the draws
    of another search, RunError where no point of the space can be built.
    """
    budget = search.compute.train_flops
    space = StudyConfig(data=config.data, model=search.model, train=search.train, space=search.space)
    draws: list[Draw] = []
    with lock_folder(folder):
        for number, (trial, cost) in enumerate(_points(space, config)):
            own = config.model_copy(
                update={"data": trial.data, "model": trial.model, "train": trial.train, "seed": trial.seed}
            )
            run = Run(study, own, True, folder, baseline=f"random search, draw {number + 1}")
            path = folder / f"draw-{number + 1:04}.json"
            num_train = prepare(load(config.data), run).info.num_train
            spent = sum(draw.train_flops for draw in draws)
            expected = _expected_flops(trial, cost, num_train, search.compute)
            if draws and spent + expected > budget:
                break
            draw = _read(path, run, number)
            if draw is None:
                draw = _train(run, number, cost, expected, load=load, view=view)
                write_whole(path, to_json(draw))
            draws.append(draw)
            found = draw.failure or f"validation accuracy {draw.val_accuracy:.2%}"
            share = (spent + draw.train_flops) / budget
            view.ended(f"{run.label}: {found}; {share:.0%} of the search's FLOPs")
    return RandomSearch(tuple(draws), budget)


def _expected_flops(trial: TrialConfig, cost: Cost, num_train: int, searched: SearchCompute) -> int:
    """Return the FLOPs of a draw trained in full; where a budget of seconds decides, of a trial on average."""
    train = trial.train
    if train.budget is None:
        return cost.flops * train.epochs * num_train
    if train.budget.flops is not None:
        return int(train.budget.flops / FORWARD_PASSES_OF_A_STEP)
    return searched.train_flops // max(1, searched.num_trials)


def _points(space: StudyConfig, config: ExportedConfig) -> Iterator[tuple[TrialConfig, Cost]]:
    """Yield configurations that can be built, endlessly; always the same ones in the same order."""
    rng = random.Random(RANDOM_SEED)
    number, in_a_row = 0, 0
    while True:
        try:
            trial = space.trial(draw_point(space.space, rng), seed=number)
            cost = measure_cost(trial.model, config.shape)
        except ConfigError as error:
            in_a_row += 1
            if in_a_row == MAX_UNBUILDABLE:
                raise RunError(f"no draw of the space can be built: {error}") from None
            continue
        number, in_a_row = number + 1, 0
        yield trial, cost


def _train(run: Run, number: int, cost: Cost, expected: int, *, load: Loader, view: View) -> Draw:
    """Train a draw on the training split; one that fails is charged for the whole run."""
    data = prepare(load(run.config.data), run)
    torch.manual_seed(run.config.seed)
    history = []
    failure = None
    view.started(run, 0, in_lines=False)
    try:
        for stats in train(run.build().to(load.device), run.trial, data):
            history.append(stats)
            view.epoch(run, stats)
    except TrialError as error:
        failure = str(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = "out of memory"
    flops = sum(cost.flops * stats.num_images for stats in history)
    return Draw(
        number=number,
        config=run.trial,
        num_parameters=cost.num_parameters,
        epochs=len(history),
        train_flops=expected if failure else flops,
        seconds=sum(stats.seconds for stats in history),
        val_accuracy=None if failure else final_accuracy(history, run.config.train),
        failure=failure,
    )


def _read(path: Path, run: Run, number: int) -> Draw | None:
    """Read a draw that was trained before; None if there is none. ConfigError if the file is another's or damaged."""
    way_out = f"delete {path.parent} to search again"
    draw = read_record(path, Draw, way_out=way_out)
    if draw is not None and (draw.config != run.trial or draw.number != number):
        raise ConfigError(f"{path}: belongs to a random search of another space or other data; {way_out}")
    return draw
