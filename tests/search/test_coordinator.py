"""The coordinator on a real SQLite study: exactly N, pruning, failures with reasons, nothing left running."""

import importlib
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError, SearchError
from fbsearch.messages import CannotStart, Epoch, Event, Finished, WorkerDied
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.database import open_storage
from fbsearch.study.export import export_best
from fbsearch.study.study import best_trials, create_study, status, stored_num_trials
from fbsearch.study.trial_record import is_duplicate, is_finished, is_infeasible, trial_config
from fbsearch.workers.executor import Executor
from fbsearch.workers.local import InProcessExecutor, ProcessExecutor

# 200 known configurations in a row take TPE several seconds.
FEW_DUPLICATES = 25
SPACE: dict[str, Any] = {
    "model.fractal_levels": {"num_stages": [1, 2], "level": [1]},
    "train.learning_rate": {"low": 0.003, "high": 0.05, "log": True},
}


def make_config(*, space: dict[str, Any] = SPACE, search: dict[str, Any] | None = None, **train: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "small",
            "data": {"limit": 100},
            "model": {"base_channels": 4, "pattern_resolution": 8},
            "train": {"epochs": 2} | train,
            "space": space,
            "search": {"pruner": "none"} | (search or {}),
        }
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


@pytest.fixture
def open_study(url: str) -> Iterator[Any]:
    opened = []

    def open_one(config: StudyConfig) -> optuna.Study:
        opened.append(open_storage(url, create=True))
        return create_study(opened[-1], config)

    yield open_one
    for storage in opened:
        storage.engine.dispose()


def quiet(state: SearchState, event: Event | None) -> None:
    pass


def in_process(config: StudyConfig) -> Executor:
    return InProcessExecutor(config.data, device="cpu")


def search(study: optuna.Study, config: StudyConfig, *, num_trials: int | None, **kwargs: Any) -> SearchState:
    kwargs = {"executor": in_process(config), "show": quiet} | kwargs
    return Coordinator(study, config, num_trials=num_trials, **kwargs).run()


def test_search_ends_with_exactly_n_and_every_trial_carries_everything(open_study: Any) -> None:
    config = make_config()
    study = open_study(config)
    state = search(study, config, num_trials=4)
    assert (state.end, state.num_complete, state.num_failed) == ("finished", 4, 0)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        assert sorted(trial.intermediate_values) == [1, 2]
        attributes = trial.user_attrs
        assert attributes["num_parameters"] > 100 and attributes["flops"] > 1000 and attributes["seconds"] > 0
        assert attributes["device"].startswith("cpu")
        assert {"fbsearch", "torch", "optuna", "python"} <= set(attributes["environment"]["versions"])
        assert "git_commit" in attributes["environment"]
        assert [epoch["epoch"] for epoch in attributes["history"]] == [1, 2]
        assert attributes["history"][-1]["val_accuracy"] == trial.value
        stored = trial_config(trial)
        assert stored.seed == trial.number and stored.model.stem == "conv3"
        assert stored.train.learning_rate == trial.params["train.learning_rate"]
        assert len(stored.model.fractal_levels) == trial.params["model.fractal_levels.num_stages"]
    assert study.user_attrs["dataset"]["num_classes"] == 10


def test_search_over_augmentation_trains_and_exports_what_was_drawn(open_study: Any) -> None:
    space = {
        "data.augment.rotation": {"low": 0, "high": 30},
        "data.augment.mixup": {"choices": [0.0, 0.2, 0.4]},
        "train.class_weights": {"choices": ["none", "balanced"]},
    }
    config = make_config(space=space)
    study = open_study(config)
    executor = ProcessExecutor(config.data, devices=["cpu", "cpu"])
    state = search(study, config, num_trials=4, executor=executor)
    assert (state.end, state.num_complete, state.num_failed) == ("finished", 4, 0)
    for trial in study.trials:
        augment = trial_config(trial).data.augment
        assert (augment.rotation, augment.mixup) == (
            trial.params["data.augment.rotation"],
            trial.params["data.augment.mixup"],
        )
        assert 0 < augment.rotation < 30 and not augment.flip
    (best,) = export_best(study, top=1).configs
    assert best.data.augment.rotation == study.best_trial.params["data.augment.rotation"]
    assert best.data.limit == 100


