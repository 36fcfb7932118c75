"""Fronts, their order, knee and hypervolume, against Optuna's; what a rung keeps."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import TrialState, create_trial

from fbsearch.config.study_file import StudyConfig
from fbsearch.study.front import read_front
from fbsearch.study.pareto import find_front, find_knee, hypervolume, sort_by_fronts, to_losses
from fbsearch.study.pareto_pruner import ParetoHalvingPruner
from fbsearch.study.queries import best_trial, complete_values
from fbsearch.study.sampling import make_pruner
from fbsearch.study.study import best_trials, create_study
from fbsearch.study.trial_record import TrialRecord

GOALS = ("val_accuracy", "flops")


def make_config(objectives: Sequence[str] = GOALS, **search: Any) -> StudyConfig:
    return StudyConfig.model_validate({"search": {"objectives": objectives} | search})


def random_losses(count: int, num_goals: int) -> Any:
    """Points of a coarse grid, so that some are equal in one goal or in all."""
    return np.random.default_rng(count).integers(0, 12, size=(count, num_goals)).astype(float)


@pytest.mark.parametrize(("count", "num_goals"), [(0, 2), (1, 2), (40, 2), (40, 3)])
def test_front_and_hypervolume_are_those_of_optuna(count: int, num_goals: int) -> None:
    losses, reference = random_losses(count, num_goals), np.full(num_goals, 10.0)
    study = optuna.create_study(directions=["minimize"] * num_goals)
    study.add_trials(create_trial(values=list(row)) for row in losses)
    assert find_front(losses).nonzero()[0].tolist() == sorted(trial.number for trial in study.best_trials)
    below = losses[np.all(losses < reference, axis=1)]
    expected = compute_hypervolume(below, reference) if len(below) else 0.0
    assert hypervolume(losses, reference) == pytest.approx(expected)


def test_order_has_front_after_front_and_spreads_within_each() -> None:
    losses = random_losses(40, 2)
    order = sort_by_fronts(losses)
    assert sorted(order) == list(range(40))
    first = set(find_front(losses).nonzero()[0])
    assert set(order[: len(first)]) == first
    line = np.array([(x, 10.0 - x) for x in (0, 1, 2, 5, 9, 10)])
    assert sort_by_fronts(line)[:3] == [0, 5, 3], "an end, the other end, then the middle"
    assert sort_by_fronts(np.zeros((3, 2))) == [0, 1, 2], "equal rows are all there, once"


def test_losses_turn_what_is_maximised_and_take_logarithms_of_costs() -> None:
    rows = to_losses(("val_accuracy", "val_loss", "parameters"), [(0.9, 0.3, np.e), (0.8, 0.2, np.e**3)])
    assert rows.tolist() == pytest.approx(np.array([(-0.9, 0.3, 1.0), (-0.8, 0.2, 3.0)]))


def test_knee_is_the_best_compromise_of_a_front_of_three() -> None:
    assert find_knee(np.array([(0.0, 1.0), (1.0, 0.0)])) is None
    assert find_knee(np.array([(0.0, 10.0), (0.1, 1.0), (1.0, 0.0)])) == 1


def test_rung_keeps_what_no_other_dominates_and_the_first_quarter() -> None:
    config = make_config()
    study = create_study(InMemoryStorage(), config)
    pruner = study.pruner
    assert isinstance(pruner, ParetoHalvingPruner)
    kept = []
    for accuracy, flops in [(0.5, 100), (0.4, 100), (0.6, 100), (0.3, 50), (0.5, 60), (0.5, 90), (0.5, 95), (0.55, 99)]:
        trial = study.ask()
        for curve in ([[0.1, flops]], [[0.1, flops], [accuracy, flops]]):
            TrialRecord(curve=curve).store(trial)
            is_pruned = pruner.prune(study, study.trials[trial.number])
            assert len(curve) == 2 or not is_pruned, "the rung is after epoch 2 of 6"
        kept.append(not is_pruned)
    # The last one is dominated, by none of them in both goals though: (0.6, 100) costs more.
    assert kept == [True, False, True, True, True, False, False, True]
    study.tell(2, state=TrialState.FAIL)
    again = study.ask()
    TrialRecord(curve=[[0.1, 100], [0.55, 100]]).store(again)
    assert pruner.prune(study, study.trials[again.number]), "(0.55, 99) is better"
    TrialRecord(curve=[[0.1, 100], [0.56, 100]]).store(again)
    assert not pruner.prune(study, study.trials[again.number]), "the one that failed competes no more"


def test_best_and_front_are_the_same_in_memory_in_the_database_and_by_optuna(storage: RDBStorage) -> None:
    config = make_config(("val_accuracy", "val_loss", "flops"))
    values = [*itertools.product((0.9, 0.8), (0.2, 0.1), (5.0, 7.0)), (0.9, 0.1, 5.0), (0.7, 0.05, 1.0)]
    stored, memory = (create_study(place, config) for place in (storage, InMemoryStorage()))
    for study in (stored, memory):
        assert best_trial(study) is None and read_front(study, config.search.goals).values == {}
        study.add_trials(create_trial(values=list(row), user_attrs={"num_parameters": 9}) for row in values)
        study.add_trial(create_trial(values=[0.9, 0.1, 5.0], user_attrs={"duplicate_of": 2, "num_parameters": 9}))
        study.add_trial(create_trial(values=[0.9, 0.1, 5.0], user_attrs={"num_parameters": 4}))
        study.add_trial(create_trial(state=TrialState.PRUNED))
    assert complete_values(stored) == complete_values(memory)
    assert [trial.number for trial in best_trials(stored, 3)] == [11, 2, 8], "of equal values the smaller network"
    assert best_trial(stored) == best_trials(stored, 1)[0]
    front = read_front(stored, config.search.goals)
    assert set(front.values) == {trial.number for trial in stored.best_trials} - {10} == {2, 8, 9, 11}
    assert [item["trial"] for item in front.as_list()] == [11, 2, 8, 9]


def test_pruner_none_prunes_nothing_with_several_objectives() -> None:
    assert isinstance(make_pruner(make_config(pruner="none")), optuna.pruners.NopPruner)
