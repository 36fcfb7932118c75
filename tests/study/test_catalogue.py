"""The studies of a database, listed, deleted and renamed, in SQLite and in PostgreSQL."""

import json
import subprocess
from collections.abc import Iterator

import optuna
import pytest
import sqlalchemy
from made_studies import make_study
from optuna.storages import RDBStorage
from optuna.storages._rdb import models

import fbsearch
from fbsearch.config.models import DataConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError, StorageError
from fbsearch.study.catalogue import delete_study, list_studies, rename_study
from fbsearch.study.database import open_storage
from fbsearch.study.locks import claim_study
from fbsearch.study.race_result import FINAL_RACE
from fbsearch.study.study import create_study, load_study, stored_config


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[RDBStorage]:
    """An empty database of each kind."""
    name = "url" if request.param == "sqlite" else "postgres_url"
    opened = open_storage(request.getfixturevalue(name), create=True)
    yield opened
    opened.engine.dispose()


def num_rows(storage: RDBStorage) -> dict[str, int]:
    """Return the number of rows of each of Optuna's tables."""
    with storage.engine.connect() as connection:
        return {
            table.name: connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)).scalar_one()
            for table in models.BaseModel.metadata.sorted_tables
        }


def test_studies_are_listed_with_data_counts_best_and_time(database: RDBStorage) -> None:
    create_study(database, StudyConfig(name="empty", data=DataConfig(name="folder", root="my images")))
    made = make_study(database, 9)
    optuna.create_study(storage=database, study_name="foreign").add_trial(optuna.trial.create_trial(value=1.0))
    empty, digits, foreign = list_studies(database)
    assert (empty.name, empty.data, empty.best, empty.last, empty.num_complete) == (
        "empty", "folder my images", None, None, 0,
    )  # fmt: skip
    assert (digits.name, digits.data, digits.best) == ("digits", "digits", made.best_value)
    assert (digits.num_complete, digits.num_pruned, digits.num_failed, digits.num_running) == (3, 6, 0, 0)
    assert digits.last == max(trial.datetime_complete for trial in made.trials if trial.datetime_complete).astimezone()
    assert (foreign.is_ours, foreign.num_complete, foreign.best) == (False, 1, None)
    assert not any(study.is_searched for study in (empty, digits, foreign))
    assert json.loads(json.dumps(digits.as_dict()))["last"] == digits.last.isoformat(timespec="seconds")


def test_delete_leaves_nothing_of_a_study_and_all_of_others(database: RDBStorage) -> None:
    make_study(database, 6, name="kept")
    before = num_rows(database)
    make_study(database, 9)
    assert delete_study(database, "digits") == 9
    assert num_rows(database) == before
    assert len(load_study(database, None).trials) == 6
    assert len(create_study(database, StudyConfig()).trials) == 0, "its name is free"


def test_renamed_study_is_the_same_under_another_name(database: RDBStorage) -> None:
    made = make_study(database, 6)
    create_study(database, StudyConfig(name="taken"))
    rename_study(database, "digits", "ziffern ½")
    study = load_study(database, "ziffern ½")
    assert [trial.value for trial in study.trials] == [trial.value for trial in made.trials]
    assert stored_config(study) == StudyConfig(name="ziffern ½", train=stored_config(study).train)
    assert len(create_study(database, stored_config(study)).trials) == 6, "a search goes on with it"
    with pytest.raises(StorageError, match="there is a study 'taken' already"):
        rename_study(database, "ziffern ½", "taken")
    for name in ("", "x" * 201):
        with pytest.raises(ConfigError, match="1 to 200 characters"):
            rename_study(database, "ziffern ½", name)


def test_study_that_is_searched_is_left_alone(database: RDBStorage) -> None:
    make_study(database, 3)
    create_study(database, StudyConfig(name="begun"))
    with claim_study(database, "digits"), claim_study(database, "begun"):
        for change in (lambda: delete_study(database, "digits"), lambda: rename_study(database, "digits", "other")):
            with pytest.raises(StorageError, match=r"'digits' is being searched.*; end that with Ctrl-C first"):
                change()
        assert [study.is_searched for study in list_studies(database)] == [False, True]
        assert load_study(database, None).study_name == "begun", "a search that has no trial yet"
    assert load_study(database, None).study_name == "digits", "an empty study is not the newest"
    assert delete_study(database, "digits") == 3


def test_study_that_another_process_searches_is_left_alone(
    storage: RDBStorage, holder: "subprocess.Popen[str]"
) -> None:
    create_study(storage, StudyConfig())
    with pytest.raises(StorageError, match="is being searched"):
        delete_study(storage, "digits")


def test_damaged_study_is_listed_and_can_be_deleted(storage: RDBStorage) -> None:
    make_study(storage, 3)
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE study_user_attributes SET value_json = '{'"))
    (found,) = list_studies(storage)
    assert (found.data, found.num_complete) == ("damaged", 1)
    assert delete_study(storage, "digits") == 3


def test_study_with_a_damaged_race_is_listed_as_damaged(storage: RDBStorage) -> None:
    make_study(storage, 3).set_user_attr(FINAL_RACE, {"first": "all"})
    (found,) = list_studies(storage)
    assert (found.data, found.best, found.num_complete) == ("damaged", None, 1)


def test_foreign_study_is_left_alone(storage: RDBStorage) -> None:
    optuna.create_study(storage=storage, study_name="foreign")
    for change in (lambda: delete_study(storage, "foreign"), lambda: rename_study(storage, "foreign", "other")):
        with pytest.raises(StorageError, match="'foreign' was not made by fbsearch"):
            change()


def test_studies_in_python(storage: RDBStorage, url: str) -> None:
    make_study(storage, 3)
    study = fbsearch.open_study("digits", storage=url)
    study.rename("other")
    assert study.name == "other" and len(study.trials) == 3
    assert list(fbsearch.list_studies(storage=url)["name"]) == ["other"]
    study.delete()
    assert len(fbsearch.list_studies(storage=url)) == 0
