"""The console of all commands. Text from files and databases cannot make a terminal do anything."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fbsearch.errors import printable_lines


class SafeConsole(Console):
    """A console that shows control characters of texts as escapes; rich itself leaves most of them, ESC for one."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            is_control = segment.control is not None  # rich's own, such as moving the cursor
            yield segment if is_control else Segment(printable_lines(segment.text), segment.style)
