"""Which coordinators search a study: one on SQLite, any number on PostgreSQL, which together finish exactly N trials.

Each holds an advisory lock of PostgreSQL in its own name as long as it lives: its connection ends with its process, and
the server's keepalive probes end that of a machine that is gone. Trials carry the name of the coordinator that runs
them (user attribute `coordinator`). A second lock, one for all, is held while a trial is counted out and taken, so that
no two take the last place, or the same waiting trial.

Locks belong to a connection: a pooler that hands a connection to somebody else after each transaction cannot be used.
"""

import contextlib
import datetime
import hashlib
import json
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Iterator
from typing import Any, Protocol

import filelock
import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from fbsearch.errors import StorageError
from fbsearch.study.retrying_storage import patiently
from fbsearch.study.study import flush
from fbsearch.study.trial_record import put_back_running

# Longer than a coordinator needs to be back after the server was restarted.
SECONDS_UNTIL_GONE = 5.0
# With these the server notices within 40 s that a machine is gone, instead of after two hours.
_KEEPALIVE = {
    "tcp_keepalives_idle": 20, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 4, "tcp_user_timeout": 40_000,
}  # fmt: skip
_TURN = 0
_HOLDERS = sqlalchemy.text(
    "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :study AND objsubid = 2 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

_OWN_TURN = sqlalchemy.text(
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :study AND objid = :turn "
    "AND objsubid = 2 AND pid = pg_backend_pid()"
)


class Crew(Protocol):
    """The coordinators of a study, as one of them sees them."""

    is_shared: bool

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """The only time in which to take or put back trials of the study."""

    def has_turn(self) -> bool:
        """Whether the turn is still this coordinator's: it ends with the database's server."""

    def ask(self, study: optuna.Study) -> optuna.Trial:
        """Take the next trial, in the coordinator's own name; only in its turn."""

    def is_own(self, trial: FrozenTrial) -> bool:
        """Whether a running trial is this coordinator's."""

    def num_others(self) -> int:
        """How many others search the study now."""

    def put_back_orphans(self, study: optuna.Study) -> int:
        """Put back the trials of coordinators that are gone; how many there were."""


class Alone:
    """The one coordinator of a study, kept so by a lock (`hold_study`): what runs is its own, or a dead one's."""

    is_shared = False

    def turn(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def has_turn(self) -> bool:
        return True

    def ask(self, study: optuna.Study) -> optuna.Trial:
        return study.ask()

    def is_own(self, _trial: FrozenTrial) -> bool:
        return True

    def num_others(self) -> int:
        return 0

    def put_back_orphans(self, _study: optuna.Study) -> int:
        return 0


class PostgresCrew:
    """One of the coordinators of a study in PostgreSQL."""

    is_shared = True

    def __init__(self, storage: optuna.storages.RDBStorage, name: str) -> None:
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._storage = storage
        self._study = _number(f"fbsearch study {name}")
        self._connection: sqlalchemy.Connection | None = None
        self._missing_since: dict[str | None, float] = {}
        self._execute(sqlalchemy.text("SELECT 1"))

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        arguments = {"study": self._study, "turn": _TURN}
        self._execute(sqlalchemy.text("SELECT pg_advisory_lock(:study, :turn)"), **arguments)
        try:
            yield
        finally:
            self._execute(sqlalchemy.text("SELECT pg_advisory_unlock(:study, :turn)"), **arguments)

    def has_turn(self) -> bool:
        return bool(self._execute(_OWN_TURN, study=self._study, turn=_TURN))

    def ask(self, study: optuna.Study) -> optuna.Trial:
        trial = study.ask()
        trial.set_user_attr("coordinator", self.id)
        flush(study)
        return trial

    def is_own(self, trial: FrozenTrial) -> bool:
        return trial.user_attrs.get("coordinator") == self.id

    def num_others(self) -> int:
        return len(self._present() - {_number(self.id)})

    def put_back_orphans(self, study: optuna.Study) -> int:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        present, now = self._present(), time.monotonic()
        owners = {trial.user_attrs.get("coordinator") for trial in running}
        missing = {owner for owner in owners if owner is None or _number(owner) not in present}
        self._missing_since = {owner: self._missing_since.get(owner, now) for owner in missing}
        gone = {owner for owner, since in self._missing_since.items() if now - since >= SECONDS_UNTIL_GONE}
        if not gone:
            return 0
        with self.turn():  # another coordinator may have done it by then
            return put_back_running(study, lambda trial: trial.user_attrs.get("coordinator") in gone)

    def leave(self) -> None:
        """Give up the locks with their connection, which must not go back to the engine's pool."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _present(self) -> set[int]:
        """The numbers of the coordinators that hold the lock of their name."""
        return set(self._execute(_HOLDERS, study=self._study)) - {_TURN}

    def _execute(self, statement: sqlalchemy.TextClause, **values: int) -> list[Any]:
        """The first column; on a new connection, with the lock of the name, where the old one is lost."""

        def execute() -> list[Any]:
            try:
                return list(self._connected().execute(statement, values).scalars())
            except sqlalchemy.exc.OperationalError:
                self.leave()
                raise

        with contextlib.suppress(sqlalchemy.exc.OperationalError):
            return execute()
        return patiently(self._storage, execute)

    def _connected(self) -> sqlalchemy.Connection:
        if self._connection is None:
            connection = self._storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            for name, value in _KEEPALIVE.items():
                connection.exec_driver_sql(f"SET {name} = {value}")
            # Shared: the server may still know the connection that was lost, with the same lock.
            lock = sqlalchemy.text("SELECT pg_advisory_lock_shared(:study, :own)")
            connection.execute(lock, {"study": self._study, "own": _number(self.id)})
            self._connection = connection
        return self._connection


@contextlib.contextmanager
def join_study(storage: optuna.storages.RDBStorage, name: str) -> Iterator[Crew]:
    """Be one of a study's coordinators until the block ends, or the process dies in any way."""
    if storage.engine.dialect.name != "postgresql":
        yield Alone()
        return
    crew = PostgresCrew(storage, name)
    try:
        yield crew
    finally:
        crew.leave()


def _number(text: str) -> int:
    """A number for an advisory lock: 1 to 2**31 - 1, and 0 is the turn."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % (2**31 - 1) + 1


def describe_process() -> dict[str, str | int]:
    """Who this process is, for a study that it holds."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.datetime.now():%Y-%m-%d %H:%M}"}


def _describe_holder(path: str, name: str) -> str:
    """Who holds a study of an SQLite file, as its coordinator has written it; nothing if it has not yet."""
    query = (
        "SELECT value_json FROM studies JOIN study_user_attributes USING (study_id) "
        "WHERE study_name = ? AND key = 'coordinator'"
    )
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (text,) = connection.execute(query, (name,)).fetchone() or ("null",)
    except sqlite3.Error:  # it is just being made
        return ""
    holder = json.loads(text)
    return "" if holder is None else " (process {pid} on {host}, since {since})".format(**holder)


@contextlib.contextmanager
def hold_study(url: str, name: str) -> Iterator[None]:
    """Hold a study of an SQLite database for this process, until the block ends or the process dies in any way.

    Two coordinators on one SQLite study would put each other's running trials back. StorageError if it is held.
    A PostgreSQL study is not held: any number may search it (`cooperation`).
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
            f"{parsed.database}: another `fbsearch run` is searching the study {name!r}"
            f"{_describe_holder(parsed.database, name)}; wait for it, end it with Ctrl-C, start another study with "
            "--name, or let several machines search one study in PostgreSQL (--storage postgresql+psycopg://...)"
        ) from None
    except OSError as error:
        raise StorageError(f"{lock.lock_file}: cannot be made: {error.strerror}; it keeps two searches apart") from None
    try:
        yield
    finally:
        lock.release()
