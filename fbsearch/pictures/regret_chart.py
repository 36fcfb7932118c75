"""SVG chart of searches: regret over seconds, a panel for each number of workers."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fbsearch.pictures.race_chart import COLORS
from fbsearch.pictures.svg import FAINT, INK, RULE, Canvas
from fbsearch.pictures.training_charts import nice_ticks

PANEL_WIDTH, PANEL_HEIGHT = 270.0, 250.0
# Of four names in a row.
LEGEND_WIDTH = 1060
# What is above the highest regret at this share of the seconds is cut off: every search begins there.
FIRST_SHARE = 0.1


@dataclass(frozen=True)
class Curve:
    """One search: (seconds, mean regret, its interval) at each time."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True)
class _Panel:
    left: float
    top: float
    seconds: float
    low: float
    high: float

    def place(self, seconds: float, regret: float) -> tuple[float, float]:
        inside = min(max(regret, self.low), self.high)
        x = self.left + PANEL_WIDTH * seconds / self.seconds
        return x, self.top + PANEL_HEIGHT * (self.high - inside) / (self.high - self.low)


def draw_regrets(
    panels: Mapping[str, Sequence[Curve]], *, reference: str, title: str, caption: str, axis: str = "regret, points"
) -> str:
    """Return the SVG; the interval of the curve named `reference` is shaded. `axis` names the regret."""
    canvas = Canvas()
    canvas.text(30, 34, title, size=18, anchor="start", bold=True)
    for number, words in enumerate(textwrap.wrap(caption, 150)):
        canvas.text(30, 54 + 16 * number, words, anchor="start", fill=FAINT)
    names = dict.fromkeys(curve.name for curves in panels.values() for curve in sorted(curves, key=lambda c: c.name))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    for number, (name, curves) in enumerate(panels.items()):
        _draw_panel(canvas, 70 + 340 * number, 120, curves, colors, title=name, reference=reference, axis=axis)
    height = _draw_legend(canvas, 424, colors)
    return canvas.render(max(LEGEND_WIDTH, 40 + 340 * len(panels)), height, title=title)


def _draw_panel(
    canvas: Canvas,
    left: float,
    top: float,
    curves: Sequence[Curve],
    colors: Mapping[str, str],
    *,
    title: str,
    reference: str,
    axis: str,
) -> None:
    points = [point for curve in curves for point in curve.points]
    seconds = max(point[0] for point in points)
    shown = [regret for when, regret, *_ in points if when >= FIRST_SHARE * seconds]
    ticks = nice_ticks(min(0.0, *shown), max(shown))
    panel = _Panel(left, top, seconds, ticks[0], ticks[-1])
    canvas.text(left, top - 14, title, size=13, anchor="start", bold=True)
    for tick in ticks:
        y = panel.place(0, tick)[1]
        canvas.line([(left, y), (left + PANEL_WIDTH, y)], stroke=RULE, width=1)
        canvas.text(left - 8, y + 4, f"{100 * tick:g}", size=11, anchor="end", fill=FAINT)
    for tick in (tick for tick in nice_ticks(0, seconds) if tick <= seconds):
        canvas.text(panel.place(tick, 0)[0], top + PANEL_HEIGHT + 18, f"{tick:g}", size=11, fill=FAINT)
    canvas.text(left + PANEL_WIDTH / 2, top + PANEL_HEIGHT + 36, "virtual seconds", fill=FAINT)
    canvas.text(left - 44, top + PANEL_HEIGHT / 2, axis, fill=FAINT, turned=True)
    for curve in curves:
        color = colors[curve.name]
        if curve.name == reference:
            above = [panel.place(when, high) for when, _, _, high in curve.points]
            below = [panel.place(when, low) for when, _, low, _ in curve.points]
            canvas.area([*above, *below[::-1]], fill=color)
        canvas.line([panel.place(when, mean) for when, mean, *_ in curve.points], stroke=color, width=1.8)


def _draw_legend(canvas: Canvas, top: float, colors: Mapping[str, str]) -> float:
    """Draw a line for each name, four in a row, and return the height of the whole chart."""
    for number, (name, color) in enumerate(colors.items()):
        x, y = 70 + 250 * (number % 4), top + 24 * (number // 4)
        canvas.line([(x, y), (x + 24, y)], stroke=color, width=2.5)
        canvas.text(x + 32, y + 4, name, anchor="start", fill=INK)
    return top + 24 * math.ceil(len(colors) / 4) + 10
