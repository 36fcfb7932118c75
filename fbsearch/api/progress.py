"""The progress of a search that was started from Python: the table of `fbsearch run`, in a notebook as HTML."""

import contextlib
import importlib
import io
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from rich.console import Console, RenderableType

from fbsearch.cli.live import LiveTable, make_view
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import Event
from fbsearch.search.state import SearchState

View: TypeAlias = Callable[[SearchState, Event | None], None]

SECONDS_BETWEEN_UPDATES = 0.5
NOTEBOOK_WIDTH = 110
PRE = '<pre style="margin:0;line-height:1.35;overflow-x:auto">{code}</pre>'


def make_progress(config: StudyConfig, *, shown: bool) -> contextlib.AbstractContextManager[View]:
    """Return what shows the progress of a search; nothing is shown without `shown`."""
    console = SafeConsole(stderr=True)
    if not shown:
        return contextlib.nullcontext(lambda _state, _event: None)
    if console.is_jupyter:
        return NotebookTable(config)
    return make_view(console, config)


class NotebookTable(contextlib.AbstractContextManager["NotebookTable"]):
    """The live table of a search in the output of a notebook's cell."""

    def __init__(self, config: StudyConfig) -> None:
        ipython: Any = importlib.import_module("IPython.display")  # no dependency: there is one in a notebook
        self._html = ipython.HTML
        self._lines = io.StringIO()
        self._table = LiveTable(SafeConsole(file=self._lines, width=NOTEBOOK_WIDTH, force_jupyter=False), config)
        self._handle: Any = ipython.display(ipython.HTML(""), display_id=True)
        self._updated = 0.0

    def __call__(self, state: SearchState, event: Event | None) -> None:
        self._table(state, event)
        if time.monotonic() - self._updated >= SECONDS_BETWEEN_UPDATES:
            self._update()

    def __exit__(self, *_error: object) -> None:
        self._update()

    def _update(self) -> None:
        """Show the table below the lines that were printed above it."""
        self._updated = time.monotonic()
        lines = self._lines.getvalue().rstrip()
        self._handle.update(self._html(to_html(*[lines] * bool(lines), self._table.get_renderable())))


def to_html(*parts: RenderableType) -> str:
    """Return what rich would print as HTML, without styles of its own but colours."""
    console = Console(file=io.StringIO(), record=True, width=NOTEBOOK_WIDTH, force_jupyter=False)
    for part in parts:
        console.print(part, highlight=False, markup=False)
    return console.export_html(inline_styles=True, code_format=PRE)
