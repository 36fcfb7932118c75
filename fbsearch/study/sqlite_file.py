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

from fbsearch.errors import StorageError

# How long a connection waits for a lock while it is made.
OPEN_SECONDS = 60


@dataclass(eq=False)
class SqliteFile:
    """A database file, the same one for all connections. Connections are made in WAL mode.

    With `holds_one`, one more connection is opened with the first, for nobody else to use: what the file holds can be
    saved from then on. A pool drops its last connection where a rollback fails, on a full disk for one.
    """

    path: Path
    busy_seconds: int
    holds_one: bool = False
    _identity: tuple[int, int] | None = field(default=None, init=False)  # device and inode, from the first connection
    _held: sqlite3.Connection | None = field(default=None, init=False)
    _lost: str = field(default="", init=False)

    def connect(self) -> sqlite3.Connection:
        """Return a new connection. StorageError if the path leads to another file than before, or to none."""
        if not self.is_in_place():
            raise StorageError(self._describe_loss()) if self._held is None else self.save_lost()
        connection = self._open()
        self._identity = self._identity or _identify(self.path)
        if self.holds_one and self._held is None:
            self._held = self._open()
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=OPEN_SECONDS, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA busy_timeout={1000 * self.busy_seconds}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def is_in_place(self) -> bool:
        """Return True if the path still leads to the file of the first connection. Takes 2 microseconds."""
        try:
            return self._identity is None or _identify(self.path) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # SQLite says what is wrong with the disk

    def save_lost(self) -> StorageError:
        """Copy the held file, which the path does not lead to any more, to one beside it; return the error to raise.

        It is copied once, however often this is called.
        """
        assert self._held is not None, "`holds_one` has opened it"
        if not self._lost:
            self._lost = self._describe_loss()
            now = datetime.datetime.now()
            saved = self.path.with_name(f"{self.path.stem}-saved-{now:%Y%m%d-%H%M%S}{self.path.suffix}")
            try:
                _copy(self._held, saved)
            except (OSError, sqlite3.Error) as error:
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


def _copy(source: sqlite3.Connection, target: Path) -> None:
    """Copy an open database to a new file, which is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)  # the folder may have been deleted, too
    partial = target.with_name(f".{target.name}.partial")
    try:
        with contextlib.closing(sqlite3.connect(partial)) as copied:
            source.backup(copied)
            copied.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
