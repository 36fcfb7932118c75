"""SVG chart of a race: accuracy over seconds of training, at the end of each budget and along every run."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fbsearch.pictures.svg import FAINT, INK, RULE, Canvas
from fbsearch.pictures.training_charts import nice_ticks

# Dark enough for thin lines on white, and of different lightness.
COLORS = (
    "#e6550d", "#2171b5", "#2a9d8f", "#8a63d2", "#d6336c", "#7f5539", "#4d4d4d", "#b59f00", "#17a2c4", "#6a994e",
)  # fmt: skip
PANEL_WIDTH, PANEL_HEIGHT = 370.0, 250.0


@dataclass(frozen=True)
class Line:
    """One entrant: (seconds, mean, deviation or None) at each budget, and the curves of each budget's runs.

    Accuracies are in [0, 1]; a curve is a sequence of (seconds, accuracy).
    """

    name: str
    ends: Sequence[tuple[float, float, float | None]]
    curves: Mapping[float, Sequence[Sequence[tuple[float, float]]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Panel:
    """A rectangle of the chart and the ranges it shows; seconds on a scale of logarithms or from 0."""

    left: float
    top: float
    seconds: tuple[float, float]
    accuracies: tuple[float, float]
    is_logarithmic: bool = False

    def place(self, seconds: float, accuracy: float) -> tuple[float, float]:
        low, high = self.seconds
        if self.is_logarithmic:
            low, high, seconds = math.log(low), math.log(high), math.log(seconds)
        bottom, top = self.accuracies
        x = self.left + PANEL_WIDTH * (seconds - low) / (high - low)
        return x, self.top + PANEL_HEIGHT * (top - accuracy) / (top - bottom)


def draw_race(lines: Sequence[Line], *, title: str, caption: str) -> str:
    """Return the SVG: one panel with the ends of all budgets, and one with the runs of each budget."""
    canvas = Canvas()
    canvas.text(30, 34, title, size=18, anchor="start", bold=True)
    for number, words in enumerate(textwrap.wrap(caption, 130)):
        canvas.text(30, 54 + 16 * number, words, anchor="start", fill=FAINT)
    budgets = sorted({seconds for line in lines for seconds, _, _ in line.ends})
    colors = {line.name: COLORS[number % len(COLORS)] for number, line in enumerate(lines)}
    drawn = [_draw_ends, *[_draw_runs] * len(budgets)] if budgets else []
    for number, draw in enumerate(drawn):
        left, top = 76 + 450 * (number % 2), 110 + 340 * (number // 2)
        draw(canvas, left, top, lines, colors, [budgets[number - 1]] if number else budgets)
    below = 100 + 340 * math.ceil(len(drawn) / 2)
    height = _draw_legend(canvas, below, colors)
    return canvas.render(930, height, title=title)


def _draw_ends(
    canvas: Canvas, left: float, top: float, lines: Sequence[Line], colors: Mapping[str, str], budgets: list[float]
) -> None:
    ends = [end for line in lines for end in line.ends]
    low = min(max(0.0, mean - (std or 0)) for _, mean, std in ends)
    high = max(min(1.0, mean + (std or 0)) for _, mean, std in ends)
    panel = _Panel(left, top, (budgets[0] / 1.4, budgets[-1] * 1.4), _range(low, high), is_logarithmic=True)
    _draw_axes(canvas, panel, budgets, title="at the end of each budget")
    for line in lines:
        color = colors[line.name]
        canvas.line([panel.place(seconds, mean) for seconds, mean, _ in line.ends], stroke=color, width=2.2)
        for seconds, mean, std in line.ends:
            canvas.dot(*panel.place(seconds, mean), fill=color)
            if std:
                bar = [panel.place(seconds, min(1.0, max(0.0, mean + sign * std))) for sign in (-1, 1)]
                canvas.line(bar, stroke=color, width=1.2)


def _draw_runs(
    canvas: Canvas, left: float, top: float, lines: Sequence[Line], colors: Mapping[str, str], budgets: list[float]
) -> None:
    (budget,) = budgets
    curves = [(line.name, curve) for line in lines for curve in line.curves.get(budget, ())]
    accuracies = [accuracy for _, curve in curves for _, accuracy in curve]
    longest = max(seconds for _, curve in curves for seconds, _ in curve)
    ticks = [tick for tick in nice_ticks(0, longest) if tick <= longest]
    panel = _Panel(left, top, (0, longest), _range(min(accuracies), max(accuracies)))
    _draw_axes(canvas, panel, ticks, title=f"every run of {budget:g} s")
    for name, curve in curves:
        canvas.line([panel.place(*point) for point in curve], stroke=colors[name], width=1.1)


def _range(low: float, high: float) -> tuple[float, float]:
    """Return the range of an axis of accuracies that shows both, within 0 and 1."""
    if low == high:
        low -= 0.05
    ticks = nice_ticks(low, high)
    return max(0.0, ticks[0]), min(1.0, ticks[-1])


def _draw_axes(canvas: Canvas, panel: _Panel, seconds: Sequence[float], *, title: str) -> None:
    canvas.text(panel.left, panel.top - 14, title, size=13, anchor="start", bold=True)
    low, high = panel.accuracies
    for tick in (tick for tick in nice_ticks(low, high) if low - 1e-9 <= tick <= high + 1e-9):
        y = panel.place(panel.seconds[1], tick)[1]
        canvas.line([(panel.left, y), (panel.left + PANEL_WIDTH, y)], stroke=RULE, width=1)
        canvas.text(panel.left - 8, y + 4, f"{100 * tick:g}%", size=11, anchor="end", fill=FAINT)
    below = panel.top + PANEL_HEIGHT
    for tick in seconds:
        canvas.text(panel.place(tick, panel.accuracies[0])[0], below + 18, f"{tick:g}", size=11, fill=FAINT)
    canvas.text(panel.left + PANEL_WIDTH / 2, below + 36, "seconds of training", size=12, fill=FAINT)


def _draw_legend(canvas: Canvas, top: float, colors: Mapping[str, str]) -> float:
    """Draw a line for each name, three in a row, and return the height of the whole chart."""
    for number, (name, color) in enumerate(colors.items()):
        x, y = 76 + 280 * (number % 3), top + 24 * (number // 3)
        canvas.line([(x, y), (x + 24, y)], stroke=color, width=2.5)
        canvas.text(x + 32, y + 4, name, anchor="start", fill=INK)
    return top + 24 * math.ceil(len(colors) / 3) + 10
