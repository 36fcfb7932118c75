"""The console of all commands. Text from files and databases cannot make a terminal do anything."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fbsearch.errors import printable_lines

# What rich and we write beyond ASCII, for terminals that know no UTF-8. The first marks text that was cut.
ASCII = str.maketrans({"\N{HORIZONTAL ELLIPSIS}": "~", "\N{PLUS-MINUS SIGN}": "+-"})


class SafeConsole(Console):
    """A console that shows control characters of texts as escapes; rich itself leaves most of them, ESC for one."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is not None:  # rich's own, such as moving the cursor
                yield segment
                continue
            text = printable_lines(segment.text)
            yield Segment(text.translate(ASCII) if self.options.ascii_only else text, segment.style)
