"""Access to a study: one coordinator on SQLite, any number on PostgreSQL, which together finish exactly N trials.

On SQLite a file lock beside the database keeps out a second coordinator, and on Linux so does a lock of the database's
inode, whatever path leads to it and whoever deletes the lock file. On PostgreSQL each coordinator holds a shared
advisory lock of its own name as long as it lives: its connection ends with its process, and the server's keepalive
probes end that of a machine that is gone. Trials carry the name of the coordinator that runs them. A second advisory
lock, one for all, is held while a trial is counted and taken, so that no two coordinators take the last place, or the
same waiting trial.

Advisory locks belong to a connection: a pooler that gives a connection to another client after each transaction cannot
be used.
"""

import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from fbsearch.errors import StorageError
from fbsearch.study.inode_lock import hold_inode_lock
from fbsearch.study.race_result import take_waiting
from fbsearch.study.retrying_storage import retry
from fbsearch.study.study import describe_searcher, flush
from fbsearch.study.trial_record import TrialRecord, put_back_running

# Longer than a coordinator needs to be back after the server was restarted.
SECONDS_UNTIL_GONE = 5.0
# With these the server notices within 40 s that a machine is gone, instead of after two hours.
_KEEPALIVE = {
    "tcp_keepalives_idle": 20, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 4, "tcp_user_timeout": 40_000,
}  # fmt: skip
_LOCK = 0
_HELD = (
    "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = :study AND objsubid = 2 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_HOLDERS = sqlalchemy.text(_HELD)
_OWN_LOCK = sqlalchemy.text(f"{_HELD} AND objid = :lock AND pid = pg_backend_pid()")


class StudyHeldError(StorageError):
    """Another process searches the study."""


class StudyClaim:
    """The claim of the only coordinator: a running trial is its own, or that of a coordinator that is dead."""

    is_shared = False

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock under which trials of the study are taken or put back."""
        return contextlib.nullcontext()

    def holds_lock(self) -> bool:
        """Return True if the lock is still held: it ends with the database's server."""
        return True

    def ask(self, study: optuna.Study) -> optuna.Trial:
        """Take the next trial in the coordinator's own name, with the lock held."""
        return study.ask()

    def take(self, study: optuna.Study, waiting: FrozenTrial) -> optuna.Trial | None:
        """Take a certain trial of the queue likewise; None if another process was quicker."""
        return take_waiting(study, waiting)

    def owns(self, trial: FrozenTrial) -> bool:  # noqa: ARG002
        """Return True if a running trial is this coordinator's."""
        return True

    def num_other_claims(self) -> int:
        """Return the number of other coordinators that have a claim on the study."""
        return 0

    def put_back_abandoned(self, study: optuna.Study) -> int:  # noqa: ARG002
        """Put back the trials of coordinators that are gone; return their number."""
        return 0


class SharedStudyClaim(StudyClaim):
    """The claim of one of the coordinators of a study in PostgreSQL."""

    is_shared = True

    def __init__(self, storage: optuna.storages.RDBStorage, name: str) -> None:
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._storage = storage
        self._study = _study_number(name)
        self._connection: sqlalchemy.Connection | None = None
        self._missing_since: dict[str | None, float] = {}
        self._execute(sqlalchemy.text("SELECT 1"))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        arguments = {"study": self._study, "lock": _LOCK}
        self._execute(sqlalchemy.text("SELECT pg_advisory_lock(:study, :lock)"), **arguments)
        try:
            yield
        finally:
            self._execute(sqlalchemy.text("SELECT pg_advisory_unlock(:study, :lock)"), **arguments)

    def holds_lock(self) -> bool:
        return bool(self._execute(_OWN_LOCK, study=self._study, lock=_LOCK))

    def ask(self, study: optuna.Study) -> optuna.Trial:
        return self._sign(study, study.ask())

    def take(self, study: optuna.Study, waiting: FrozenTrial) -> optuna.Trial | None:
        trial = take_waiting(study, waiting)
        return None if trial is None else self._sign(study, trial)

    def _sign(self, study: optuna.Study, trial: optuna.Trial) -> optuna.Trial:
        TrialRecord(coordinator=self.id).store(trial)
        flush(study)
        return trial

    def owns(self, trial: FrozenTrial) -> bool:
        return TrialRecord.of(trial).coordinator == self.id

    def num_other_claims(self) -> int:
        return len(self._present() - {_number(self.id)})

    def put_back_abandoned(self, study: optuna.Study) -> int:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        present, now = self._present(), time.monotonic()
        owners = {TrialRecord.of(trial).coordinator for trial in running}
        missing = {owner for owner in owners if owner is None or _number(owner) not in present}
        self._missing_since = {owner: self._missing_since.get(owner, now) for owner in missing}
        gone = {owner for owner, since in self._missing_since.items() if now - since >= SECONDS_UNTIL_GONE}
        if not gone:
            return 0
        with self.lock():  # another coordinator may have done it by then
            return put_back_running(study, lambda trial: TrialRecord.of(trial).coordinator in gone)

    def release(self) -> None:
        """Release the locks with their connection, which must not go back to the engine's pool."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _present(self) -> set[int]:
        """Return the numbers of the coordinators that hold the lock of their name."""
        return set(self._execute(_HOLDERS, study=self._study)) - {_LOCK}

    def _execute(self, statement: sqlalchemy.TextClause, **values: int) -> list[Any]:
        """Return the first column; on a new connection, with the lock of the name, if the old one is lost."""

        def execute() -> list[Any]:
            try:
                return list(self._connected().execute(statement, values).scalars())
            except sqlalchemy.exc.OperationalError:
                self.release()
                raise

        with contextlib.suppress(sqlalchemy.exc.OperationalError):
            return execute()
        return retry(self._storage, execute)

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
def claim_study(storage: optuna.storages.RDBStorage, name: str) -> Iterator[StudyClaim]:
    """Claim a study as one of its coordinators, until the block ends or the process dies in any way.

    On SQLite the claim is exclusive, because a second coordinator would put back the running trials of the first:
    StudyHeldError if another process has it. On PostgreSQL any number of coordinators share the study.
    """
    if storage.engine.dialect.name == "sqlite":
        with _file_lock(storage, name) as path, _inode_lock(storage, name, path):
            yield StudyClaim()
        return
    claim = SharedStudyClaim(storage, name)
    try:
        yield claim
    finally:
        claim.release()


def is_claimed(study: optuna.Study) -> bool:
    """Return True if a coordinator searches the study now.

    An SQLite study is locked for this look only, so that a search can begin at any time.
    """
    storage, name = study._storage._backend, study.study_name  # type: ignore[attr-defined]
    if storage.engine.dialect.name != "sqlite":
        with storage.engine.connect() as connection:
            return any(
                number != _LOCK for number in connection.execute(_HOLDERS, {"study": _study_number(name)}).scalars()
            )
    try:
        with _file_lock(storage, name):
            return False
    except StorageError:
        return True


@contextlib.contextmanager
def _file_lock(storage: optuna.storages.RDBStorage, name: str) -> Iterator[Path]:
    """Hold the file lock of an SQLite study; yield the database's path, without symbolic links."""
    path = Path(storage.engine.url.database or "").resolve()
    # The name of a study may be anything, that of a file may not.
    lock = filelock.FileLock(f"{path}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise _held_error(storage, name) from None
    except OSError as error:
        raise StorageError(
            f"{lock.lock_file}: cannot be made: {error.strerror}; this file keeps two searches apart"
        ) from None
    try:
        yield path
    finally:
        lock.release()


@contextlib.contextmanager
def _inode_lock(storage: optuna.storages.RDBStorage, name: str, path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_inode_lock(path, name))
        except BlockingIOError:
            raise _held_error(storage, name) from None
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked: {error.strerror}") from None
        yield


def _held_error(storage: optuna.storages.RDBStorage, name: str) -> StudyHeldError:
    return StudyHeldError(
        f"{storage.engine.url.database}: another `fbsearch run` is searching the study {name!r}"
        f"{describe_searcher(storage, name)}; wait for it, end it with Ctrl-C, start another study with --name, or let "
        "several machines search one study in PostgreSQL (--storage postgresql+psycopg://...)"
    )


def _number(text: str) -> int:
    """Return a number for an advisory lock, 1 to 2**31 - 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % (2**31 - 1) + 1


def _study_number(name: str) -> int:
    return _number(f"fbsearch study {name}")
