"""Files that are written whole or not at all, and names for them."""

import os
import re
from pathlib import Path


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file beside it, flush it, rename it over it; its folder is made. Text becomes UTF-8.

    OSError, or UnicodeError, if that cannot be; what stood there before is then whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def file_name(study: str) -> str:
    """A study's name as that of a file or folder: no separators, no leading dots."""
    return re.sub(r"[^\w.-]+", "_", study).lstrip(".") or "study"
