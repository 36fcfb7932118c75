"""A search whose database goes away under it: it waits, keeps what workers say, and writes each epoch once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from postgres_server import PostgresServer
from small_disk import fill, mounted

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import StorageError
from fbsearch.messages import Epoch, Event
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.database import open_storage, storage_errors
from fbsearch.study.study import create_study
from fbsearch.study.trial_record import is_finished
from fbsearch.workers.executor import Executor
from fbsearch.workers.local import InProcessExecutor, ProcessExecutor
from tests.study.test_retrying_storage import locked_for, retrying_storage

pytestmark = pytest.mark.slow  # processes that import torch

EPOCHS = 20
CONFIG = StudyConfig.model_validate(
    {
        "name": "small",
        "data": {"limit": 100},
        "model": {"base_channels": 4, "pattern_resolution": 8, "fractal_levels": [1]},
        "train": {"epochs": EPOCHS},
        "space": {"train.learning_rate": {"low": 0.003, "high": 0.05, "log": True}},
        "search": {"pruner": "none"},
    }
)


@contextlib.contextmanager
def patient_study(url: str, *, patience: float = 60) -> Iterator[optuna.Study]:
    with retrying_storage(url, timeout_seconds=patience) as storage:
        yield create_study(storage, CONFIG)


def in_process() -> Executor:
    return InProcessExecutor(CONFIG.data, device="cpu")


def search(
    study: optuna.Study,
    *,
    executor: Executor,
    at_epoch: Callable[[], None],
    while_away: Callable[[], None] = lambda: None,
) -> list[str]:
    """Search for three trials; something happens at the fifth epoch of the first. What was said of the database."""
    said: list[str] = []

    def show(state: SearchState, event: Event | None) -> None:
        if isinstance(event, Epoch) and (event.trial, event.stats.epoch) == (0, 5):
            at_epoch()
        if state.away:
            said.append(state.away)
            while_away()

    Coordinator(study, CONFIG, executor, num_trials=3, show=show).run()
    return said


def check_whole(url: str) -> None:
    """Three finished trials, none left over, every learning curve whole, in both places."""
    storage = open_storage(url)
    trials = optuna.load_study(study_name="small", storage=storage).trials
    storage.engine.dispose()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sum(map(is_finished, trials)) == 3
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    for trial in filter(is_finished, trials):
        history = trial.user_attrs["history"]
        assert [epoch["epoch"] for epoch in history] == list(range(1, EPOCHS + 1))
        assert trial.intermediate_values == {epoch["epoch"]: epoch["val_accuracy"] for epoch in history}
        assert trial.value == trial.intermediate_values[EPOCHS]


def test_search_goes_on_when_the_database_was_locked(url: str, tmp_path: Path) -> None:
    with patient_study(url) as study, contextlib.ExitStack() as stack:
        lock = locked_for(tmp_path / "fbsearch.db", 3)
        said = search(study, executor=in_process(), at_epoch=lambda: stack.enter_context(lock))
    assert set(said) == {"another program holds the database locked"}
    check_whole(url)


def test_search_goes_on_when_there_is_room_on_the_disk_again(tmp_path: Path) -> None:
    url, filled = f"sqlite:///{tmp_path / 'disk' / 'x.db'}", list[Path]()
    with mounted(tmp_path / "disk", size="8m") as disk, patient_study(url) as study:
        said = search(
            study,
            executor=in_process(),
            at_epoch=lambda: filled.append(fill(disk)),
            while_away=lambda: filled[0].unlink(missing_ok=True),
        )
        assert set(said) == {"the disk is full"}
        check_whole(url)


def test_search_goes_on_when_the_server_was_stopped_and_its_workers_did_too(postgres: PostgresServer) -> None:
    url = postgres.new_database()

    def stop_for_a_while() -> None:
        postgres.stop()
        threading.Timer(3, postgres.start).start()

    executor = ProcessExecutor(CONFIG.data, devices=["cpu"])
    with patient_study(url) as study:
        said = search(study, executor=executor, at_epoch=stop_for_a_while)
    assert "the database server cannot be reached" in said
    check_whole(url)


def test_search_interrupted_while_the_database_is_away_ends_and_loses_nothing(url: str, tmp_path: Path) -> None:
    pressed: list[None] = []

    def press_once() -> None:
        if not pressed:
            pressed.append(None)
            signal.raise_signal(signal.SIGINT)

    with contextlib.ExitStack() as stack:
        with patient_study(url) as study, pytest.raises(StorageError, match="locked"), storage_errors(url):
            search(
                study,
                executor=in_process(),
                at_epoch=lambda: stack.enter_context(locked_for(tmp_path / "fbsearch.db", 4)),
                while_away=press_once,
            )
        # Nothing could be put back then; the next search does it.
        with patient_study(url) as study:
            assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
            search(study, executor=in_process(), at_epoch=lambda: None)
    check_whole(url)


def test_search_stops_with_the_databases_error_when_patience_is_over(url: str, tmp_path: Path) -> None:
    with (
        contextlib.ExitStack() as stack,
        patient_study(url, patience=0.5) as study,
        pytest.raises(StorageError, match="holds the database locked"),
        storage_errors(url),
    ):
        search(
            study,
            executor=in_process(),
            at_epoch=lambda: stack.enter_context(locked_for(tmp_path / "fbsearch.db", 5)),
        )
    with patient_study(url) as study:
        search(study, executor=in_process(), at_epoch=lambda: None)
    check_whole(url)
