"""A lock of a name within a file, which belongs to the file's device and inode: no other path leads around it.

Linux ends it with the process that holds it. It is one byte, far behind the end of the file, locked for an open file
("open file description lock"): SQLite's own locks belong to the process and are other bytes.
"""

import contextlib
import errno
import hashlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

# From here to 2**63 - 1: no database is as large.
_FIRST_BYTE = 2**62
_FLOCK = struct.Struct("@hhqqi0q")  # struct flock: type, whence, start, length, process; padded


@contextlib.contextmanager
def hold_inode_lock(path: Path, name: str) -> Iterator[None]:
    """Hold the lock of `name` in an existing file. BlockingIOError if it is held, OSError if the file cannot be opened.

    Outside Linux, and where a file system or a simulated Linux has no such locks, this does nothing.
    """
    if sys.platform != "linux":
        yield
        return
    # Never closed: with it the process would lose all locks that SQLite holds on this file.
    descriptor = os.open(path, os.O_RDWR)
    try:
        _set(descriptor, name, is_held=True)
    except OSError as error:
        if error.errno == errno.EACCES:  # POSIX allows it beside EAGAIN
            raise BlockingIOError(*error.args) from None
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _set(descriptor, name, is_held=False)


def _set(descriptor: int, name: str, *, is_held: bool) -> None:
    import fcntl  # absent on Windows

    start = _FIRST_BYTE + int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    kind = fcntl.F_WRLCK if is_held else fcntl.F_UNLCK
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, 1, 0))
