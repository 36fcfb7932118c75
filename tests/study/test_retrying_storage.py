"""A database that is away for a while, for real: locked by another process, on a full disk, a stopped server."""

import contextlib
import select
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from postgres_server import PostgresServer
from small_disk import fill, mounted

from fbsearch.errors import StorageError
from fbsearch.study.database import explain, open_storage, storage_errors
from fbsearch.study.queries import best_trial, count_trials
from fbsearch.study.retrying_storage import OnRetry, RetryingStorage, call_on_retry, is_transient

EPOCHS = 5
LOCK = (
    "import sqlite3, sys, time\n"
    "connection = sqlite3.connect(sys.argv[1])\n"
    "connection.execute('BEGIN IMMEDIATE')\n"
    "print('locked', flush=True)\n"
    "time.sleep(float(sys.argv[2]))\n"
)


@contextlib.contextmanager
def retrying_storage(url: str, *, timeout_seconds: float = 60) -> Iterator[RetryingStorage]:
    storage = open_storage(url, create=True, retries=True)
    assert isinstance(storage, RetryingStorage)
    storage.timeout_seconds = timeout_seconds
    try:
        yield storage
    finally:
        storage.engine.dispose()


@contextlib.contextmanager
def retrying_study(url: str, *, timeout_seconds: float = 60) -> Iterator[optuna.Study]:
    with retrying_storage(url, timeout_seconds=timeout_seconds) as storage:
        yield optuna.create_study(study_name="s", storage=storage, direction="maximize", load_if_exists=True)


def run_trial(study: optuna.Study, value: float) -> None:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    for epoch in range(1, EPOCHS + 1):
        trial.report(value * epoch, step=epoch)
    trial.set_user_attr("history", [value] * EPOCHS)
    study.tell(trial, value)


def check_whole(url: str, *, num_trials: int) -> None:
    """Every trial once, every curve whole, nothing left over, as another process reads it."""
    storage = open_storage(url)
    trials = optuna.load_study(study_name="s", storage=storage).trials
    storage.engine.dispose()
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted(trial.value or -1.0 for trial in trials) == [float(value) for value in range(1, num_trials + 1)]
    for trial in trials:
        assert trial.intermediate_values == {epoch: (trial.value or 0) * epoch for epoch in range(1, EPOCHS + 1)}
        assert trial.user_attrs["history"] == [trial.value] * EPOCHS


def noting(seen: list[str], *, then: OnRetry = lambda error: True) -> OnRetry:
    def on_wait(error: BaseException) -> bool:
        seen.append(explain(error).partition(";")[0])
        return then(error)

    return on_wait


