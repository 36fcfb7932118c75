"""Atomic writing of files, and file names."""

import os
import re
from pathlib import Path

from fbsearch.errors import StorageError

WAY_OUT = ". The previous file is intact. Remove the cause, and give the same command again."


def write_whole(path: Path, content: str | bytes | memoryview, *, way_out: str = WAY_OUT) -> None:
    """Write a file atomically: under another name, flushed, then renamed. Create its folder. Text becomes UTF-8.

    Raises StorageError, which ends in `way_out`, or UnicodeError; the previous file then stays whole.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}{way_out}") from None


def file_name(study: str) -> str:
    """Return a study's name as the name of a file or folder, without separators and leading dots."""
    return re.sub(r"[^\w.-]+", "_", study).lstrip(".") or "study"
