"""The file of an SQLite database: connect to it, notice when its path leads elsewhere, and save what it holds.

SQLite goes on reading and writing a file that was deleted or replaced, and all of it is gone with the last connection.
As long as one is open it can be copied out.
"""

import contextlib
import datetime
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy

from fbsearch.errors import StorageError

# How long a connection waits for a lock while it is made.
OPEN_SECONDS = 60


@dataclass(eq=False)
class SqliteFile:
    """A database file, the same one for all connections. Connections are made in WAL mode."""

    path: Path
    busy_seconds: int
    _identity: tuple[int, int] | None = field(default=None, init=False)  # device and inode, from the first connection
    _lost: str = field(default="", init=False)

    def connect(self) -> sqlite3.Connection:
        """Return a new connection. StorageError if the path leads to another file than before, or to none."""
        if not self.is_in_place():
            raise StorageError(self._describe_loss())
        connection = sqlite3.connect(self.path, timeout=OPEN_SECONDS, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA busy_timeout={1000 * self.busy_seconds}")
        except sqlite3.Error:
            connection.close()
            raise
        self._identity = self._identity or _identify(self.path)
        return connection

    def is_in_place(self) -> bool:
        """Return True if the path still leads to the file of the first connection. Takes 2 microseconds."""
        try:
            return self._identity is None or _identify(self.path) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # SQLite says what is wrong with the disk

    def save_lost(self, engine: sqlalchemy.Engine) -> StorageError:
        """Copy the file that the path does not lead to any more into a new one beside it; return the error to raise.

        It is copied once, however often this is called.
        """
        if not self._lost:
            self._lost = self._describe_loss()
            now = datetime.datetime.now()
            saved = self.path.with_name(f"{self.path.stem}-saved-{now:%Y%m%d-%H%M%S}{self.path.suffix}")
            try:
                _copy(engine, saved)
            except (OSError, sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, StorageError) as error:
                self._lost += f"; it cannot be saved as {saved}: {error}"
            else:
                self._lost += (
                    f"; what it held is in {saved}: move that to {self.path}, or name it with --storage "
                    f"sqlite:///{saved}, and give the same command again"
                )
        return StorageError(self._lost)

    def _describe_loss(self) -> str:
        how = "replaced by another file" if self.path.exists() else "deleted or moved"
        return f"{self.path}: the database was {how} while it was in use"


def _identify(path: Path) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116 (half the time of Path.stat)
    return status.st_dev, status.st_ino


def _copy(engine: sqlalchemy.Engine, target: Path) -> None:
    """Copy the database of the engine's open connection to a new file, which is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)  # the folder may have been deleted, too
    partial = target.with_name(f".{target.name}.partial")
    source = engine.raw_connection()
    try:
        assert isinstance(source.driver_connection, sqlite3.Connection)
        with contextlib.closing(sqlite3.connect(partial)) as copied:
            source.driver_connection.backup(copied)
            copied.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        partial.replace(target)
    finally:
        source.close()
        partial.unlink(missing_ok=True)
