"""Trials read in parts are those that Optuna reads at once."""

import optuna

from fbsearch.study.database import open_storage
from fbsearch.study.queries import read_trials


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
