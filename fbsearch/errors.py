"""The errors that a user can cause or meet. Their messages name the way out.

    FbsearchError                  printed by the command line without a traceback, exit 1
    ├── ConfigError                a study file, an export or a model's arguments cannot be used
    ├── DataError                  a data set is absent, empty or broken
    ├── DeviceError                the requested device is absent
    │   └── DeviceLostError        this process can no longer use its GPU, and must end
    ├── StorageError               the database cannot be opened, read or written
    ├── SearchError                a search cannot go on (the same bug in one trial after another)
    └── TrialError                 one trial cannot go on; has a `kind`, never stops the search

A programmer's fault is an assertion instead.
"""

import re

from fbsearch.messages import FailureKind

# Control characters, signs that turn the direction of text around, and halves of characters.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text from a file as one line for people: a terminal obeys control characters, so they become escapes."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each as `printable` returns it."""
    return "\n".join(map(printable, text.split("\n")))


class FbsearchError(Exception):
    """Base of all errors that are shown to the user as a plain message."""


class ConfigError(FbsearchError):
    """A study file, an export or a model's arguments cannot be used."""


class DataError(FbsearchError):
    """A data set is absent, empty or broken."""


class DeviceError(FbsearchError):
    """The requested device is absent."""


class DeviceLostError(DeviceError):
    """This process can no longer use its GPU, and must end; another process can."""


class StorageError(FbsearchError):
    """The database cannot be opened, read or written."""


class SearchError(FbsearchError):
    """A search cannot go on."""


class TrialError(FbsearchError):
    """One trial cannot go on. `kind` is stored with the trial."""

    def __init__(self, message: str, *, kind: FailureKind) -> None:
        super().__init__(message)
        self.kind = kind
