"""Figures of what parameters do to the score: one by one, two at a time, all of them side by side.

Each is a function of the frame that `report.trials_frame` makes, for the report or a notebook.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from fbsearch.report.statistics import parameters, scale, short
from fbsearch.report.style import (
    BEST,
    COMPLETE,
    MAX_POINTS,
    PRUNED,
    accuracy_axis,
    by_state,
    figure_of,
    hover,
    places_of,
    scatter,
    stretch,
    thin,
)

NUM_BINS = 8


def plot_slice(frame: pd.DataFrame, name: str) -> go.Figure:
    """The score of each trial over one parameter; for choices, with the median of the complete trials."""
    shown = frame[frame["state"].isin(["complete", "pruned"])]
    figure = figure_of(short(name), height=310, y="accuracy")
    places, axis = places_of(shown, name, jitter=0.28)
    for state, part, legend in by_state(shown, MAX_POINTS):
        scatter(figure, part, places[part.index], stretch(part["score"]), state=state, name=legend)
    complete = shown[shown["state"] == "complete"]
    if scale(shown, name) == "choices" and len(complete):
        middle = complete["value"].astype(float).groupby(places[complete.index].round()).median()
        lines_x = np.ravel([[x - 0.36, x + 0.36, math.nan] for x in middle.index])
        figure.add_scatter(
            x=lines_x, y=np.repeat(stretch(middle), 3), mode="lines", name="median of complete",
            line={"color": BEST, "width": 3}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(xaxis=axis, yaxis=accuracy_axis(shown["score"].astype(float)))
    return figure


def plot_pair(frame: pd.DataFrame, x: str, y: str) -> go.Figure:
    """The median score of the complete trials over two parameters: a contour where both are numbers, else cells."""
    complete = frame[(frame["state"] == "complete")]
    finished = frame[frame["state"].isin(["complete", "pruned"])]
    figure = figure_of(f"{short(x)} and {short(y)}", height=330, x=short(x), y=short(y))
    cells = pd.DataFrame({"score": complete["value"].astype(float)})
    axes: dict[str, Any] = {}
    for side, name in (("x", x), ("y", y)):
        places, axes[side] = places_of(finished, name)
        if scale(finished, name) != "choices":
            low, width = places.min(), (places.max() - places.min()) / (NUM_BINS - 1)
            places = low + width * ((places - low) / width).round()
        cells[side] = places[complete.index]
        axes[f"all_{side}"] = np.unique(places)
    grid = cells.pivot_table(index="y", columns="x", values="score", aggfunc="median")
    grid = grid.reindex(index=axes["all_y"], columns=axes["all_x"])
    percent = 100 * grid.to_numpy(dtype=float)
    shown: dict[str, Any] = {
        "x": grid.columns.to_numpy(), "y": grid.index.to_numpy(), "z": stretch(grid), "customdata": percent,
        "colorscale": "Viridis", "showscale": False, "hoverongaps": False,
        "hovertemplate": "%{customdata:.2f}%<extra></extra>",
    }  # fmt: skip
    numbers = all(scale(finished, name) != "choices" for name in (x, y))
    if numbers:
        figure.add_contour(**shown, connectgaps=True, contours={"coloring": "heatmap"}, line={"width": 0.5})
        points = thin(complete, MAX_POINTS // 3)
        at = [places_of(finished, name)[0][points.index] for name in (x, y)]
        figure.add_scatter(
            x=at[0], y=at[1], mode="markers", name="complete", showlegend=False,
            marker={"size": 4, "color": "#ffffff", "line": {"color": "#000000", "width": 0.5}},
            text=hover(points), hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    else:
        text = [["" if math.isnan(value) else f"{value:.1f}" for value in row] for row in percent]
        figure.add_heatmap(**shown, text=text, texttemplate="%{text}", xgap=2, ygap=2)
    flat = {"showgrid": False}
    figure.update_layout(xaxis=axes["x"] | flat, yaxis=axes["y"] | flat | {"tickangle": 0})
    return figure


def plot_parallel(frame: pd.DataFrame) -> go.Figure:
    """Parallel coordinates: each trial a line through its parameters to its score, the best tenth on top."""
    names = parameters(frame)
    finished = frame[frame["state"].isin(["complete", "pruned"])]
    figure = figure_of("Parallel coordinates", height=440)
    accuracy = accuracy_axis(finished["score"].astype(float))
    columns, tick_lists = [], []
    for name in names:
        places, axis = places_of(finished, name, jitter=0.2)
        low, high = axis.get("range", (places.min(), places.max()))
        columns.append((places - low) / max(1e-12, high - low))
        marks = zip(axis.get("tickvals", []), axis.get("ticktext", []), strict=True)
        ticks = list(marks) or [(value, f"{value:g}") for value in _round_numbers(low, high)]
        tick_lists.append([((value - low) / max(1e-12, high - low), text) for value, text in ticks])
    low, high = accuracy["range"]
    columns.append(pd.Series((stretch(finished["score"]) - low) / (high - low), finished.index))
    tick_lists.append(
        [((t - low) / (high - low), s) for t, s in zip(accuracy["tickvals"], accuracy["ticktext"], strict=True)]
    )
    lines = pd.concat(columns, axis=1).to_numpy(dtype=np.float32)
    _add_lines(figure, finished, lines)
    for place, ticks in enumerate(tick_lists):
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line={"color": PRUNED, "width": 1})
        for height, text in ticks:
            figure.add_annotation(x=place, y=height, text=text, showarrow=False, xanchor="left", xshift=4)
    figure.update_layout(
        xaxis={
            "tickvals": list(range(len(tick_lists))), "ticktext": [*(short(name) for name in names), "accuracy"],
            "range": [-0.3, len(tick_lists) - 0.55], "showgrid": False, "ticklabeloverflow": "allow",
        },
        yaxis={"visible": False, "range": [-0.03, 1.03]},
        margin={"l": 40},
    )  # fmt: skip
    return figure


def _round_numbers(low: float, high: float) -> list[float]:
    """Three to seven multiples of 1, 2 or 5 times a power of ten between two numbers."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = power * max(digit for digit in (1, 2, 5) if digit * power <= (high - low) / 3)
    return [round(step * i, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _add_lines(figure: go.Figure, frame: pd.DataFrame, lines: NDArray[np.float32]) -> None:
    """Three traces of lines, from pruned to the best tenth of the complete trials."""
    num_best = max(1, math.ceil(0.1 * (frame["state"] == "complete").sum()))
    is_best = (frame["rank"] <= num_best).to_numpy()
    complete = (frame["state"] == "complete").to_numpy() & ~is_best
    groups = [("pruned", (frame["state"] == "pruned").to_numpy(), PRUNED, 0.25, 1.0)]
    groups += [("complete", complete, COMPLETE, 0.5, 1.2), (f"best {num_best}", is_best, BEST, 0.95, 2.2)]
    for name, mask, color, opacity, width in groups:
        rows = np.flatnonzero(mask)
        if len(rows) > MAX_POINTS // 3:
            rows = np.sort(np.random.default_rng(0).choice(rows, MAX_POINTS // 3, replace=False))
            name += f" ({len(rows):,} of {mask.sum():,})"
        if len(rows):
            gap = np.full((len(rows), 1), np.nan, np.float32)
            figure.add_scatter(
                x=np.tile(np.append(np.arange(lines.shape[1], dtype=np.float32), np.float32(np.nan)), len(rows)),
                y=np.hstack([lines[rows], gap]).ravel(), mode="lines", name=name, opacity=opacity,
                line={"color": color, "width": width},
                customdata=np.repeat(frame["trial"].to_numpy()[rows].astype(np.int32), lines.shape[1] + 1),
                hovertemplate="trial %{customdata}<extra></extra>",
            )  # fmt: skip
