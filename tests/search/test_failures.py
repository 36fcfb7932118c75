"""Failed trials and the failure policy: real processes stopped and killed, real lack of memory, a real TPE sampler."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import SearchError
from fbsearch.messages import CannotStart, Epoch, Event, Started, WorkerDied, WorkerLost
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.failures import FailurePolicy
from fbsearch.search.state import SearchState
from fbsearch.study.database import open_storage
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, status
from fbsearch.study.trial_record import fail, is_finished, is_infeasible, put_back, put_back_running
from fbsearch.workers.executor import MAX_STARTS
from fbsearch.workers.local import ProcessExecutor

pytestmark = pytest.mark.slow  # processes that import torch

RATE: dict[str, Any] = {"train.learning_rate": {"low": 0.003, "high": 0.05, "log": True}}
TOO_BIG = 2**20


def make_config(*, space: dict[str, Any] = RATE, epochs: int = 2, **search: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "small",
            "data": {"limit": 100},
            "model": {"base_channels": 4, "pattern_resolution": 8, "fractal_levels": [1]},
            "train": {"epochs": epochs},
            "space": space,
            "search": {"pruner": "none"} | search,
        }
    )


@pytest.fixture
def storage(url: str) -> Iterator[optuna.storages.RDBStorage]:
    opened = open_storage(url, create=True)
    yield opened
    opened.engine.dispose()


def search(
    study: optuna.Study,
    config: StudyConfig,
    *,
    num_workers: int,
    show: Any,
    max_starts: int = MAX_STARTS,
    **kwargs: Any,
) -> SearchState:
    executor = ProcessExecutor(config.data, devices=["cpu"] * num_workers, max_starts=max_starts)
    kwargs["show"] = lambda state, event: show(executor, state, event)
    return Coordinator(study, config, executor, **kwargs).run()


def send(executor: ProcessExecutor, worker: int, number: signal.Signals) -> None:
    os.kill(executor._slots[worker].process.pid or 0, number)


def check_exactly(study: optuna.Study, num_trials: int) -> None:
    assert sum(map(is_finished, study.trials)) == num_trials
    assert not {trial.state for trial in study.trials} & {TrialState.RUNNING, TrialState.WAITING}
    for trial in filter(is_finished, study.trials):
        assert [epoch["epoch"] for epoch in trial.user_attrs["history"]] == sorted(trial.intermediate_values)


def test_search_a_worker_that_hangs_is_ended_and_its_trial_is_tried_again(storage: Any) -> None:
    config = make_config()
    study = create_study(storage, config)
    stopped: list[int] = []

    def stop_one(executor: ProcessExecutor, _state: SearchState, event: Event | None) -> None:
        if isinstance(event, Epoch) and not stopped:
            stopped.append(event.trial)
            send(executor, event.worker, signal.SIGSTOP)

    state = search(study, config, num_trials=5, num_workers=2, trial_timeout=6, show=stop_one)
    assert (state.end, state.num_finished) == ("finished", 5)
    check_exactly(study, 5)
    hung = study.trials[stopped[0]]
    assert hung.user_attrs["failure"] == {"kind": "hung", "message": "no epoch for 6 seconds"}
    again = next(trial for trial in study.trials if trial.user_attrs.get("follows") == hung.number)
    assert again.params == hung.params and again.user_attrs["attempt"] == 2


def test_search_out_of_memory_is_tried_again_alone_and_then_infeasible(storage: Any, url: str) -> None:
    space = {"model.base_channels": {"choices": [4, TOO_BIG]}, "train.learning_rate": {"low": 0.003, "high": 0.03}}
    config = make_config(space=space, sampler="random", seed=1)
    study = create_study(storage, config)
    alone: list[int] = []

    def check_alone(_executor: ProcessExecutor, state: SearchState, event: Event | None) -> None:
        if isinstance(event, Started) and study.trials[event.trial].user_attrs.get("alone"):
            alone.append(event.trial)
            assert list(state.running) == [event.worker]

    state = search(study, config, num_trials=4, num_workers=2, show=check_alone)
    check_exactly(study, 4)
    lacking = [trial for trial in study.trials if trial.user_attrs.get("failure")]
    assert {trial.user_attrs["failure"]["kind"] for trial in lacking} == {"out_of_memory"}
    assert {trial.params["model.base_channels"] for trial in lacking} == {TOO_BIG}
    assert all("Traceback" in trial.user_attrs["traceback"] for trial in lacking)
    failed, infeasible = ([t for t in lacking if is_infeasible(t) == wanted] for wanted in (False, True))
    assert {trial.state for trial in failed} == {TrialState.FAIL}
    assert [trial.number for trial in infeasible] == alone and len(failed) == len(infeasible) == state.num_infeasible
    assert all(trial.constraints == {"out_of_memory": 1.0} for trial in infeasible)
    counts = status(study, url=url)
    assert (counts["num_complete"], counts["num_infeasible"]) == (4, len(infeasible))


@pytest.fixture
def photos_of_two(tmp_path: Path) -> Path:
    for label in ("cat", "dog"):
        for number in range(8):
            path = tmp_path / "images" / "train" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 20 * number).save(path)
    return tmp_path / "images"


def test_search_goes_on_without_a_worker_whose_data_are_gone_and_stops_without_any(
    storage: Any, photos_of_two: Path, cache: Path
) -> None:
    config = make_config(epochs=100_000)
    config = config.model_copy(
        update={"data": config.data.model_validate({"name": "folder", "root": str(photos_of_two)})}
    )
    study = create_study(storage, config)
    seen: list[Event] = []

    def lose(executor: ProcessExecutor, state: SearchState, event: Event | None) -> None:
        if isinstance(event, (CannotStart, WorkerDied, WorkerLost)):
            seen.append(event)
        if photos_of_two.exists() and len(state.running) == 2 and isinstance(event, Epoch):
            shutil.rmtree(photos_of_two)
            shutil.rmtree(cache, ignore_errors=True)
            send(executor, 0, signal.SIGKILL)
        if isinstance(event, WorkerLost):
            assert event.worker == 0 and list(state.running) == [1], "the other goes on"
            send(executor, 1, signal.SIGKILL)

    with pytest.raises(
        SearchError, match=f"no worker is left: worker 1 was not ready after 1 starts: .*{photos_of_two}"
    ):
        search(study, config, num_trials=50, num_workers=2, max_starts=1, show=lose)
    assert [type(event) for event in seen][:3] == [WorkerDied, CannotStart, WorkerLost]
    assert {trial.state for trial in study.trials} == {TrialState.FAIL, TrialState.WAITING}
    assert sum(trial.state == TrialState.WAITING for trial in study.trials) == 2, (
        "what ran is put back, nothing is lost"
    )


def failing(study: optuna.Study, policy: FailurePolicy, *, kind: str, attempt: int, message: str = "gone") -> None:
    """A new configuration that fails in its attempt of that number."""
    study.enqueue_trial({}, user_attrs={"attempt": attempt})
    while (trial := study.ask()).user_attrs.get("attempt", 1) != attempt or "follows" in trial.user_attrs:
        fail(study, trial.number, kind="interrupted", message="of no interest here")
    policy.record(trial, kind=kind, message=message)


def test_failure_policy_workers_killed_from_outside_never_stop_a_search(storage: Any) -> None:
    study = create_study(storage, make_config())
    policy = FailurePolicy(study, make_config())
    for kind in ("worker_died", "hung"):
        for _ in range(5):
            failing(study, policy, kind=kind, attempt=1)


@pytest.mark.parametrize(("kind", "attempt"), [("worker_died", 3), ("hung", 3), ("error", 1)])
def test_failure_policy_the_same_bug_in_three_configurations_stops_with_it(
    storage: Any, kind: str, attempt: int
) -> None:
    study = create_study(storage, make_config())
    policy = FailurePolicy(study, make_config())
    for size in (3, 4):
        failing(study, policy, kind=kind, attempt=attempt, message=f"shape {size}")
    policy.reset()
    for size in (3, 4):
        failing(study, policy, kind=kind, attempt=attempt, message=f"shape {size}")
    with pytest.raises(SearchError, match=f"3 different trials in a row failed in the same way.*{kind}: shape 5"):
        failing(study, policy, kind=kind, attempt=attempt, message="shape 5")


@pytest.mark.parametrize("kind", ["worker_died", "hung", "error"])
def test_failure_policy_one_configuration_is_tried_three_times_and_counts_once(storage: Any, kind: str) -> None:
    study = create_study(storage, make_config())
    policy = FailurePolicy(study, make_config())
    outcomes = []
    for _ in range(3):
        trial = study.ask()
        sample(trial, make_config())
        outcomes.append(policy.record(trial, kind=kind, message="gone"))
    assert outcomes == ["again", "again", "given_up"]
    assert [trial.user_attrs.get("attempt", 1) for trial in study.trials] == [1, 2, 3]
    assert len({str(trial.params) for trial in study.trials}) == 1


def draw_with_little_memory(study: optuna.Study, config: StudyConfig, *, is_told: bool) -> list[bool]:
    """Return for each of 120 draws whether it was too big. The best networks are those that just fit into memory.

    `is_told`: the sampler learns of a draw that does not fit; otherwise the trial only fails.
    """
    policy = FailurePolicy(study, make_config())
    too_big = []
    while len(too_big) < 120:
        trial = study.ask()
        channels = sample(trial, config)["model.base_channels"]
        if channels <= 256:
            study.tell(trial, channels / 256)
            too_big.append(False)
        elif is_told:
            policy.record(trial, kind="out_of_memory", message="no memory")
            policy.reset()
            too_big += [True] * (trial.user_attrs.get("attempt", 1) == 1)
        else:
            fail(study, trial.number, kind="out_of_memory", message="no memory")
            too_big.append(True)
    return too_big


def test_failure_policy_the_sampler_learns_to_keep_away_from_what_needs_too_much_memory(storage: Any) -> None:
    config = make_config(space={"model.base_channels": {"low": 4, "high": 1024, "step": 4}})
    num_late = {}
    for is_told in (True, False):
        sampler = create_study(storage, config).sampler
        assert isinstance(sampler, optuna.samplers.TPESampler)
        study = optuna.create_study(direction="maximize", sampler=sampler)  # in memory, for speed
        num_late[is_told] = sum(draw_with_little_memory(study, config, is_told=is_told)[60:])
    assert num_late[True] <= 36 and num_late[False] >= 54, num_late


def test_put_back_killed_before_the_end_of_the_trial_loses_nothing_and_repeats_nothing(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = create_study(storage, make_config())
    trial = study.ask()
    params = {"train.learning_rate": sample(trial, make_config())["train.learning_rate"]}

    enqueue = study.enqueue_trial

    def enqueue_and_be_killed(*args: Any, **kwargs: Any) -> None:
        enqueue(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study, "enqueue_trial", enqueue_and_be_killed)
        put_back(study, study.trials[0], kind="worker_died", message="gone", attempt=2)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.WAITING]
    for _ in range(2):
        put_back_running(study)
        assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.trials[0].user_attrs["failure"] == {"kind": "worker_died", "message": "gone"}
    again = study.ask()
    sample(again, make_config())
    assert again.params == params and again.user_attrs["attempt"] == 2


def test_put_back_running_keeps_the_reason_of_a_trial_that_had_failed(storage: Any) -> None:
    study = create_study(storage, make_config())
    study.ask().set_user_attr("failure", {"kind": "error", "message": "a bug"})  # and then the coordinator was killed
    put_back_running(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    assert study.trials[0].user_attrs["failure"]["kind"] == "error"


def test_search_a_lost_node_blames_no_trial_and_counts_no_attempt(storage: Any) -> None:
    study = create_study(storage, make_config())
    policy = FailurePolicy(study, make_config())
    for _ in range(5):  # more than a search stops with, and than a trial is tried
        assert policy.record(study.ask(), kind="node_lost", message="the node 10.0.0.3 was lost") == "again"
    assert {trial.user_attrs.get("attempt", 1) for trial in study.trials} == {1}


def test_search_out_of_memory_after_another_failure_is_tried_alone_still(storage: Any) -> None:
    study = create_study(storage, make_config())
    policy = FailurePolicy(study, make_config())
    assert policy.record(study.ask(), kind="worker_died", message="killed") == "again"
    assert policy.record(study.ask(), kind="out_of_memory", message="too big") == "again"
    assert policy.record(study.ask(), kind="out_of_memory", message="too big") == "infeasible"
