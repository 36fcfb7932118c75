"""Figures of how parameters affect the score: one parameter, two at a time, and all in parallel coordinates.

Each takes the frame of `trials_table.trials_frame`. optuna.visualization has such figures too, but draws no pruned
trials, shows `model.fractal_levels` as three parameters, and needs WebGL for parallel coordinates.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from fbsearch.config.goals import GOALS
from fbsearch.report import style
from fbsearch.report.statistics import finished_trials, metric_label, metric_of, parameters, scale, short

NUM_BINS = 8


def plot_slice(frame: pd.DataFrame, name: str) -> go.Figure:
    """Draw the score of each trial over one parameter; for choices also the median of the complete trials."""
    shown = finished_trials(frame)
    figure = style.figure_of(short(name), height=310, y=metric_label(frame))
    places, axis = style.places_of(shown, name, jitter=0.28)
    for state, part, legend in style.by_state(shown, style.MAX_POINTS):
        style.scatter(figure, part, places[part.index], style.stretch(part["score"]), state=state, name=legend)
    complete = shown[shown["state"] == "complete"]
    if scale(shown, name) == "choices" and len(complete):
        middle = complete["value"].astype(float).groupby(places[complete.index].round()).median()
        figure.add_scatter(
            x=np.ravel([[x - 0.36, x + 0.36, math.nan] for x in middle.index]), y=np.repeat(style.stretch(middle), 3),
            mode="lines", name="median of complete", line={"color": style.BEST, "width": 3}, hoverinfo="skip",
        )  # fmt: skip
    return figure.update_layout(xaxis=axis, yaxis=style.accuracy_axis(shown["score"].astype(float)))


def find_pair_range(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Return the lowest and the highest score that `plot_pair` draws for any of the pairs: one scale for all."""
    finished = finished_trials(frame)
    grids = [_median_grid(finished, x, y)[0].to_numpy(dtype=float) for x, y in pairs]
    known = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    return float(known.min()), float(known.max())