@contextlib.contextmanager
def locked_for(path: Path, seconds: float) -> Iterator[None]:
    """The SQLite file locked by another process."""
    process = subprocess.Popen([sys.executable, "-c", LOCK, str(path), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"locked\n"
    yield
    process.stdout.close()
    process.wait()


@pytest.mark.slow
def test_retrying_study_locked_by_another_process_waits_and_writes_everything(url: str, tmp_path: Path) -> None:
    seen: list[str] = []
    with retrying_study(url) as study, call_on_retry(study, noting(seen)):
        run_trial(study, 1)
        with locked_for(tmp_path / "fbsearch.db", 2.5):  # longer than SQLite itself waits
            run_trial(study, 2)
    assert set(seen) == {"another program holds the database locked"}
    check_whole(url, num_trials=2)


def test_retrying_study_on_a_full_disk_waits_for_room(tmp_path: Path) -> None:
    url, seen = f"sqlite:///{tmp_path / 'disk' / 'x.db'}", list[str]()
    # SQLite's write-ahead log grows to 4 MB before it is made smaller.
    with mounted(tmp_path / "disk", size="8m") as disk, retrying_study(url) as study:
        run_trial(study, 1)
        filled = fill(disk)

        def make_room(error: BaseException) -> bool:
            if len(seen) == 3:
                filled.unlink()
            return True

        with call_on_retry(study, noting(seen, then=make_room)):
            for value in range(2, 12):
                run_trial(study, value)
        assert seen == ["the disk is full"] * 3
        check_whole(url, num_trials=11)


@pytest.mark.slow
def test_retrying_study_stops_with_the_error_when_the_time_is_over_and_at_once_after(url: str, tmp_path: Path) -> None:
    seen: list[str] = []
    with retrying_study(url, timeout_seconds=0.5) as study, call_on_retry(study, noting(seen)):
        with locked_for(tmp_path / "fbsearch.db", 4):
            for _ in range(2):
                with pytest.raises(StorageError, match="holds the database locked"), storage_errors(url):
                    study.set_user_attr("key", 1)
            assert len(seen) <= 3
        study.set_user_attr("key", 2)
        assert study.user_attrs["key"] == 2


def test_retrying_study_ends_its_wait_when_told_so(url: str, tmp_path: Path) -> None:
    with (
        retrying_study(url) as study,
        call_on_retry(study, lambda error: False),
        locked_for(tmp_path / "fbsearch.db", 2),
        pytest.raises(optuna.exceptions.StorageInternalError),
    ):
        study.set_user_attr("key", 1)


def test_is_transient_of_a_broken_database_and_of_bugs() -> None:
    def error_of(statement: str) -> BaseException:
        engine = sqlalchemy.create_engine("sqlite://")
        with pytest.raises(sqlalchemy.exc.SQLAlchemyError) as caught, engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()
        return caught.value

    assert not is_transient(error_of("SELECT * FROM absent"))
    assert not is_transient(sqlalchemy.exc.DatabaseError("", {}, sqlite3.DatabaseError("file is not a database")))
    assert not is_transient(AssertionError("the worker has a trial"))
    assert is_transient(AssertionError("Should not reach."))


def test_retrying_study_waits_for_a_postgres_server_that_is_stopped_and_started(postgres: PostgresServer) -> None:
    url, seen = postgres.new_database(), list[str]()
    with retrying_study(url) as study:
        run_trial(study, 1)
        postgres.stop()

        def start_at_the_third(error: BaseException) -> bool:
            if len(seen) == 3:
                postgres.start()
            return True

        with call_on_retry(study, noting(seen, then=start_at_the_third)):
            for value in range(2, 5):
                run_trial(study, value)
            postgres.restart("immediate")
            run_trial(study, 5)
    assert "the database server cannot be reached" in seen
    check_whole(url, num_trials=5)


def test_retrying_study_counts_and_finds_its_best_when_the_server_was_restarted(postgres: PostgresServer) -> None:
    url, seen = postgres.new_database(), list[str]()
    with retrying_study(url) as study, call_on_retry(study, noting(seen)):
        run_trial(study, 1)
        postgres.restart("immediate")
        assert count_trials(study)[TrialState.COMPLETE] == 1
        postgres.restart("immediate")
        best = best_trial(study)
        assert best is not None and best.number == 0
    assert len(seen) >= 2


def test_retrying_study_reads_again_what_was_cut_in_the_middle(postgres: PostgresServer) -> None:
    """Optuna takes the cut for a query that was too long, and asks again on the connection that is no more."""
    url, seen, cut = postgres.new_database(), list[str](), list[str]()
    sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    server = sqlalchemy.create_engine(postgres.url, isolation_level="AUTOCOMMIT")

    def terminate(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "FROM trials" in statement and not cut:
            cut.append(statement)
            with server.connect() as connection:
                connection.exec_driver_sql(sessions, (sqlalchemy.make_url(url).database,))

    with retrying_study(url) as study, call_on_retry(study, noting(seen)):
        run_trial(study, 1)
        backend = study._storage._backend  # type: ignore[attr-defined]
        sqlalchemy.event.listen(backend.engine, "before_cursor_execute", terminate)
        assert [trial.value for trial in backend.get_all_trials(study._study_id)] == [1]
    server.dispose()
    assert cut and seen


class CuttingProxy:
    """Stands between a client and a server and cuts the connection after every third COMMIT, before its answer."""

    def __init__(self, port: int) -> None:
        self._server_port, self._listener = port, socket.create_server(("127.0.0.1", 0))
        self.port, self.num_commits, self.num_cuts = self._listener.getsockname()[1], 0, 0
        self.cuts = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if self.cuts and source is client and b"COMMIT" in data:
                        self.num_commits += 1
                        if self.num_commits % 3 == 0:
                            server.recv(65536)  # it is done, and nobody is told
                            self.num_cuts += 1
                            return

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_retrying_study_does_nothing_twice_where_only_the_answer_was_lost(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    proxy = CuttingProxy(postgres.port)
    with retrying_study(url) as study:
        run_trial(study, 1)
    with retrying_study(url.replace(f":{postgres.port}/", f":{proxy.port}/")) as study:
        proxy.cuts = True
        for value in range(2, 12):
            if value % 2:  # of those that wait in the queue, each must be taken, and once
                study.enqueue_trial({"x": value / 20})
            run_trial(study, value)
    proxy.close()
    assert proxy.num_cuts > 20
    check_whole(url, num_trials=11)
