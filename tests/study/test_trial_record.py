"""Trials that end untrained, on a real SQLite study: what the sampler learns of them, what counts, what is ranked."""

from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.study_file import StudyConfig
from fbsearch.study.export import trial_table
from fbsearch.study.queries import best_trial
from fbsearch.study.sampling import make_pruner, sample
from fbsearch.study.study import best_trials, create_study
from fbsearch.study.trial_record import (
    FINISHED,
    is_duplicate,
    is_finished,
    is_infeasible,
    set_constraints,
    tell_duplicate,
    tell_infeasible,
)

LIMIT = 32


def make_config(*, sampler: str = "tpe", pruner: str = "none") -> StudyConfig:
    space: dict[str, Any] = {
        "model.base_channels": {"low": 4, "high": 128, "step": 4},
        "train.learning_rate": {"low": 0.003, "high": 0.05, "log": True},
    }
    return StudyConfig.model_validate({"space": space, "search": {"sampler": sampler, "pruner": pruner}})


def search_wide(study: optuna.Study, config: StudyConfig, *, num_trials: int) -> list[bool]:
    """Ask and tell where wider is better and more than LIMIT channels are infeasible; which trials were feasible."""
    feasible = []
    for _ in range(num_trials):
        trial = study.ask()
        channels = sample(trial, config)["model.base_channels"]
        constraints = {"parameters": channels / LIMIT - 1}
        feasible.append(channels <= LIMIT)
        if channels > LIMIT:
            tell_infeasible(study, trial, constraints=constraints, kind="over_limits", message=f"{channels} channels")
        else:
            set_constraints(study, trial, constraints)
            study.tell(trial, channels / 128)
    return feasible


def test_tell_infeasible_tpe_leaves_the_infeasible_region(storage: RDBStorage) -> None:
    config = make_config()
    study = create_study(storage, config)
    feasible = search_wide(study, config, num_trials=80)
    # A quarter of the space is feasible, 17.5 +- 3.6 of 70 random trials; the best of it lies right at the limit.
    assert sum(feasible[10:]) >= 30
    assert best_trials(study, 1)[0].params["model.base_channels"] == LIMIT


@pytest.mark.parametrize("sampler", ["random", "cmaes"])
def test_tell_infeasible_with_any_sampler_warns_of_nothing(storage: RDBStorage, sampler: str) -> None:
    config = make_config(sampler=sampler)
    feasible = search_wide(create_study(storage, config), config, num_trials=15)
    assert 0 < sum(feasible) < 15


def test_infeasible_and_duplicate_trials_do_not_count(storage: RDBStorage) -> None:
    config = make_config()
    study = create_study(storage, config)

    def start() -> optuna.Trial:
        trial = study.ask()
        sample(trial, config)
        return trial

    def end(number: int) -> FrozenTrial:
        return study.get_trials(deepcopy=False)[number]

    trained = start()
    trained.set_user_attr("num_parameters", 100)
    study.tell(trained, 0.5)
    pruned = start()
    for step, value in ((1, 0.1), (2, 0.25)):
        pruned.report(value, step)
    study.tell(pruned, state=TrialState.PRUNED)
    late = start()  # out of memory in its second epoch
    late.report(0.99, 1)
    tell_infeasible(study, late, constraints={"out_of_memory": 1.0}, kind="out_of_memory", message="no memory")
    for of in (trained, pruned):
        tell_duplicate(study, start(), of=end(of.number))

    trials = study.get_trials(deepcopy=False)
    assert [is_finished(trial) for trial in trials] == [True, True, False, False, False]
    assert [is_infeasible(trial) for trial in trials] == [False, False, True, False, False]
    assert [is_duplicate(trial) for trial in trials] == [False, False, False, True, True]
    assert all(trial.state in FINISHED for trial in trials), "samplers learn from these alone"
    assert [trial.value for trial in trials[3:]] == [0.5, 0.25]
    assert trials[4].intermediate_values == {2: 0.25}
    assert trials[2].user_attrs["failure"] == {"kind": "out_of_memory", "message": "no memory"}
    assert [trial.number for trial in best_trials(study, 9)] == [0]
    best = best_trial(study)
    assert best is not None and best.number == 0
    assert trial_table(study)["state"].tolist() == ["complete", "pruned", "infeasible"]


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_tell_duplicate_moves_no_pruner(storage: RDBStorage, pruner: str) -> None:
    config = make_config(pruner=pruner)
    decided = []
    for repeats in (0, 40):
        study = create_study(storage, config.model_copy(update={"name": f"{pruner}-{repeats}"}))
        study.sampler = optuna.samplers.RandomSampler(seed=0)
        study.pruner = make_pruner(config)
        found = []
        for number in range(30):
            trial = study.ask()
            sample(trial, config)
            accuracies = [(number * 7 % 30) / 30 + epoch / 100 for epoch in range(8)]
            pruned = False
            for epoch, accuracy in enumerate(accuracies, start=1):
                trial.report(accuracy, epoch)
                pruned = pruned or bool(trial.should_prune())
            found.append(pruned)
            told = study.tell(trial, None if pruned else accuracies[-1], state=FINISHED[pruned])
            if number in (0, 13):  # the worst, and a good one
                for _ in range(repeats // 2):
                    copy = study.ask()
                    tell_duplicate(study, copy, of=told)
        decided.append(found)
    if pruner != "hyperband":  # whose brackets are drawn by the trial's number
        assert decided[0] == decided[1]
    assert any(decided[0])