def plot_pair(frame: pd.DataFrame, x: str, y: str, *, shared: tuple[float, float]) -> go.Figure:
    """Draw the median score of the complete trials over two parameters: contours for two numbers, otherwise cells.

    `shared` are the scores at the ends of the colour scale, which all pairs share.
    """
    finished = finished_trials(frame)
    complete = finished[finished["state"] == "complete"]
    figure = style.figure_of(f"{short(x)} and {short(y)}", height=330, x=short(x), y=short(y))
    grid, axes = _median_grid(finished, x, y)
    percent = 100 * grid.to_numpy(dtype=float)
    shown: dict[str, Any] = {
        "x": grid.columns.to_numpy(), "y": grid.index.to_numpy(), "z": style.stretch(grid), "customdata": percent,
        "colorscale": "Viridis", "showscale": False,
        "zmin": float(style.stretch(shared[0])), "zmax": float(style.stretch(shared[1])), "hoverongaps": False,
        "hovertemplate": "%{customdata:.2f}%<extra></extra>",
    }  # fmt: skip
    if all(scale(finished, name) != "choices" for name in (x, y)):
        figure.add_contour(**shown, connectgaps=True, contours={"coloring": "heatmap"}, line={"width": 0.5})
        points = style.thin(complete, style.MAX_POINTS // 3)
        at = [style.places_of(finished, name)[0][points.index] for name in (x, y)]
        figure.add_scatter(
            x=at[0], y=at[1], mode="markers", name="complete", showlegend=False,
            marker={"size": 4, "color": "#ffffff", "line": {"color": "#000000", "width": 0.5}},
            text=style.hover(points), hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    else:
        text = [["" if math.isnan(value) else f"{value:.1f}" for value in row] for row in percent]
        figure.add_heatmap(**shown, text=text, texttemplate="%{text}", xgap=2, ygap=2)
    flat = {"showgrid": False}
    return figure.update_layout(xaxis=axes["x"] | flat, yaxis=axes["y"] | flat | {"tickangle": 0})


def _median_grid(finished: pd.DataFrame, x: str, y: str) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Return the median score of the complete trials for each place of `y` (rows) and `x` (columns), and both axes.

    Numbers are put into NUM_BINS bins. Places with pruned trials alone are there too, as NaN.
    """
    cells = pd.DataFrame({"score": finished["value"].astype(float).where(finished["state"] == "complete")})
    axes = {}
    for side, name in (("x", x), ("y", y)):
        places, axes[side] = style.places_of(finished, name)
        if scale(finished, name) != "choices":
            low, width = places.min(), (places.max() - places.min()) / (NUM_BINS - 1)
            places = low + width * ((places - low) / width).round()
        cells[side] = places
    return cells.pivot_table(index="y", columns="x", values="score", aggfunc="median", dropna=False), axes


def plot_parallel(frame: pd.DataFrame) -> go.Figure:
    """Draw parallel coordinates: each trial is a line through its parameters to its score, the best tenth on top."""
    finished = finished_trials(frame)
    names = parameters(frame)
    axes = [style.places_of(finished, name, jitter=0.2) for name in names]
    score = finished["score"].astype(float)
    axes.append((pd.Series(style.stretch(score), finished.index), style.accuracy_axis(score)))
    figure = style.figure_of("Parallel coordinates", height=440)
    _add_lines(figure, finished, np.stack([_to_unit(places, *_ends(places, axis)) for places, axis in axes], axis=1))
    for position, (places, axis) in enumerate(axes):
        low, high = _ends(places, axis)
        marks = axis.get("tickvals") or style.round_numbers(low, high)
        texts = axis.get("ticktext") or [f"{mark:g}" for mark in marks]
        figure.add_shape(type="line", x0=position, x1=position, y0=0, y1=1, line={"color": style.PRUNED, "width": 1})
        for height, text in zip(_to_unit(marks, low, high), texts, strict=True):
            figure.add_annotation(x=position, y=height, text=text, showarrow=False, xanchor="left", xshift=4)
    return figure.update_layout(
        xaxis={
            "tickvals": list(range(len(axes))), "ticktext": [*map(short, names), GOALS[metric_of(frame)].short],
            "range": [-0.3, len(axes) - 0.55], "showgrid": False, "ticklabeloverflow": "allow",
        },
        yaxis={"visible": False, "range": [-0.03, 1.03]},
        margin={"l": 40},
    )  # fmt: skip


def _ends(places: "pd.Series[float]", axis: dict[str, Any]) -> tuple[float, float]:
    low, high = axis.get("range", (places.min(), places.max()))
    return low, high


def _to_unit(places: Any, low: float, high: float) -> NDArray[np.float64]:
    """Map places from [low, high] to [0, 1]."""
    unit: NDArray[np.float64] = (np.asarray(places, dtype=float) - low) / (high - low)
    return unit


def _add_lines(figure: go.Figure, frame: pd.DataFrame, lines: NDArray[np.float64]) -> None:
    """Add three traces of `lines` [trial, axis]: pruned, complete, and the best tenth of the complete trials."""
    is_complete = frame["state"] == "complete"
    num_best = max(1, math.ceil(0.1 * is_complete.sum()))
    is_best = frame["rank"] <= num_best
    for name, mask, color, opacity, width in (
        ("pruned", ~is_complete, style.PRUNED, 0.25, 1.0),
        ("complete", is_complete & ~is_best, style.COMPLETE, 0.5, 1.2),
        (f"best {num_best}", is_best, style.BEST, 0.95, 2.2),
    ):
        rows = np.flatnonzero(mask)
        if len(rows) > style.MAX_POINTS // 3:
            rows = np.sort(np.random.default_rng(0).choice(rows, style.MAX_POINTS // 3, replace=False))
            name += f" ({len(rows):,} of {mask.sum():,})"
        if len(rows):
            # One trace holds all lines, with a NaN after each.
            y = np.pad(lines[rows], ((0, 0), (0, 1)), constant_values=math.nan).astype(np.float32)
            x = np.broadcast_to(np.append(np.arange(lines.shape[1]), math.nan), y.shape).astype(np.float32)
            figure.add_scatter(
                x=x.ravel(), y=y.ravel(), mode="lines", name=name, opacity=opacity,
                line={"color": color, "width": width},
                customdata=np.repeat(frame["trial"].to_numpy()[rows].astype(np.int32), y.shape[1]),
                hovertemplate="trial %{customdata}<extra></extra>",
            )  # fmt: skip
