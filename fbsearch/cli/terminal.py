"""The console and the live view of all commands. Text from files and databases cannot make a terminal do anything."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

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


class ResizableLive(Live):
    """rich's live view, which is drawn on a clean screen when its terminal or its pane gets another width.

    A terminal that gets narrower breaks the lines that stand on it, before it tells the program. rich goes up by as
    many rows as it has drawn, and pieces of the old table would stay above the new one. What is on the screen moves to
    the scrollback instead, where nothing is lost.
    """

    _width: int | None = None

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width, height = self.console.size
        is_resized = self._width is not None and self._width != width and self.console.is_terminal
        self._width = width
        found = super().process_renderables(renderables)
        if not is_resized:
            return found
        scroll: list[ConsoleRenderable] = [Control.move_to(0, height - 1), Text("\n" * (height - 1)), Control.home()]
        return [*scroll, *found[1:]]  # the first one moves to where the old table began
