"""The database: its settings, what is said of a bad one, and who may hold a study. Real files, disks and processes."""

import contextlib
import os
import pickle
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from small_disk import PAGE, fill

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import StorageError
from fbsearch.study.database import hide_password, open_storage, storage_errors
from fbsearch.study.locks import claim_study, is_claimed
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, load_study
from fbsearch.study.trial_record import put_back_running

PASSWORD = "geheim"


@contextlib.contextmanager
def opened(url: str, *, create: bool = False) -> Iterator[RDBStorage]:
    storage = open_storage(url, create=create)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def add_trials(storage: RDBStorage, count: int) -> optuna.Study:
    config = StudyConfig()
    study = create_study(storage, config)
    for number in range(count):
        trial = study.ask()
        sample(trial, config)
        study.tell(trial, number / count)
    return study


def refused(url: str, *, create: bool = False) -> str:
    """What is said of a database that cannot be opened or read."""
    with pytest.raises(StorageError) as caught, storage_errors(url), opened(url, create=create) as storage:
        load_study(storage, None).get_trials()
    message = str(caught.value)
    assert PASSWORD not in message
    return message


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one study of 20 trials, closed."""
    path = tmp_path_factory.mktemp("database") / "good.db"
    with opened(f"sqlite:///{path}", create=True) as storage:
        add_trials(storage, 20)
    return path


# Settings.


def pragma(storage: RDBStorage, name: str) -> object:
    with storage.engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def test_open_storage_sqlite_settings_are_in_force(storage: RDBStorage) -> None:
    assert pragma(storage, "journal_mode") == "wal"
    assert pragma(storage, "synchronous") == 1  # NORMAL
    assert pragma(storage, "busy_timeout") == 60_000


def test_open_storage_sqlite_settings_survive_pickling(storage: RDBStorage) -> None:
    again = pickle.loads(pickle.dumps(storage))
    try:
        assert (pragma(again, "journal_mode"), pragma(again, "synchronous")) == ("wal", 1)
    finally:
        again.engine.dispose()


def test_open_storage_create_makes_the_folder_and_keeps_what_is_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a' / 'b' / 'my studies.db'}"
    with opened(url, create=True) as storage:
        add_trials(storage, 2)
    with opened(url, create=True) as storage:
        assert len(load_study(storage, "digits").trials) == 2


OPEN_AT_ONCE = (
    "import sys\n"
    "from fbsearch.study.database import open_storage\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "open_storage(sys.argv[1], create=True, retries=sys.argv[2] == 'retries').engine.dispose()\n"
)


@pytest.mark.slow
def test_open_storage_new_file_opened_by_several_at_once(tmp_path: Path) -> None:
    for number in range(3):
        command = [sys.executable, "-c", OPEN_AT_ONCE, f"sqlite:///{tmp_path / f'{number}.db'}"]
        command.append("retries" if number else "")
        with contextlib.ExitStack() as stack:
            started = [
                stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
                for _ in range(4)
            ]
            for process in started:
                assert process.stdout is not None and process.stdout.readline() == "ready\n"
            for process in started:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
        assert [process.returncode for process in started] == [0] * 4


def test_open_storage_relative_path_is_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened("sqlite:///studies/x.db", create=True):
        assert (tmp_path / "studies" / "x.db").is_file()


# SQLite files that cannot be used.


def test_open_storage_missing_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    assert refused(f"sqlite:///{path}") == (
        f"{path}: no such database; `fbsearch run` makes one, --storage names another"
    )
    assert list(tmp_path.iterdir()) == []


def test_open_storage_empty_file_is_refused_then_filled(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    assert "is empty, there is no study in it" in refused(f"sqlite:///{path}")
    assert path.stat().st_size == 0
    with opened(f"sqlite:///{path}", create=True) as storage:
        assert len(add_trials(storage, 1).trials) == 1


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("content", [b"not a database", b"PK\x03\x04" * 4000, b"\x00" * 5000])
def test_open_storage_of_another_kind_of_file_leaves_it_alone(tmp_path: Path, content: bytes, create: bool) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    assert refused(f"sqlite:///{path}", create=create) == (
        f"sqlite:///{path}: is not an SQLite database (or is corrupt); move it away, or name another"
    )
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [16, 99, PAGE, 3 * PAGE, -PAGE])
def test_open_storage_truncated_is_corrupt(tmp_path: Path, database: Path, size: int) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(database.read_bytes()[:size])
    message = refused(f"sqlite:///{path}")
    assert str(path) in message
    assert "corrupt" in message
    assert "move it away, or name another" in message


@pytest.mark.parametrize("page", [1, 5, 10])
def test_open_storage_with_an_overwritten_page_is_corrupt(tmp_path: Path, database: Path, page: int) -> None:
    path = tmp_path / "x.db"
    content = bytearray(database.read_bytes())
    content[page * PAGE : (page + 1) * PAGE] = b"\xa5" * PAGE
    path.write_bytes(content)
    assert "the database is corrupt; move it away, or name another" in refused(f"sqlite:///{path}")


def test_open_storage_of_another_program_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()
    with contextlib.suppress(StorageError), opened(f"sqlite:///{path}"):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]


def test_open_storage_of_another_optuna_says_how_to_convert_it(tmp_path: Path, database: Path) -> None:
    path = tmp_path / "x.db"
    shutil.copy(database, path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v3.0.0.a'")
        connection.commit()
    assert "written by another version of Optuna; `optuna storage upgrade` converts it" in refused(f"sqlite:///{path}")


def test_open_storage_folder_is_refused(tmp_path: Path) -> None:
    assert refused(f"sqlite:///{tmp_path}", create=True) == (
        f"{tmp_path}: is a folder; --storage sqlite:///FILE names a file"
    )


def test_open_storage_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "its folder cannot be made" in refused(f"sqlite:///{tmp_path / 'file' / 'x.db'}", create=True)


def test_open_storage_name_too_long_is_refused(tmp_path: Path) -> None:
    refused(f"sqlite:///{tmp_path / ('x' * 300)}", create=True)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///"])
def test_open_storage_in_memory_is_refused(url: str) -> None:
    assert "a database in memory keeps nothing; write sqlite:///FILE" in refused(url, create=True)


# URLs and servers.


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"mysql://me:{PASSWORD}@host/db", "'mysql'"),
        (f"postgresql+psycopg2://me:{PASSWORD}@host/db", "'postgresql+psycopg2'"),
        ("sqlite+pysqlcipher:///x.db", "'sqlite+pysqlcipher'"),
        ("redis://host", "'redis'"),
    ],
)
def test_open_storage_wrong_scheme_names_the_right_ones(url: str, named: str) -> None:
    message = refused(url, create=True)
    assert f"cannot use {named}; write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME" in message


@pytest.mark.parametrize("url", ["studies/x.db", "", "sqlite:/x.db", f"postgresql:me:{PASSWORD}@host", "C:\\x.db"])
def test_open_storage_no_url_names_the_right_ones(url: str) -> None:
    assert "no database URL; write sqlite:///FILE or postgresql+psycopg://" in refused(url, create=True)


def test_open_storage_bad_port_is_refused() -> None:
    refused(f"postgresql+psycopg://me:{PASSWORD}@host:port/db")


@pytest.fixture
def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_open_storage_unreachable_server_hides_the_password(closed_port: int, scheme: str) -> None:
    message = refused(f"{scheme}://me:{PASSWORD}@127.0.0.1:{closed_port}/studies")
    assert f"{scheme}://me:***@127.0.0.1:{closed_port}/studies: " in message
    assert "the database server cannot be reached; check host, port, name and password" in message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql+psycopg://me:{PASSWORD}@host/db", "postgresql+psycopg://me:***@host/db"),
        (
            f"postgresql://me:{PASSWORD}@host:5432/db?sslmode=require",
            "postgresql://me:***@host:5432/db?sslmode=require",
        ),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:///studies/fbsearch.db", "sqlite:///studies/fbsearch.db"),
        (f"me:{PASSWORD}@host/db", "host/db"),
        ("", ""),
    ],
)
def test_hide_password_shows_the_rest(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://host/db?user=me&password={PASSWORD}",
        f"postgresql+psycopg://me:p@{PASSWORD}@host/db",
        f"postgresql+psycopg://me:p/{PASSWORD}:x@host:port/db",
    ],
)
def test_hide_password_in_unusual_places(url: str) -> None:
    assert PASSWORD not in hide_password(url)


def test_storage_errors_optunas_assertion_is_a_full_disk() -> None:
    """What Optuna 5 raised at times in WAL mode; which write meets it cannot be chosen."""
    with pytest.raises(StorageError, match="the disk is full"), storage_errors("sqlite:///x.db"):
        raise AssertionError("Should not reach.")


# What is not the database's fault.


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("worker"), OSError(28, "No space left on device")])
def test_storage_errors_others_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, storage_errors("sqlite:///x.db"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [AssertionError("the worker has a trial"), RuntimeError("CUDA driver version is insufficient")]
)
def test_storage_errors_faults_of_the_program_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, storage_errors("sqlite:///x.db"):
        raise error
    assert caught.value is error


# Rights and room.


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Be nobody in particular: for root, every file can be written."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def guarded(database: Path) -> Iterator[Path]:
    """A copy of the database that may be read but not written, in such a folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        shutil.copy(database, path)
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        yield path
        Path(folder).chmod(0o755)