def test_search_without_a_limit_of_trials_goes_on_to_the_end_of_the_grid(open_study: Any) -> None:
    config = make_config(space={"train.learning_rate": {"choices": [0.01, 0.02]}}, search={"sampler": "grid"})
    study = open_study(config)
    state = search(study, config, num_trials=None)
    assert (state.end, state.num_complete, state.progress) == ("grid_exhausted", 2, "2 trials")
    assert stored_num_trials(study) is None and not state.is_complete
    assert search(study, config, num_trials=2).end == "finished" and stored_num_trials(study) == 2


def test_search_ends_earlier_by_the_weight_of_its_start(open_study: Any) -> None:
    config = make_config()
    state = search(open_study(config), config, num_trials=None, timeout=1e6, start_up_weight=1e12)
    assert (state.end, state.num_finished) == ("timeout", 0)
    assert state.deadline < state.started


def test_search_estimates_the_time_left_from_the_first_epoch_on(open_study: Any) -> None:
    config = make_config(epochs=4)
    seen: list[tuple[int, float]] = []

    def look(state: SearchState, event: Event | None) -> None:
        if not isinstance(event, Epoch):
            return
        done = event.stats.epoch / 4 + state.num_finished
        elapsed = time.monotonic() - state.started
        assert state.estimated_seconds_left == pytest.approx(elapsed / done * (3 - done), rel=0.1, abs=0.05)
        seen.append((event.stats.epoch, state.estimated_seconds_left))

    state = search(open_study(config), config, num_trials=3, show=look)
    assert len(seen) == 12 and math.isfinite(seen[0][1]) and state.estimated_seconds_left == 0


