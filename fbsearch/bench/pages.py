"""The folder of a benchmark's results: a Markdown page and its figure, written over nothing of another kind."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fbsearch.files import FileKind, check_output, write_output
from fbsearch.pictures.architecture import DRAWING


@dataclass(frozen=True)
class Page:
    """The page of a benchmark, README.md, which has the line `mark` in it, and the name of its figure beside it."""

    figure_name: str
    mark: str
    what: str
    name: str = "README.md"

    @property
    def kind(self) -> FileKind:
        """Return the kind of file that the page may replace."""
        return FileKind(self.what, self.mark.encode())

    def check(self, folder: Path) -> None:
        """Raise ConfigError where the page or its figure would be written over a file of another kind."""
        for name, kind in ((self.name, self.kind), (self.figure_name, DRAWING)):
            check_output(folder / name, kind=kind, force=False, way_out="--output names another folder")

    def write(self, folder: Path, lines: Iterable[str], figure: str) -> None:
        """Write the page and its figure, an SVG. Raises ConfigError as `check` does, StorageError."""
        write_output(folder / self.figure_name, figure, kind=DRAWING, force=False)
        write_output(folder / self.name, "\n".join(lines) + "\n", kind=self.kind, force=False)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
