"""The coordinator's storage: written together, its trials are what Optuna's own storage writes piece by piece."""

import math
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.study_file import StudyConfig
from fbsearch.study.buffered_storage import BufferedStorage
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, flush, without_details
from fbsearch.study.trial_record import DETAILS

CONFIG = StudyConfig()


def from_database(storage: RDBStorage) -> list[FrozenTrial]:
    """The trials of the only study, read without any memory of them."""
    return storage.get_all_trials(storage.get_all_studies()[0]._study_id)


def run_trials(study: optuna.Study) -> None:
    """Trials of every kind of end, with all that is set on one."""
    study.enqueue_trial({"model.base_channels": 8}, user_attrs={"attempt": 2})
    for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)):
        trial = study.ask()
        sample(trial, CONFIG)
        trial.set_user_attr("history", [{"epoch": 1, "val_accuracy": 0.5, "classes": ("a", "b")}])
        trial.set_user_attr("history", [{"epoch": 2}])
        study._storage.set_trial_system_attr(trial._trial_id, "rung", number)
        for step, value in enumerate((0.25, math.nan, math.inf, -math.inf, 0.5), start=1):
            trial.report(value, step=step)
        if state != TrialState.RUNNING:
            study.tell(trial, 0.9 if state == TrialState.COMPLETE else None, state=state)


def content(trial: FrozenTrial) -> dict[str, Any]:
    kept = ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs")
    found = {name: getattr(trial, name) for name in kept}
    return found | {"curve": str(sorted(trial.intermediate_values.items()))}


def test_batching_stores_what_optuna_stores(storage: RDBStorage) -> None:
    study = create_study(storage, CONFIG.model_copy(update={"name": "batching"}))
    plain = optuna.create_study(storage=storage, study_name="plain", direction="maximize")
    for each in (study, plain):
        each.sampler = optuna.samplers.TPESampler(seed=0)
        run_trials(each)
    flush(study)
    ours, theirs = (
        [content(trial) for trial in storage.get_all_trials(storage.get_study_id_from_name(name))]
        for name in ("batching", "plain")
    )
    assert ours == theirs
    assert [content(trial) for trial in study.trials] == ours
    times = [trial.datetime_complete is not None for trial in from_database(storage)]
    assert times == [True, True, True, False]


def test_batching_running_trial_is_written_by_flush_and_not_before(storage: RDBStorage) -> None:
    study = create_study(storage, CONFIG)
    trial = study.ask()
    sample(trial, CONFIG)
    flush(study)
    trial.report(0.5, step=1)
    trial.set_user_attr("device", "cpu")
    assert study.trials[0].intermediate_values == {1: 0.5}
    assert (from_database(storage)[0].intermediate_values, from_database(storage)[0].user_attrs) == ({}, {})
    assert flush(study) == []
    assert from_database(storage)[0].intermediate_values == {1: 0.5}
    assert from_database(storage)[0].user_attrs == {"device": "cpu"}


def test_batching_sees_what_others_enqueue_and_finish(storage: RDBStorage) -> None:
    study = create_study(storage, CONFIG)
    other = optuna.load_study(study_name=CONFIG.name, storage=storage)
    assert study.trials == []
    other.enqueue_trial({"model.base_channels": 16})
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
    theirs = other.ask()
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    ours = study.ask()
    other.tell(theirs, 0.5)
    assert [(trial.state, trial.value) for trial in study.trials] == [
        (TrialState.COMPLETE, 0.5), (TrialState.RUNNING, None),
    ]  # fmt: skip
    study.tell(ours, 0.75)
    assert [trial.value for trial in study.trials] == [0.5, 0.75] == [trial.value for trial in other.trials]


def test_batching_a_distribution_that_changed_is_refused(storage: RDBStorage) -> None:
    study = create_study(storage, CONFIG)
    study.ask().suggest_categorical("x", [1, 2])
    with pytest.raises(ValueError, match="dynamic value space"):
        study.ask().suggest_categorical("x", [1, 2, 3])
    assert isinstance(study._storage, BufferedStorage)


def test_batching_syncs_the_end_of_a_trial_to_the_disk_and_nothing_else(storage: RDBStorage) -> None:
    study = create_study(storage, CONFIG)
    commits: list[int] = []

    def note(connection: sqlalchemy.Connection) -> None:
        commits.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    sqlalchemy.event.listen(storage.engine, "commit", note)
    trial = study.ask()
    sample(trial, CONFIG)
    trial.report(0.5, step=1)
    flush(study)
    assert set(commits) == {1}  # NORMAL
    commits.clear()
    study.tell(trial, 0.5)
    assert 2 in commits  # FULL
    commits.clear()
    study.ask()
    assert set(commits) == {1}


def test_batching_keeps_no_details_of_finished_trials_in_memory_and_gives_them_all_the_same(
    storage: RDBStorage,
) -> None:
    study = create_study(storage, CONFIG)
    run_trials(study)
    details = [[key for key in DETAILS if key in trial.user_attrs] for trial in study.trials]
    assert details == [["history"]] * 4
    with without_details(study):
        flush(study)
        in_memory = study.get_trials(deepcopy=False)
        assert [set(DETAILS) & trial.user_attrs.keys() for trial in in_memory] == [set()] * 3 + [{"history"}]
        assert in_memory[0].user_attrs["attempt"] == 2
        stored = list(map(content, from_database(storage)))
        assert list(map(content, study.trials)) == stored
        assert content(study._storage.get_trial(in_memory[0]._trial_id)) == stored[0]
    assert "history" in study.get_trials(deepcopy=False)[0].user_attrs


def test_batching_reads_whole_trials_until_the_first_flush(storage: RDBStorage) -> None:
    run_trials(create_study(storage, CONFIG))
    study = create_study(storage, CONFIG)
    with without_details(study):
        assert "history" in study.get_trials(deepcopy=False)[0].user_attrs
        flush(study)
        assert "history" not in study.get_trials(deepcopy=False)[0].user_attrs


def test_batching_trial_that_was_read_keeps_its_details_when_the_storage_drops_them(storage: RDBStorage) -> None:
    run_trials(create_study(storage, CONFIG))
    study = create_study(storage, CONFIG)
    with without_details(study):
        best = study._storage.get_trial(study.get_trials(deepcopy=False)[0]._trial_id)  # as a resumed search shows it
        flush(study)
        assert best.user_attrs["history"] == [{"epoch": 2}]
