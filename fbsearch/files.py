"""Atomic writing of files, files that the user names, and file names."""

import hashlib
import mmap
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fbsearch.errors import ConfigError, StorageError

WAY_OUT = ". The previous file is intact. Remove the cause, and give the same command again."
STDOUT = Path("-")
# The longest file name of Linux and macOS is 255 bytes; what is added to a study's name takes up to 40.
MAX_STUDY_BYTES = 200


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


@dataclass(frozen=True)
class FileKind:
    """A kind of file that a command writes: its name in messages, and bytes that each such file contains."""

    name: str
    mark: bytes


def write_output(
    path: Path, content: str | bytes, *, kind: FileKind | None, force: bool, way_out: str = "; --output names another"
) -> None:
    """Write a file that the user names; `-` is standard output.

    Raises ConfigError if check_output does, StorageError if the file cannot be written.
    """
    if path == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(content.encode() if isinstance(content, str) else content)
        sys.stdout.buffer.flush()
        return
    check_output(path, kind=kind, force=force)
    write_whole(path, content, way_out=way_out)


def message_stream(path: Path) -> TextIO:
    """Return the stream for messages about a file that the user names: standard error if it is standard output."""
    return sys.stderr if path == STDOUT else sys.stdout


def check_output(path: Path, *, kind: FileKind | None, force: bool, way_out: str = "--force writes over it") -> None:
    """Raise ConfigError if a file that the user names may not be written over.

    A file may be if it is empty, of the kind that is about to be written, or with `force`. Links, devices and pipes
    never are: a rename would put a file in their place.
    """
    try:
        found = path.lstat()
    except OSError:  # it is absent, or write_whole says what is wrong
        return
    if path == STDOUT or stat.S_ISDIR(found.st_mode):
        return
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path}: is a link, and no link is written over; name its target, or `-` (standard output)")
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: is no regular file; name one, or `-` (standard output)")
    if not force and found.st_size and not (kind and _contains(path, kind.mark)):
        what = f", and is no {kind.name}" if kind else ""
        raise ConfigError(f"{path}: is there already{what}; {way_out}")


def _contains(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(mark) >= 0
    except OSError:  # what cannot be read is not known to be ours
        return False


def expand_home(path: str) -> Path:
    """Return a path with its `~` replaced. ConfigError where there is no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        way_out = "set $HOME, or name a path without ~ (of the image cache: $FBSEARCH_CACHE)"
        raise ConfigError(f"{path}: there is no home folder; {way_out}") from None


def file_name(study: str) -> str:
    """Return a study's name as the name of a file or folder. Names that differ give file names that differ.

    Letters, digits, `_`, `.` and `-` stay. A name with others, with a leading dot, or too long for a file system is
    shortened to what can stay, and gets a `~`, which no other name has, and a hash; so does one that ends in `.html`,
    whose folder would be the report of another. Raises ConfigError if the locale has no such file names.
    """
    kept = _file_name(study)
    try:
        os.fsencode(kept)
    except UnicodeEncodeError as error:
        what = f"{study!a}: no file can be named after it in the encoding {error.encoding}"
        raise ConfigError(f"{what}; set PYTHONUTF8=1, or a locale of UTF-8") from None
    return kept


def _file_name(study: str) -> str:
    kept = re.sub(r"[^\w.-]+", "_", study).lstrip(".")
    if kept == study and 0 < len(kept.encode()) <= MAX_STUDY_BYTES and not kept.endswith(".html"):
        return kept
    digest = hashlib.sha256(study.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    short = kept.encode()[: MAX_STUDY_BYTES - len(digest) - 1].decode("utf-8", "ignore")
    return f"{short or 'study'}~{digest}"
