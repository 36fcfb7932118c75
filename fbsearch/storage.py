"""The database: open it with the right settings, hold a study for one coordinator, say in words what is wrong.

SQLite runs in WAL mode with synchronous=NORMAL, which took 0.6x the time of its default with Optuna 5 and survives a
SIGKILL at any moment. The settings are made in a `creator`, since event hooks do not survive pickling.
"""

import contextlib
import functools
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy

from fbsearch.errors import StorageError

SQLITE_HEADER = b"SQLite format 3\x00"
_SCHEMES = "write sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


def hide_password(url: str) -> str:
    """The URL with *** for its password, wherever and however badly it is written.

    A password may hold an @ that should have been escaped, so everything up to the last one is hidden. A text that is
    no URL comes back without anything before an @.
    """
    if "://" not in url:
        return url.rpartition("@")[2]
    url = re.sub(r"(://[^/?#@:]*:).*@", r"\1***@", url)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


def open_storage(url: str, *, create: bool = False) -> optuna.storages.RDBStorage:
    """Open the database of a storage URL, sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.

    `create` makes the file and its folder where there is none. StorageError says in words what is wrong: no database,
    not one of ours, corrupt, read-only, disk full, unreachable, a scheme that is not supported.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise StorageError(f"--storage {hide_password(url)}: no database URL; {_SCHEMES}") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    kwargs: dict[str, Any] = {}
    if parsed.drivername == "sqlite":
        kwargs["creator"] = functools.partial(_connect_sqlite, str(_sqlite_file(parsed, create=create)))
    elif parsed.drivername != "postgresql+psycopg":
        raise StorageError(f"--storage {hide_password(url)}: cannot use {parsed.drivername!r}; {_SCHEMES}")
    with storage_errors(url):
        try:
            return optuna.storages.RDBStorage(parsed.render_as_string(hide_password=False), engine_kwargs=kwargs)
        except ImportError:
            raise StorageError("PostgreSQL needs its driver: pip install 'fbsearch[postgres]'") from None


def _sqlite_file(url: sqlalchemy.URL, *, create: bool) -> Path:
    if not url.database or url.database == ":memory:":
        raise StorageError("--storage sqlite://: a database in memory keeps nothing; write sqlite:///FILE")
    path = Path(url.database)
    try:
        with path.open("rb") as file:
            header = file.read(len(SQLITE_HEADER))
    except (FileNotFoundError, NotADirectoryError):
        if not create:
            raise StorageError(f"{path}: no such database; `fbsearch run` makes one, --storage names another") from None
        _make_folder_of(path)
        return path
    except IsADirectoryError:
        raise StorageError(f"{path}: is a folder; --storage sqlite:///FILE names a file") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
    if not header and not create:
        raise StorageError(f"{path}: is empty, there is no study in it; `fbsearch run` fills it")
    if header and header != SQLITE_HEADER:
        raise StorageError(f"{path}: is not an SQLite database (or is corrupt); move it away, or name another")
    if header:
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


def _connect_sqlite(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a database throws into a StorageError that says what happened and what to do."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise StorageError(f"{hide_password(url)}: {_explain(error)}") from error
    except json.JSONDecodeError as error:  # an attribute that was cut off with its file
        raise StorageError(f"{hide_password(url)}: the database is corrupt; move it away, or name another") from error
    except (AssertionError, RuntimeError) as error:
        # Optuna's own words for a full disk in WAL mode, and for tables of another version of itself.
        if not any(
            sign in str(error) for sign in ("Should not reach", "no longer compatible", "optuna storage upgrade")
        ):
            raise
        raise StorageError(f"{hide_password(url)}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
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
        "no longer compatible": "was written by another version of Optuna; `optuna storage upgrade` converts it",
        "optuna storage upgrade": "was written by another version of Optuna; `optuna storage upgrade` converts it",
    }.items():
        if sign in text:
            return meaning
    return f"the database failed: {type(chain[-1]).__name__}"


@contextlib.contextmanager
def hold_study(url: str, name: str) -> Iterator[None]:
    """Hold a study of an SQLite database for this process, until the block ends or the process dies in any way.

    Two coordinators on one SQLite study would put each other's running trials back. StorageError if it is held.
    A PostgreSQL study is not held.
    """
    parsed = sqlalchemy.make_url(url)
    if parsed.drivername != "sqlite":
        yield
        return
    assert parsed.database is not None
    # A study's name may be anything; a file's may not.
    lock = filelock.FileLock(f"{parsed.database}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StorageError(
            f"{parsed.database}: another `fbsearch run` is searching the study {name!r}; wait for it, "
            "end it with Ctrl-C, or start another study with --name"
        ) from None
    except OSError as error:
        raise StorageError(f"{lock.lock_file}: cannot be made: {error.strerror}; it keeps two searches apart") from None
    try:
        yield
    finally:
        lock.release()
