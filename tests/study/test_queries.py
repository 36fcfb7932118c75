"""Trials read in parts are those that Optuna reads at once; a study in memory is counted as a stored one."""

import optuna
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import TrialState, create_trial

from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import FailureKind
from fbsearch.study.database import open_storage
from fbsearch.study.queries import best_trial, count_trials, read_trials
from fbsearch.study.study import create_study, flush, without_details
from fbsearch.study.trial_record import Failure, TrialRecord


def test_read_trials_in_parts_gives_what_optuna_gives(url: str) -> None:
    opened = [open_storage(url, create=True), open_storage(url)]
    study = optuna.create_study(storage=opened[0], study_name="s")
    for number in range(8):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 1)
        if number not in (2, 7):
            study.tell(trial, number / 10)
    reader = optuna.load_study(storage=opened[1], study_name="s")
    read_trials(reader, trials_a_read=3)
    assert reader.get_trials() == study.get_trials()
    study.tell(2, 0.9)
    study.tell(study.ask(), 0.3)
    read_trials(reader, trials_a_read=3)
    assert reader.get_trials() == study.get_trials()
    assert [t.state.name for t in reader.trials].count("RUNNING") == 1
    for storage in opened:
        storage.engine.dispose()


def test_read_trials_of_a_study_in_memory_does_nothing() -> None:
    study = optuna.create_study()
    study.tell(study.ask(), 1.0)
    read_trials(study)
    assert len(study.trials) == 1


def test_count_and_best_of_a_study_in_memory_are_those_of_a_stored_one(storage: RDBStorage) -> None:
    stored, memory = (create_study(place, StudyConfig()) for place in (storage, InMemoryStorage()))
    failure = Failure(kind=FailureKind.ERROR, message="a bug")
    interrupted = Failure(kind=FailureKind.INTERRUPTED, message="stopped")
    made = [
        (TrialState.COMPLETE, 0.5, TrialRecord(num_parameters=9)),
        (TrialState.COMPLETE, 0.9, TrialRecord(num_parameters=9)),
        (TrialState.COMPLETE, 0.9, TrialRecord(num_parameters=5)),
        (TrialState.COMPLETE, 0.5, TrialRecord(duplicate_of=0)),
        (TrialState.PRUNED, None, TrialRecord()),
        (TrialState.PRUNED, None, TrialRecord(failure=failure)),
        (TrialState.FAIL, None, TrialRecord(failure=failure)),
        (TrialState.FAIL, None, TrialRecord(failure=interrupted)),
        (TrialState.FAIL, None, TrialRecord()),
    ]
    for study in (stored, memory):
        assert best_trial(study) is None and count_trials(study) == {}
        study.add_trials(
            create_trial(state=state, value=value, user_attrs=record.attributes()) for state, value, record in made
        )
    for study in (stored, memory):
        assert (best := best_trial(study)) is not None and best.number == 2
        assert count_trials(study)[TrialState.FAIL] == 2
    assert count_trials(memory) == count_trials(stored)
    with without_details(memory):
        assert flush(memory) == []
