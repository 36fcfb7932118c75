"""Sampling with Optuna: the sampler and the pruner of a study file, and one point of its space for a trial."""

import functools
import json
import random
import warnings
from typing import Any

import optuna

from fbsearch.config.space import (
    LEVELS,
    MAX_GRID,
    ChoiceSpace,
    LevelsSpace,
    encode_choice,
    grid_points,
    is_integer,
    values,
)
from fbsearch.config.study_file import SearchConfig, StudyConfig
from fbsearch.study.pareto_pruner import ParetoHalvingPruner
from fbsearch.study.trial_record import TrialRecord


def make_sampler(search: SearchConfig, *, num_trials: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of a study with `num_trials` trials: a resumed search must not draw the same numbers again."""
    seed = search.seed + num_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "tpe":
            # With several objectives `group` would be left alone only with a warning.
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        if search.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        if search.sampler == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    assert search.sampler in ("random", "grid"), "every sampler is made here"  # a grid's points are in Optuna's queue
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(config: StudyConfig) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner, with resources in epochs; one of ours for several objectives."""
    searched = config.space.get("train.epochs")
    epochs = config.train.epochs if searched is None else max(values("train.epochs", searched, most=MAX_GRID))
    if config.search.objectives is not None and config.search.pruner != "none":
        return ParetoHalvingPruner(config.search.objectives, min_resource=-(-epochs // 4), reduction_factor=4)
    match config.search.pruner:
        case "median":
            # n_min_trials, because duplicates count among the start-up trials and have no learning curve.
            return optuna.pruners.MedianPruner(10, n_warmup_steps=max(1, epochs // 4), n_min_trials=10)
        case "successive_halving":
            # The accuracy after the first epochs says little: of the best, half would be lost there.
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=-(-epochs // 4), reduction_factor=4)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
        case "none":
            return optuna.pruners.NopPruner()


def should_prune(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Return True if the study's pruner stops a running trial after its last epoch."""
    if len(study.directions) == 1:
        return trial.should_prune()  # which Optuna refuses with several objectives
    return study.pruner.prune(study, study.get_trials(deepcopy=False)[trial.number])


def sample(trial: optuna.Trial, config: StudyConfig) -> dict[str, Any]:
    """Draw one point of the space: {dotted name: value}. Only a stage that exists has a level."""
    if config.search.sampler == "grid":
        # The point itself is in Optuna's queue (enqueue_grid_point), each dimension as one choice.
        return {name: _choose(trial, name, values(name, dim, most=MAX_GRID)) for name, dim in config.space.items()}
    return {name: _suggest(trial, name, dimension) for name, dimension in config.space.items()}


def _suggest(trial: optuna.Trial, name: str, dimension: Any) -> Any:
    if isinstance(dimension, ChoiceSpace):
        return _choose(trial, name, list(dimension.choices))
    if isinstance(dimension, LevelsSpace):
        num_stages = trial.suggest_categorical(f"{LEVELS}.num_stages", dimension.num_stages)
        return tuple(trial.suggest_categorical(f"{LEVELS}.{i}", dimension.level) for i in range(num_stages))
    if is_integer(name):
        step = int(dimension.step or 1)
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), step=step, log=dimension.log)
    return trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)


def _choose(trial: optuna.Trial, name: str, choices: list[Any]) -> Any:
    by_label = {encode_choice(value): value for value in choices}
    return by_label[trial.suggest_categorical(name, list(by_label))]


@functools.lru_cache(maxsize=1)
def _grid(text: str) -> list[dict[str, Any]]:
    config = StudyConfig.model_validate_json(text)
    points = grid_points(config.space)
    # Shuffled, so that a part of the grid is spread over the space.
    random.Random(config.search.seed).shuffle(points)
    return points


def enqueue_grid_point(study: optuna.Study, config: StudyConfig) -> bool:
    """Put the next point of the grid into the queue; return False when every point has been in it."""
    # Points are identified by their values: another seed, or another order of the space, changes their numbers.
    used = {
        json.dumps(trial.system_attrs["fixed_params"], sort_keys=True)
        for trial in study.get_trials(deepcopy=False)
        if TrialRecord.of(trial).grid_index is not None
    }
    for index, point in enumerate(_grid(config.model_dump_json())):
        labels = {name: encode_choice(value) for name, value in point.items()}
        if json.dumps(labels, sort_keys=True) not in used:
            study.enqueue_trial(labels, user_attrs=TrialRecord(grid_index=index).attributes())
            return True
    return False
