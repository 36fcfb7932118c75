"""A study that was stored before trials had a TrialRecord (study_0_1_0.sql) opens, is read and goes on."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fbsearch.config.models import ModelConfig, TrainConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import FailureKind
from fbsearch.study.database import open_storage
from fbsearch.study.export import export_best, trial_table
from fbsearch.study.queries import best_trial, count_trials
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, load_study, stored_config, stored_dataset, stored_num_trials
from fbsearch.study.trial_record import (
    Failure,
    TrialRecord,
    is_duplicate,
    is_failure,
    is_infeasible,
    put_back_running,
    trial_config,
)

# The default study of then: the documented network, trained by AdamW.
BEFORE = StudyConfig(name="before", model=ModelConfig(), train=TrainConfig())


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[optuna.storages.RDBStorage]:
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.executescript(Path(__file__).with_name("study_0_1_0.sql").read_text(encoding="utf-8"))
    connection.close()
    storage = open_storage(f"sqlite:///{tmp_path / 'old.db'}")
    yield storage
    storage.engine.dispose()


def test_stored_study_is_read_whole(storage: optuna.storages.RDBStorage) -> None:
    study = load_study(storage, "before")
    assert stored_config(study) == BEFORE
    assert stored_dataset(study)["num_train"] == 1150 and stored_num_trials(study) == 9
    records = [TrialRecord.of(trial) for trial in study.trials]
    complete, pruned, infeasible, duplicate, failed, retried, retry, running = records
    assert (complete.num_parameters, complete.flops, complete.device, complete.worker) == (1000, 10**6, "cpu x86_64", 0)
    assert complete.environment is not None and complete.environment["versions"]["optuna"] == "5.0.0"
    assert complete.execution == {"mode": "eager", "reason": "no GPU"}
    assert complete.history is not None and [epoch["epoch"] for epoch in complete.history] == list(range(1, 9))
    assert complete.seconds is not None and pruned.history is not None and len(pruned.history) == 2
    assert infeasible.failure == Failure(kind=FailureKind.OVER_LIMITS, message="too large")
    assert duplicate.duplicate_of == 0 and duplicate.num_parameters == 1000
    assert failed.failure == Failure(kind=FailureKind.ERROR, message="a bug") and failed.traceback == "Traceback ..."
    assert retried.failure is not None and retried.failure.kind == FailureKind.OUT_OF_MEMORY
    assert (retry.follows, retry.retry_of, retry.attempt, retry.alone) == (5, 5, 2, True)
    assert running.attempt == 1 and not running.alone and running.failure is None
    assert [trial_config(trial).seed for trial in study.trials] == list(range(8))


def test_stored_study_is_counted_ranked_and_exported(storage: optuna.storages.RDBStorage) -> None:
    study = load_study(storage, "before")
    trials, counts = study.trials, count_trials(study)
    assert [list(map(is_of, trials)).count(True) for is_of in (is_infeasible, is_duplicate, is_failure)] == [1, 1, 2]
    assert [counts[key] for key in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)] == [2, 1, 2]
    assert (counts["infeasible"], counts["duplicate"], counts[TrialState.RUNNING]) == (1, 1, 1)
    best = best_trial(study)
    assert best is not None and best.number == 6
    assert [config.trial for config in export_best(study, top=5).configs] == [6, 0]
    assert trial_table(study)["failure"].dropna().tolist() == ["too large", "a bug", "no memory"]


def test_stored_study_goes_on(storage: optuna.storages.RDBStorage) -> None:
    config = BEFORE
    study = create_study(storage, config)
    assert put_back_running(study) == 1
    again = study.ask()
    record = TrialRecord.of(again)
    assert (again.number, record.follows, record.retry_of, record.attempt) == (8, 7, 7, 1)
    sample(again, config)
    study.tell(again, 0.99)
    assert again.params == study.trials[7].params and count_trials(study)[TrialState.COMPLETE] == 3


def test_trial_record_stores_what_it_reads(storage: optuna.storages.RDBStorage) -> None:
    study = load_study(storage, "before")
    for trial in study.trials:
        known = {key: value for key, value in trial.user_attrs.items() if (key, value) != ("attempt", 1)}
        assert TrialRecord.of(trial).attributes() == known