def test_open_storage_again_keeps_the_locks_of_what_is_open(tmp_path: Path) -> None:
    """Else the log goes with the last other process, and who has the database open finds it broken."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    with opened(url, create=True) as storage:
        study = add_trials(storage, 1)
        with opened(url):
            pass
        code = f"import optuna; optuna.load_study(study_name='s', storage={url!r}).set_user_attr('a', 1)"
        subprocess.run([sys.executable, "-c", code.replace("'s'", repr(study.study_name))], check=True)
        assert (tmp_path / "x.db-wal").exists()
        assert optuna.load_study(study_name=study.study_name, storage=storage).user_attrs["a"] == 1


def test_open_storage_read_only_file_says_so(guarded: Path) -> None:
    with without_rights():
        message = refused(f"sqlite:///{guarded}")
    assert str(guarded) in message
    assert "read-only" in message or "permissions" in message


def test_open_storage_read_only_folder_says_so(guarded: Path) -> None:
    with without_rights():
        message = refused(f"sqlite:///{guarded.with_name('new.db')}", create=True)
        below = refused(f"sqlite:///{guarded.with_name('new') / 'new.db'}", create=True)
    assert "permissions" in message
    assert "its folder cannot be made: Permission denied" in below


def test_open_storage_unreadable_file_says_so(guarded: Path) -> None:
    guarded.chmod(0)
    with without_rights():
        assert refused(f"sqlite:///{guarded}") == f"{guarded}: cannot be read: Permission denied"


def test_claim_study_read_only_folder_says_so(guarded: Path) -> None:
    refusal = pytest.raises(StorageError, match="this file keeps two searches apart")
    with opened(f"sqlite:///{guarded}") as storage, without_rights(), refusal, claim_study(storage, "digits"):
        pass


@pytest.mark.slow
def test_full_disk_says_so_and_goes_on_once_there_is_room(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk / 'x.db'}"
    with opened(url, create=True) as storage:
        study = add_trials(storage, 3)
        filled = fill(small_disk)
        full = r"x\.db: the disk is full; make room and give the same command again"
        with pytest.raises(StorageError, match=full), storage_errors(url):
            for _ in range(1000):
                trial = study.ask()
                sample(trial, StudyConfig())
                study.tell(trial, 0.5)
        filled.unlink()
    with storage_errors(url), opened(url, create=True) as storage:
        study = create_study(storage, StudyConfig())
        put_back_running(study)
        finished = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        assert [trial.value for trial in finished[:3]] == [0, 1 / 3, 2 / 3]
        trial = study.ask()
        sample(trial, StudyConfig())
        study.tell(trial, 0.9)
        assert study.best_value == 0.9
        assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))


def test_full_disk_new_database_says_so(small_disk: Path) -> None:
    fill(small_disk)
    assert "the disk is full" in refused(f"sqlite:///{small_disk / 'x.db'}", create=True)


def test_read_only_disk_says_so_and_goes_on_once_it_is_not(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk / 'x.db'}"
    with opened(url, create=True) as storage:
        add_trials(storage, 2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = refused(url, create=True)
    assert f"{small_disk / 'x.db'}: " in message
    assert "read-only" in message or "permissions" in message
    below = refused(f"sqlite:///{small_disk / 'new' / 'x.db'}", create=True)
    assert "its folder cannot be made: Read-only file system" in below
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with opened(url) as storage:
        assert len(load_study(storage, None).trials) == 2


# Claiming a study.


@contextlib.contextmanager
def claimed(url: str, name: str) -> Iterator[None]:
    with opened(url, create=True) as storage, claim_study(storage, name):
        yield


def test_claim_study_second_holder_is_refused_until_the_first_is_killed(
    url: str, holder: "subprocess.Popen[str]"
) -> None:
    message = (
        r"fbsearch\.db: another `fbsearch run` is searching the study 'digits'; .* start another study with --name"
    )
    with pytest.raises(StorageError, match=message), claimed(url, "digits"):
        pass
    with claimed(url, "another"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claimed(url, "digits"):
        pass


@pytest.mark.parametrize("error", [None, ValueError("x"), KeyboardInterrupt()])
def test_claim_study_is_released_however_the_block_ends(url: str, error: BaseException | None) -> None:
    with contextlib.suppress(ValueError, KeyboardInterrupt), claimed(url, "digits"):
        with pytest.raises(StorageError, match="another"), claimed(url, "digits"):
            pass
        if error:
            raise error
    with claimed(url, "digits"):
        pass


@pytest.mark.parametrize("name", ["a/b", "../x", "größer", "x" * 200])
def test_claim_study_any_name_keeps_the_lock_beside_the_database(url: str, tmp_path: Path, name: str) -> None:
    with claimed(url, name):
        locks = {path.name for path in tmp_path.iterdir() if path.suffix == ".lock"} - {"fbsearch.db.lock"}
        assert len(locks) == 1 and locks.pop().startswith("fbsearch.db-")


@pytest.mark.parametrize(("first", "second"), [("my study", "my_study"), ("数字", "图像")])
def test_claim_study_similar_names_are_different_studies(url: str, first: str, second: str) -> None:
    with claimed(url, first), claimed(url, second):
        pass


def test_is_claimed_while_another_process_has_the_study(storage: RDBStorage, holder: "subprocess.Popen[str]") -> None:
    study = create_study(storage, StudyConfig(name="digits"))
    assert is_claimed(study)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_claimed(study)
    with claim_study(storage, "digits"):
        assert is_claimed(study)