def test_search_goes_on_where_another_process_ends_a_trial_that_is_being_drawn(open_study: Any, url: str) -> None:
    config = make_config(epochs=1)
    study, other = open_study(config), open_storage(url)

    class EndedElsewhere(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            if trial.number == 0:
                optuna.load_study(storage=other, study_name="small").tell(0, state=TrialState.FAIL)

    study.sampler = EndedElsewhere(seed=0)
    assert search(study, config, num_trials=2).end == "finished"
    states = [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert [trial.state for trial in study.get_trials()] == states
    other.engine.dispose()


def test_search_given_again_adds_only_what_is_missing(open_study: Any) -> None:
    config = make_config(epochs=1)
    search(open_study(config), config, num_trials=2)
    assert search(open_study(config), config, num_trials=2).num_finished == 2
    study = open_study(config)
    assert search(study, config, num_trials=3).num_finished == 3
    assert len(study.trials) == 3
    assert len({trial.params["train.learning_rate"] for trial in study.trials}) == 3, "a resumed sampler repeats itself"


def test_search_one_worker_same_seed_gives_the_same_study(open_study: Any) -> None:
    found = []
    for name in ("a", "b"):
        config = make_config(epochs=1).model_copy(update={"name": name})
        study = open_study(config)
        search(study, config, num_trials=3)
        found.append([(trial.params, trial.value) for trial in study.trials])
    assert found[0] == found[1]


def test_search_prunes_and_stores_what_there_was(open_study: Any) -> None:
    config = make_config(epochs=6, search={"pruner": "successive_halving"})
    study = open_study(config)
    state = search(study, config, num_trials=8)
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert pruned and state.num_pruned == len(pruned) and state.num_finished == 8
    for trial in pruned:
        epochs = [epoch["epoch"] for epoch in trial.user_attrs["history"]]
        assert epochs == sorted(trial.intermediate_values) and len(epochs) < 6
        assert trial.value == trial.intermediate_values[len(epochs)]
        assert trial.user_attrs["seconds"] > 0


@pytest.mark.slow
def test_search_in_processes_ends_with_exactly_n_while_workers_are_killed(open_study: Any) -> None:
    config = make_config(epochs=3)
    study = open_study(config)
    killed: list[int] = []

    def kill_two(state: SearchState, event: Event | None) -> None:
        if isinstance(event, Epoch) and len(killed) < 2 and event.trial not in killed:
            killed.append(event.trial)
            multiprocessing.active_children()[0].kill()

    executor = ProcessExecutor(config.data, devices=["cpu", "cpu"])
    state = search(study, config, num_trials=6, executor=executor, show=kill_two)
    assert (state.num_finished, state.end) == (6, "finished")
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 6 and not set(states) - {TrialState.COMPLETE, TrialState.FAIL}
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert 1 <= len(failed) == state.num_failed <= 2
    for trial in failed:
        assert trial.user_attrs["failure"]["kind"] == "worker_died"
        assert "SIGKILL" in trial.user_attrs["failure"]["message"]
        origin = trial.user_attrs.get("retry_of", trial.number)
        again = [other for other in study.trials if other.user_attrs.get("retry_of") == origin]
        assert any(other.state == TrialState.COMPLETE for other in again)
        assert {str(other.params) for other in again} == {str(trial.params)}


def test_search_the_same_failure_in_three_trials_stops_with_its_message(open_study: Any) -> None:
    # None of these fits into 8 x 8 images.
    space = {"model.fractal_levels": {"choices": [[1] * 5, [1] * 6, [1] * 7]}}
    config = make_config(space=space)
    study = open_study(config)
    with pytest.raises(SearchError, match=r"3 different trials in a row failed in the same way.*\[1, 1, 8, 8\]"):
        search(study, config, num_trials=50)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3
    assert {trial.user_attrs["failure"]["kind"] for trial in study.trials} == {"invalid_configuration"}


@pytest.mark.slow
def test_search_a_loss_that_is_not_finite_is_recorded_and_not_tried_again(open_study: Any) -> None:
    space = {"train.learning_rate": {"choices": [0.01, 0.02, 0.03, 1e30]}}
    config = make_config(space=space, optimizer="sgd", schedule="constant", epochs=1)
    study = open_study(config)
    state = search(study, config, num_trials=4, max_duplicates=FEW_DUPLICATES)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    # Drawn again, it is answered from the study: there are three other configurations, and the search ends with them.
    assert (state.end, state.num_finished, state.num_distinct, len(failed)) == ("space_exhausted", 3, 4, 1)
    assert {trial.user_attrs["failure"]["kind"] for trial in failed} == {"non_finite_loss"}
    assert not any("retry_of" in trial.user_attrs for trial in study.trials)


def test_search_grid_runs_each_point_once_and_ends(open_study: Any) -> None:
    space = {
        "train.learning_rate": {"choices": [0.01, 0.02]},
        "model.fractal_levels": {"num_stages": [1, 2], "level": [1]},
    }
    config = make_config(space=space, epochs=1, search={"sampler": "grid"})
    assert search(open_study(config), config, num_trials=3).end == "finished"
    study = open_study(config)
    state = search(study, config, num_trials=10)
    assert (state.end, state.num_finished) == ("grid_exhausted", 4)
    points = {(trial_config(t).train.learning_rate, trial_config(t).model.fractal_levels) for t in study.trials}
    assert points == {(0.01, (1,)), (0.01, (1, 1)), (0.02, (1,)), (0.02, (1, 1))}


def test_search_grid_resumed_with_another_seed_still_runs_each_point_once(open_study: Any) -> None:
    space = {"train.learning_rate": {"choices": [0.01, 0.02, 0.03, 0.04]}}
    for seed, num_trials in ((0, 2), (1, 10)):
        config = make_config(space=space, epochs=1, search={"sampler": "grid", "seed": seed})
        study = open_study(config)
        search(study, config, num_trials=num_trials)
    assert sorted(trial.params["train.learning_rate"] for trial in study.trials) == [0.01, 0.02, 0.03, 0.04]


def write_class(root: Path, label: str, *, step: int = 20) -> None:
    for number in range(6):
        path = root / "train" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), step * number).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An image tree of two classes."""
    for label in ("cat", "dog"):
        write_class(tmp_path / "images", label)
    return tmp_path / "images"


def config_of(images: Path, **train: Any) -> StudyConfig:
    config = make_config(**{"epochs": 1, "batch_size": 4} | train)
    return config.model_copy(update={"data": config.data.model_validate({"name": "folder", "root": str(images)})})


def test_search_data_that_changed_since_the_last_run_is_refused(open_study: Any, images: Path) -> None:
    config = config_of(images)
    search(open_study(config), config, num_trials=1)
    write_class(images, "dog", step=30)
    with pytest.raises(ConfigError, match=r"have changed.*as many images, but other ones.*--name"):
        search(open_study(config), config, num_trials=2)
    write_class(images, "dog")  # the same again, at another time
    search(open_study(config), config, num_trials=2)
    write_class(images, "owl")
    with pytest.raises(ConfigError, match=r"have changed.*num_classes 2 -> 3.*--name"):
        search(open_study(config), config, num_trials=3)


@pytest.mark.slow
def test_search_whose_data_change_before_another_worker_starts_stops_and_says_so(open_study: Any, images: Path) -> None:
    config = config_of(images, epochs=200)
    study = open_study(config)

    def add_a_class_and_kill(_state: SearchState, event: Event | None) -> None:
        if isinstance(event, Epoch) and (event.trial, event.stats.epoch) == (0, 1):
            write_class(images, "owl")
            multiprocessing.active_children()[0].kill()

    executor = ProcessExecutor(config.data, devices=["cpu"])
    with pytest.raises(
        SearchError, match=r"worker 0 .* other data than the first worker \(num_classes 2 -> 3, .*--name"
    ):
        search(study, config, num_trials=2, executor=executor, show=add_a_class_and_kill)
    assert not [trial for trial in study.trials if is_finished(trial)]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "cmaes", "gp"])
def test_search_every_sampler_works(open_study: Any, sampler: str) -> None:
    config = make_config(epochs=1, search={"sampler": sampler}, space={k: SPACE[k] for k in ("train.learning_rate",)})
    assert search(open_study(config), config, num_trials=3).num_finished == 3


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_search_every_pruner_works(open_study: Any, pruner: str) -> None:
    config = make_config(epochs=3, search={"pruner": pruner})
    assert search(open_study(config), config, num_trials=12).num_finished == 12


def test_search_interrupted_puts_running_trials_back_and_goes_on(open_study: Any, url: str) -> None:
    config = make_config()
    study = open_study(config)

    def interrupt(state: SearchState, event: Event | None) -> None:
        if isinstance(event, Epoch) and event.trial == 1:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    state = search(study, config, num_trials=4, show=interrupt)
    assert state.end == "interrupted" and state.num_finished == 1
    assert signal.getsignal(signal.SIGINT) is before
    found = status(study, url=url)
    assert (found["num_running"], found["num_failed"], found["num_waiting"]) == (0, 0, 1)
    study = open_study(config)
    assert search(study, config, num_trials=4).num_finished == 4
    put_back = study.trials[1]
    assert put_back.user_attrs["failure"]["kind"] == "interrupted"
    again = next(trial for trial in study.trials if trial.user_attrs.get("retry_of") == 1)
    assert again.params == put_back.params and again.state == TrialState.COMPLETE
    assert status(study, url=url)["num_failed"] == 0


@pytest.mark.slow
def test_search_timeout_ends_in_time_and_leaves_nothing_running(open_study: Any) -> None:
    importlib.import_module("torch._dynamo")  # the first time it may take longer than the search
    config = make_config(epochs=3000)
    study = open_study(config)
    state = search(study, config, num_trials=4, timeout=2)
    assert state.end == "timeout" and state.num_finished == 0
    assert {trial.state for trial in study.trials} == {TrialState.FAIL, TrialState.WAITING}


@pytest.mark.slow
def test_search_data_that_cannot_be_loaded_stops_with_that_message(open_study: Any, tmp_path: Path) -> None:
    data = {"name": "folder", "root": str(tmp_path / "absent")}
    config = make_config().model_copy(update={"data": make_config().data.model_validate(data)})
    study = open_study(config)
    seen: list[Event | None] = []
    executor = ProcessExecutor(config.data, devices=["cpu"])
    with pytest.raises(SearchError, match="absent"):
        search(study, config, num_trials=4, executor=executor, show=lambda state, event: seen.append(event))
    assert not [event for event in seen if isinstance(event, (WorkerDied, Finished, CannotStart))]
    assert not study.trials


def test_search_works_outside_the_main_thread(open_study: Any) -> None:
    config = make_config(epochs=1)
    study = open_study(config)
    thread = threading.Thread(target=search, args=(study, config), kwargs={"num_trials": 1})
    thread.start()
    thread.join()
    assert len(study.trials) == 1


def test_search_keeps_attention_maps_of_the_best_at_their_moment(open_study: Any) -> None:
    config = make_config()
    study = open_study(config)
    search(study, config, num_trials=8, num_with_attention=1)
    best, expected = -1.0, []
    for trial in study.trials:
        if trial.values[0] >= best:
            expected.append(trial.number)
            best = trial.values[0]
    assert [trial.number for trial in study.trials if "attention" in trial.user_attrs] == expected
    assert len(expected) < 8, "one at least was not the best at its moment"
    stored = study.best_trial.user_attrs["attention"]
    assert stored["images"]["shape"] == [4, 8, 8, 1] and len(stored["labels"]) == 4
    assert {trial.user_attrs["worker"] for trial in study.trials} == {0}


@pytest.mark.slow
def test_search_over_the_limits_is_not_trained_and_not_counted(open_study: Any) -> None:
    levels = {"num_stages": [1], "level": [1]}
    space: dict[str, Any] = {"model.base_channels": {"low": 4, "high": 64, "step": 4}, "model.fractal_levels": levels}
    config = make_config(space=space, epochs=1, search={"limits": {"parameters": 15_000, "memory_mib": 100}})
    study = open_study(config)
    state = search(study, config, num_trials=3)
    assert (state.end, state.num_finished, state.num_failed) == ("finished", 3, 0)
    over = [trial for trial in study.trials if is_infeasible(trial)]
    assert state.num_infeasible == len(over) > 0
    for trial in over:
        assert not trial.intermediate_values and trial.user_attrs["failure"]["kind"] == "over_limits"
        assert "parameters of at most 15,000" in trial.user_attrs["failure"]["message"]
        assert trial.constraints["parameters"] == trial.user_attrs["num_parameters"] / 15_000 - 1 > 0
    for trial in filter(is_finished, study.trials):
        assert trial.user_attrs["num_parameters"] <= 15_000 and 0 < trial.user_attrs["memory_mib"] < 100
        assert set(trial.constraints) == {"parameters", "memory_mib"} and max(trial.constraints.values()) <= 0
        assert "limits" not in trial.user_attrs["config"], "what a trial is does not depend on the limits"
    found = status(study, url="sqlite:///x")
    assert (found["num_infeasible"], found["num_complete"]) == (len(over), 3)
    assert search(study, config, num_trials=3).num_infeasible == len(over)


def test_search_with_limits_that_nothing_meets_stops_and_says_so(open_study: Any) -> None:
    config = make_config(search={"limits": {"flops": 10}})
    study = open_study(config)
    with pytest.raises(SearchError, match=r"5 configurations .* flops at most 10, the smallest had \d") as caught:
        search(study, config, num_trials=3, max_infeasible=5)
    assert "fbsearch validate" in str(caught.value)
    assert len(study.trials) == 5 and all(map(is_infeasible, study.trials))


@pytest.mark.slow
def test_search_small_space_trains_each_configuration_once_and_ends(open_study: Any) -> None:
    # momentum is no part of adamw: three distinct configurations of six.
    space = {"train.learning_rate": {"choices": [0.01, 0.02, 0.03]}, "train.momentum": {"choices": [0.5, 0.9]}}
    config = make_config(space=space, epochs=1)
    study = open_study(config)
    state = search(study, config, num_trials=10, max_duplicates=FEW_DUPLICATES)
    assert (state.end, state.num_finished, state.num_distinct) == ("space_exhausted", 3, 3)
    trained = [trial for trial in study.trials if is_finished(trial)]
    assert sorted(trial.params["train.learning_rate"] for trial in trained) == [0.01, 0.02, 0.03]
    values = {trial.params["train.learning_rate"]: trial.value for trial in trained}
    duplicates = [trial for trial in study.trials if is_duplicate(trial)]
    assert len(duplicates) == state.num_duplicates == status(study, url="sqlite:///x")["num_duplicates"] >= 25
    for trial in duplicates:
        origin = study.trials[trial.user_attrs["duplicate_of"]]
        assert is_finished(origin) and trial.value == values[trial.params["train.learning_rate"]] == origin.value
    assert len(best_trials(study, 10)) == 3


def test_search_resumed_answers_from_earlier_trials(open_study: Any) -> None:
    space = {"train.learning_rate": {"choices": [0.01, 0.02, 0.03, 0.04]}}
    config = make_config(space=space, epochs=1)
    search(open_study(config), config, num_trials=2)
    study = open_study(config)
    assert search(study, config, num_trials=4).num_finished == 4
    trained = [trial for trial in study.trials if is_finished(trial)]
    assert len({trial.params["train.learning_rate"] for trial in trained}) == len(trained) == 4


def test_search_grid_answers_equal_points_from_the_study(open_study: Any) -> None:
    space = {"train.learning_rate": {"choices": [0.01, 0.02]}, "train.momentum": {"choices": [0.5, 0.9]}}
    config = make_config(space=space, epochs=1, search={"sampler": "grid"})
    study = open_study(config)
    state = search(study, config, num_trials=10)
    assert (state.end, state.num_finished, state.num_duplicates) == ("grid_exhausted", 2, 2)


def test_search_with_duplicates_can_be_exported_with_what_it_cost(open_study: Any) -> None:
    space: dict[str, Any] = {"model.base_channels": {"choices": [4, 8]}, "model.fractal_levels": {"choices": [[1]]}}
    config = make_config(space=space, epochs=1)
    study = open_study(config)
    state = search(study, config, num_trials=3, max_duplicates=FEW_DUPLICATES)
    assert state.end == "space_exhausted" and state.num_duplicates > 0
    searched = export_best(study, top=2).search
    assert searched is not None and searched.compute.num_trials == state.num_finished == 2
