"""The PostgreSQL server of the tests, and a study on it: what is stored comes back, after a crash too."""

from postgres_server import PostgresServer

from fbsearch.config.study_file import StudyConfig
from fbsearch.study.database import open_storage
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, load_study


def test_postgres_keeps_a_study_through_a_crash_of_the_server(postgres: PostgresServer) -> None:
    url, config = postgres.new_database(), StudyConfig()
    storage = open_storage(url, create=True)
    study = create_study(storage, config)
    for value in (0.25, 0.5):
        trial = study.ask()
        sample(trial, config)
        study.tell(trial, value)
    storage.engine.dispose()
    postgres.restart("immediate")
    storage = open_storage(url)
    assert [trial.value for trial in load_study(storage, None).trials] == [0.25, 0.5]
    storage.engine.dispose()


def test_postgres_databases_are_separate(postgres: PostgresServer) -> None:
    storages = [open_storage(postgres.new_database(), create=True) for _ in range(2)]
    create_study(storages[0], StudyConfig())
    assert [len(storage.get_all_studies()) for storage in storages] == [1, 0]
    for storage in storages:
        storage.engine.dispose()
