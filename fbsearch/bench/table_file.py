"""The file of a table: configurations of a space, each trained to its end, with every epoch of every run.

A table is JSON lines, compressed with xz: the first line is a TableHeader, every other one a TableRun, in the order in
which they were trained. While it is recorded the same lines stand uncompressed in a journal beside it, to which each
run is appended: whoever is killed loses the run that was being trained.
"""

import functools
import lzma
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError
from fbsearch.files import write_whole
from fbsearch.messages import DatasetInfo, FailureKind
from fbsearch.search.proposals import canonical
from fbsearch.winners.records import Accuracy, Record

SUFFIX = ".jsonl.xz"
T = TypeVar("T", bound=Record)
_XZ = b"\xfd7zXZ\x00"


class TableHeader(Record):
    """The first line. `study` is the study file, `dataset` the fields of DatasetInfo without the classes' names."""

    format: Literal["fbsearch-table/1"] = "fbsearch-table/1"
    command: str
    machine: dict[str, Any]
    dataset: dict[str, Any]
    study: dict[str, Any]


class TableRun(Record):
    """One run of a configuration. `values` are those of the searched fields, under their dotted names.

    Each list has one number an epoch. `seconds` are of training and validation, on the processor's clock for one thread
    on a CPU, else on the wall's; the first epoch has the making of the network, too. `value` is the accuracy of the
    weights that were kept; a run that failed has none, but the reason. `flops` are of one image's forward pass.
    """

    values: dict[str, Any]
    seed: int
    num_parameters: int
    flops: int
    value: Accuracy | None = None
    val_accuracy: tuple[Accuracy, ...] = ()
    val_loss: tuple[float, ...] = ()
    train_accuracy: tuple[Accuracy, ...] = ()
    train_loss: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    failure_kind: FailureKind | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Row:
    """A configuration of a table, with its runs in the order of their seeds."""

    key: str
    runs: tuple[TableRun, ...]

    @functools.cached_property
    def mean(self) -> float:
        """The mean accuracy of all runs; a failed one counts as 0."""
        return statistics.fmean(run.value or 0.0 for run in self.runs)

    def judge(self, *seen: TableRun) -> float:
        """Return the mean accuracy of the runs with other seeds than those that were seen, or of all without others."""
        others = [run.value or 0.0 for run in self.runs if run not in seen]
        return statistics.fmean(others or (run.value or 0.0 for run in seen))


@dataclass(frozen=True)
class Table:
    """A table as it is read, with its configurations by the key under which a search knows them."""

    path: Path
    header: TableHeader
    study: StudyConfig
    rows: dict[str, Row]

    @functools.cached_property
    def seconds_of_run(self) -> float:
        """The mean seconds of a whole run."""
        return statistics.fmean(sum(run.seconds) for row in self.rows.values() for run in row.runs)

    @property
    def dataset(self) -> DatasetInfo:
        """The data set; its classes' names are not in the table, and become numbers."""
        fields = self.header.dataset
        return DatasetInfo(**fields, class_names=tuple(map(str, range(fields["num_classes"]))))


def resolve_stem(config: TrialConfig, *, image_size: int) -> TrialConfig:
    """Return a configuration as a search trains it, for images of `image_size` pixels."""
    return config.model_copy(update={"model": config.model.resolve_stem(image_size)})


def config_key(config: TrialConfig, *, image_size: int) -> str:
    """Return the key of a configuration, equal for those that a search takes for the same; `image_size` in pixels."""
    return canonical(resolve_stem(config, image_size=image_size))


def journal_of(path: Path) -> Path:
    """Return the journal of a table that is being recorded. ConfigError for a table of another suffix."""
    if not path.name.endswith(SUFFIX):
        raise ConfigError(f"{path}: a table is compressed JSON lines; name a file that ends in {SUFFIX}")
    return path.with_name(path.name.removesuffix(".xz"))


def read_lines(path: Path) -> list[bytes]:
    """Return the whole lines of a table or a journal. ConfigError for a file that cannot be read.

    The last line of a recording that was killed may be a part of one, and is left out.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_XZ):
            content = lzma.decompress(content)
    except (OSError, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); `fbsearch bench table` records a table") from None
    return content.split(b"\n")[:-1]


def parse_lines(path: Path, lines: Sequence[bytes]) -> tuple[TableHeader, list[TableRun]]:
    """Return header and runs of a table. ConfigError names the line that is none of them."""
    header = _parse(path, 1, TableHeader, lines[0] if lines else b"")
    return header, [_parse(path, number, TableRun, line) for number, line in enumerate(lines[1:], start=2)]


def _parse(path: Path, number: int, kind: type[T], line: bytes) -> T:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
        raise ConfigError(f"{path}: is no table of `fbsearch bench table` (line {number}: {reason})") from None


def read_table(path: Path) -> Table:
    """Read a table, or the journal of one. ConfigError if it is none, has no run, or is of another version's space."""
    header, runs = parse_lines(path, read_lines(path))
    if not runs:
        raise ConfigError(f"{path}: has no run yet; `fbsearch bench table` records them")
    try:
        study = StudyConfig.model_validate(header.study)
    except ValidationError:
        raise ConfigError(f"{path}: its study is of another version of fbsearch; record the table anew") from None
    found: dict[str, list[TableRun]] = {}
    for run in runs:
        config = study.trial(run.values, seed=run.seed)
        found.setdefault(config_key(config, image_size=header.dataset["image_size"]), []).append(run)
    rows = {key: Row(key, tuple(sorted(own, key=lambda run: run.seed))) for key, own in found.items()}
    return Table(path, header, study, rows)


def pack(journal: Path, path: Path) -> None:
    """Write the table of a journal and remove the journal. Raises StorageError."""
    write_whole(path, lzma.compress(journal.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    journal.unlink()
