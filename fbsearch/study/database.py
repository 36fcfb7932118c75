"""The database: open it with the right settings, and explain its errors.

SQLite runs in WAL mode with synchronous=NORMAL, which took 0.6x the time of its default with Optuna 5 and survives a
SIGKILL at any moment; BufferedStorage syncs the end of a trial, which then survives a loss of power, too. A `creator`
(`SqliteFile.connect`) makes the settings, because event hooks do not survive pickling.
"""

import contextlib
import functools
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy

from fbsearch.errors import StorageError
from fbsearch.study.retrying_storage import RetryingStorage
from fbsearch.study.sqlite_file import OPEN_SECONDS, SqliteFile

# SQLite's own timeout for a lock. A coordinator looks after its workers between two retries.
BUSY_SECONDS, RETRY_BUSY_SECONDS = OPEN_SECONDS, 1
# A host that disappears is noticed after 20 s; with the system's defaults it takes hours.
RETRY_POSTGRES = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 20_000}
_SCHEMES = "write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


def hide_password(url: str) -> str:
    """Return the URL with *** for its password, even if it is badly written.

    A password may hold an @ that should have been escaped: everything up to the last @ is hidden. A text that is not a
    URL loses everything before its last @.
    """
    if "://" not in url:
        return url.rpartition("@")[2]
    url = re.sub(r"(://[^/?#@:]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


def open_storage(url: str, *, create: bool = False, retries: bool = False) -> optuna.storages.RDBStorage:
    """Open the database of a storage URL, sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.

    `create` makes the file and its folder if they do not exist. `retries`: once open, operations are tried again while
    the database is locked, full or away (RetryingStorage). StorageError explains what is wrong: no database, another
    program's, corrupt, read-only, disk full, unreachable, a scheme that is not supported.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise StorageError(f"--storage {hide_password(url)}: no database URL; {_SCHEMES}") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    kwargs: dict[str, Any] = {}
    file = None
    if parsed.drivername == "sqlite":
        path = _sqlite_path(parsed, create=create)
        file = SqliteFile(path, busy_seconds=RETRY_BUSY_SECONDS if retries else BUSY_SECONDS, holds_one=retries)
        kwargs["creator"] = file.connect
    elif retries and parsed.drivername == "postgresql+psycopg":
        kwargs["connect_args"] = RETRY_POSTGRES
    elif parsed.drivername != "postgresql+psycopg":
        raise StorageError(f"--storage {hide_password(url)}: cannot use {parsed.drivername!r}; {_SCHEMES}")
    with storage_errors(url):
        try:
            make = functools.partial(RetryingStorage, file=file) if retries else optuna.storages.RDBStorage
            with _table_lock(parsed):
                return make(parsed.render_as_string(hide_password=False), engine_kwargs=kwargs)
        except ImportError:
            raise StorageError("PostgreSQL needs its driver: pip install 'fbsearch[postgres]'") from None


def close_connections(study: optuna.Study) -> None:
    """Close this thread's connections to a study's database, whose file may then be removed."""
    study._storage.remove_session()


@contextlib.contextmanager
def _table_lock(url: sqlalchemy.URL) -> Iterator[None]:
    """Lock out other processes while Optuna makes its tables, which it does when it opens a database.

    Of several processes that made them at the same time all but one would fail.
    """
    if url.drivername == "sqlite":
        assert url.database is not None, "_sqlite_path has refused it"
        path = Path(url.database)
        with contextlib.nullcontext() if _has_tables(path) else _table_file_lock(path):
            yield
        return
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # the lock ends with it
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(hashtext('fbsearch tables'))"))
        yield


@contextlib.contextmanager
def _table_file_lock(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(f"{path}.lock", timeout=BUSY_SECONDS)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StorageError(f"{lock.lock_file}: another process has held it for {BUSY_SECONDS} s; end it") from None
    except OSError:
        pass  # in a folder that is read-only, or full, Optuna can make no tables either, and says why
    try:
        yield
    finally:
        lock.release()


def _has_tables(path: Path) -> bool:
    """Return True if Optuna has made all its tables in an SQLite file: the one that it fills last has a row."""
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT 1 FROM alembic_version").fetchone() is not None
    except sqlite3.OperationalError:  # not made yet; Optuna reports any other error when it opens the file
        return False


def _sqlite_path(url: sqlalchemy.URL, *, create: bool) -> Path:
    if not url.database or url.database == ":memory:":
        raise StorageError("--storage sqlite://: a database in memory keeps nothing; write sqlite:///FILE")
    path = Path(url.database)
    # Only SQLite may open the file: closing a file drops all locks that this process holds on it, and another process
    # then removes SQLite's write-ahead log under a connection that is open here.
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not create:
            raise StorageError(f"{path}: no such database; `fbsearch run` makes one, --storage names another") from None
        _make_folder_of(path)
        return path
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
    if path.is_dir():
        raise StorageError(f"{path}: is a folder; --storage sqlite:///FILE names a file")
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise StorageError(f"{path}: cannot be read: Permission denied")
    if status.st_nlink > 1 and create:  # a search; readers may look into a backup
        raise StorageError(
            f"{path}: the file has {status.st_nlink} names (hard links), and SQLite keeps a log beside each: writing "
            "under two of them would destroy it; remove the other name, or make this a file of its own with `cp`"
        )
    if not status.st_size and not create:
        raise StorageError(f"{path}: is empty, there is no study in it; `fbsearch run` fills it")
    if status.st_size:
        with storage_errors(url.render_as_string()), contextlib.closing(sqlite3.connect(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "studies" not in tables:
            raise StorageError(f"{path}: is another program's database, not a study's; --storage names another")
    return path


def _make_folder_of(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: its folder cannot be made: {error.strerror}") from None


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn the errors of a database into a StorageError that says what happened and what to do."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise StorageError(f"{hide_password(url)}: {explain(error)}") from error
    except json.JSONDecodeError as error:  # an attribute that was cut off with its file
        raise StorageError(f"{hide_password(url)}: the database is corrupt; move it away, or name another") from error
    except (AssertionError, RuntimeError) as error:
        # Optuna's own words for a full disk in WAL mode, and for tables of another version of itself.
        if not any(
            sign in str(error) for sign in ("Should not reach", "no longer compatible", "optuna storage upgrade")
        ):
            raise
        raise StorageError(f"{hide_password(url)}: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """Return the meaning of a database's error, and after a semicolon what to do."""
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # type: ignore[arg-type]
    text = " | ".join(str(item) for item in chain)
    for sign, meaning in {
        "disk is full": "the disk is full; make room and give the same command again, nothing finished is lost",
        "Should not reach": "the disk is full; make room and give the same command again, nothing finished is lost",
        "readonly database": "the database is read-only; make it writable, or name another with --storage",
        "unable to open": "the database file cannot be opened; check the folder's and the file's permissions",
        "not a database": "is not an SQLite database (or is corrupt); move it away, or name another",
        "malformed": "the database is corrupt; move it away, or name another",
        "no such table": "the database is corrupt or not fbsearch's; move it away, or name another",
        "database is locked": "another program holds the database locked; wait for it or end it",
        "connection failed": "the database server cannot be reached; check host, port, name and password",
        "could not connect": "the database server cannot be reached; check host, port, name and password",
        "server closed the connection": "the connection to the database server was cut; is it running?",
        "terminating connection": "the database server is being stopped; start it again",
        "database system is": "the database server is being started or stopped; wait for it",
        "no longer compatible": "was written by another version of Optuna; `optuna storage upgrade` converts it",
        "optuna storage upgrade": "was written by another version of Optuna; `optuna storage upgrade` converts it",
    }.items():
        if sign in text:
            return meaning
    return f"the database failed: {type(chain[-1]).__name__}"
