"""Box-counting dimensions of the fractal masks, as a figure and as a table."""

import math
from dataclasses import dataclass

import numpy as np
import plotly.colors
import plotly.graph_objects as go
from rich.table import Table

from fbsearch.config.models import FractalPatternType
from fbsearch.network.patterns import generate_pattern

DIMENSION_PIXELS = 512
# Dimensions of the limit sets; the specification gives none for Mandelbrot and Julia.
THEORETICAL_DIMENSIONS = {
    FractalPatternType.SIERPINSKI: math.log(3, 2),
    FractalPatternType.CANTOR: math.log(4, 3),
    FractalPatternType.DRAGON_CURVE: 2.0,
}


@dataclass(frozen=True)
class BoxCount:
    """The number of boxes that a set touches, for grids with more and more boxes on a side."""

    boxes_per_side: tuple[int, ...]
    num_touched: tuple[int, ...]

    @property
    def num_fitted(self) -> int:
        """Return the number of grids that give the slope: the finer half, since the dimension is a limit."""
        return max(2, (len(self.boxes_per_side) + 1) // 2)

    @property
    def fit(self) -> tuple[float, float]:
        """Return slope and intercept of log(touched) over log(boxes on a side); the slope estimates the dimension.

        Both are NaN where fewer than two grids touch anything.
        """
        if len(self.boxes_per_side) < 2 or not min(self.num_touched):
            return math.nan, math.nan
        sides, touched = self.boxes_per_side[-self.num_fitted :], self.num_touched[-self.num_fitted :]
        slope, intercept = np.polyfit(np.log(sides), np.log(touched), 1)
        return float(slope), float(intercept)


def count_boxes(pattern: FractalPatternType, size: int) -> BoxCount:
    """Count the boxes that a pattern's set, the pixels whose mask is 1, touches at `size` x `size` pixels.

    The numbers of boxes on a side are the powers of 2 (for Cantor, which divides by three, of 3) up to `size`. A pixel
    is in the box of its centre.
    """
    base = 3 if pattern is FractalPatternType.CANTOR else 2
    rows, columns = np.nonzero(generate_pattern(pattern, size, size) == 1)
    sides = tuple(base**power for power in range(1, 1 + int(math.log(size, base) + 1e-9)))
    box_rows, box_columns = ([(2 * index + 1) * side // (2 * size) for side in sides] for index in (rows, columns))
    pairs = zip(sides, box_rows, box_columns, strict=True)
    return BoxCount(sides, tuple(len(np.unique(row * side + column)) for side, row, column in pairs))


def plot_dimensions(pattern: FractalPatternType, resolution: int) -> go.Figure:
    """Plot box counts and slopes of the five masks at DIMENSION_PIXELS, of `pattern` also at `resolution`."""
    figure = go.Figure()
    for line_color, kind in zip(plotly.colors.qualitative.D3, FractalPatternType, strict=False):
        count = count_boxes(kind, DIMENSION_PIXELS)
        slope, intercept = count.fit
        theory = f" (theory {THEORETICAL_DIMENSIONS[kind]:.3f})" if kind in THEORETICAL_DIMENSIONS else ""
        marker = {"color": line_color, "size": 9 if kind is pattern else 6}
        line = {"color": line_color, "width": 3 if kind is pattern else 1}
        fitted = np.array(count.boxes_per_side[-count.num_fitted :])
        figure.add_scatter(
            x=count.boxes_per_side, y=count.num_touched, mode="markers", marker=marker, legendgroup=kind.value,
            name=f"{kind.value}: {slope:.3f}{theory}",
        )  # fmt: skip
        figure.add_scatter(
            x=fitted, y=np.exp(intercept) * fitted**slope, mode="lines", line=line, legendgroup=kind.value,
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        if kind is pattern:
            own = count_boxes(kind, resolution)
            hollow = {"color": line_color, "size": 14, "symbol": "circle-open", "line": {"width": 2}}
            name = f"{kind.value} at the net's {resolution} x {resolution}: {own.fit[0]:.3f}"
            figure.add_scatter(x=own.boxes_per_side, y=own.num_touched, mode="markers", marker=hollow, name=name)
    axis = {"type": "log", "dtick": 1, "exponentformat": "power", "minor": {"showgrid": True}}
    figure.update_layout(
        template="plotly_white",
        title=f"Box-counting dimension of the masks, {DIMENSION_PIXELS} x {DIMENSION_PIXELS}: slope of the finer half",
        xaxis=axis | {"title": "boxes a side"},
        yaxis=axis | {"title": "boxes that the set touches"},
        legend={"x": 0.02, "y": 0.98, "bgcolor": "rgba(255,255,255,0.8)"},
        width=900,
        height=600,
    )
    return figure


def compare_dimensions(pattern: FractalPatternType, resolution: int) -> Table:
    """Return a table of the dimensions of the five masks, and of `pattern` at a network's resolution."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("pattern", "pixels", "dimension", "in theory"):
        table.add_column(column, header_style="dim", justify="left" if column == "pattern" else "right")
    for kind, size in [*((kind, DIMENSION_PIXELS) for kind in FractalPatternType), (pattern, resolution)]:
        slope = count_boxes(kind, size).fit[0]
        theory = THEORETICAL_DIMENSIONS.get(kind)
        mark = " (this net's)" if size == resolution and kind is pattern else ""
        cells = [f"{size} x {size}", "-" if math.isnan(slope) else f"{slope:.3f}", f"{theory:.3f}" if theory else "-"]
        table.add_row(kind.value + mark, *cells)
    return table
