"""The figures of a study: each a function of the frame that `report.trials_frame` makes, for the report or a notebook.

Knows nothing of databases and HTML. Traces are SVG and few, so that a report of thousands of trials stays small and
opens where there is no WebGL. What parameters do to the score is in `effects`.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from fbsearch.report.statistics import best_so_far, pareto_front, ranked, short, wilson_interval
from fbsearch.report.style import (
    BEST,
    COMPLETE,
    FAILED,
    MAX_POINTS,
    NEUTRAL,
    STATE_COLORS,
    STATE_WORDS,
    accuracy_axis,
    by_state,
    figure_of,
    hover,
    scatter,
    stretch,
)
from fbsearch.report.timeline import timeline

MAX_CURVES = 1000
MAX_BARS = 1500
# Between bars that touch.
EDGE = {"width": 1, "color": "rgba(255,255,255,0.6)"}


# ------------------------------------------------------------------------------------------------ the search


def plot_intervals(frame: pd.DataFrame, *, num_images: int, top: int) -> go.Figure:
    """The scores of the best trials with their 95% intervals, and a band where the best one's lies."""
    best = ranked(frame).head(top)
    figure = figure_of("The best trials and how sure their scores are", height=110 + 30 * len(best), x="accuracy")
    low, high = np.array([wilson_interval(value, num_images) for value in best["value"]]).reshape(-1, 2).T
    names = [f"{rank:.0f}.  trial {trial}" for rank, trial in zip(best["rank"], best["trial"], strict=True)]
    values = 100 * best["value"].to_numpy(dtype=float)
    if len(best):
        figure.add_vrect(x0=100 * low[0], x1=100 * high[0], fillcolor=BEST, opacity=0.1, line_width=0, layer="below")
    figure.add_scatter(
        x=values, y=names, mode="markers",
        marker={"size": 10, "color": [BEST, *[COMPLETE] * (len(best) - 1)]},
        error_x={"array": 100 * high - values, "arrayminus": values - 100 * low, "thickness": 1.5, "color": NEUTRAL},
        customdata=100 * np.stack([low, high], axis=1),
        hovertemplate="%{y}: %{x:.2f}%, 95%% interval %{customdata[0]:.2f} to %{customdata[1]:.2f}%<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis={"ticksuffix": "%"}, yaxis={"autorange": "reversed", "showgrid": False})
    return figure


def plot_history(frame: pd.DataFrame) -> go.Figure:
    """Optimisation history: the score of each trial in the order they were begun, and the best so far."""
    figure = figure_of("Optimisation history", height=380, x="trial", y="validation accuracy")
    for state, part, name in by_state(frame, MAX_POINTS):
        scatter(figure, part, part["trial"], stretch(part["score"]), state=state, name=name, in_full=True)
    best = best_so_far(frame)
    steps = best.notna() & ((best != best.shift()) | (best.index == best.index[-1]))
    figure.add_scatter(
        x=frame["trial"][steps].to_numpy(), y=stretch(best[steps]), mode="lines", name="best so far",
        line={"color": BEST, "width": 2.5, "shape": "hv"}, customdata=100 * best[steps].to_numpy(),
        hovertemplate="best so far %{customdata:.2f}%<extra></extra>",
    )  # fmt: skip
    figure.update_layout(yaxis=accuracy_axis(frame["score"].astype(float)))
    return figure


def plot_learning_curves(frame: pd.DataFrame) -> go.Figure:
    """Validation accuracy after each epoch of every trial; pruned ones are faded, the best three have names."""
    figure = figure_of("Learning curves", height=440, x="epoch", y="validation accuracy")
    seen = [0.0]
    for state, part, name in by_state(frame, MAX_CURVES):
        epochs, values, numbers = _join_curves(part)
        seen += [float(np.nanmin(values)), float(np.nanmax(values))] if np.isfinite(values).any() else []
        figure.add_scatter(
            x=epochs, y=stretch(values).astype(np.float32), mode="lines+markers", name=name, customdata=numbers,
            line={"color": STATE_COLORS[state], "width": 1}, opacity=0.35 if state == "pruned" else 0.6,
            marker={"size": 4 if state == "pruned" else 3}, meta=state,
            hovertemplate="trial %{customdata}, epoch %{x}<extra></extra>",
        )  # fmt: skip
    for (_, trial), color in zip(ranked(frame).head(3).iterrows(), (BEST, "#2a9d8f", "#8a63d2"), strict=False):
        epochs, values, _ = _join_curves(frame.loc[[trial.name]])
        figure.add_scatter(
            x=epochs, y=stretch(values), mode="lines", name=f"{trial['rank']:.0f}. trial {trial['trial']}",
            line={"color": color, "width": 2.5}, customdata=100 * values,
            hovertemplate=f"trial {trial['trial']}, epoch %{{x}}: %{{customdata:.2f}}%<extra></extra>",
        )  # fmt: skip
    figure.update_layout(yaxis=accuracy_axis(seen[1:]))
    if len(frame) and frame["epochs"].max() <= 12:
        figure.update_xaxes(dtick=1)
    return figure


def _join_curves(frame: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Epochs, accuracies and trial numbers of all curves one behind the other, a NaN after each."""
    epochs: list[float] = []
    values: list[float] = []
    numbers: list[int] = []
    for number, history in zip(frame["trial"], frame["history"], strict=True):
        epochs += [*(stats["epoch"] for stats in history), math.nan]
        values += [*(_number(stats.get("val_accuracy")) for stats in history), math.nan]
        numbers += [number] * (len(history) + 1)
    return np.array(epochs, np.float32), np.array(values, np.float32), np.array(numbers, np.int32)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# -------------------------------------------------------------------------------------------- what mattered


def plot_importances(importances: pd.DataFrame) -> go.Figure:
    """Bars of `findings.importances`; a parameter that explains no more than chance is pale."""
    names = list(dict.fromkeys(importances["parameter"]))[::-1]
    bases = list(dict.fromkeys(importances["basis"]))
    height = 140 + (24 * len(bases) + 16) * len(names)
    figure = figure_of("Parameter importances (PED-ANOVA)", height=height, x="share of importance")
    legend = {"early": ("early accuracy, all trials", COMPLETE), "final": ("final accuracy, complete ones", "#2a9d8f")}
    for basis in reversed(bases):
        part = importances[importances["basis"] == basis].set_index("parameter").reindex(names)
        name, color = legend[basis]
        figure.add_bar(
            x=100 * part["share"].to_numpy(), y=[short(name) for name in names], orientation="h", name=name,
            marker={"color": color, "opacity": np.where(part["explained"] > part["chance"], 1.0, 0.35)},
            customdata=100 * part[["explained", "chance"]].to_numpy(),
            hovertemplate="%{y}: importance %{x:.0f}%<br>explains %{customdata[0]:.0f}% of the order, "
            "chance up to %{customdata[1]:.0f}%<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        bargap=0.3,
        showlegend=True,
        xaxis={"ticksuffix": "%", "rangemode": "tozero"},
        yaxis={"showgrid": False},
        legend={"traceorder": "reversed"},
    )
    return figure


# --------------------------------------------------------------------------------------------- cost and time


COSTS = {"num_parameters": "parameters", "flops": "FLOPs an image", "seconds": "seconds of training"}


def plot_cost(frame: pd.DataFrame, cost: str) -> go.Figure:
    """Score over what a trial cost (a key of COSTS), with the front of the complete trials that none beats."""
    figure = figure_of(f"Accuracy against {COSTS[cost]}", height=360, x=COSTS[cost], y="accuracy")
    known = frame[frame[cost].notna()]
    for state, part, name in by_state(known, MAX_POINTS):
        scatter(figure, part, part[cost].astype(float), stretch(part["score"]), state=state, name=name)
    front = pareto_front(frame, cost)
    figure.add_scatter(
        x=front[cost].astype(float).to_numpy(), y=stretch(front["value"]), mode="lines+markers", name="Pareto front",
        line={"color": BEST, "width": 2, "shape": "hv"}, marker={"size": 9, "color": BEST},
        text=hover(front), hovertemplate="%{text}<br>%{x:,.3s}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        xaxis={"type": "log", "tickformat": "~s", "dtick": "D2" if known[cost].max() < 100 * known[cost].min() else 1},
        yaxis=accuracy_axis(known["score"].astype(float)),
    )
    return figure


def plot_timeline(frame: pd.DataFrame) -> go.Figure:
    """A bar for each trial in the lane of whoever trained it, from its start to its end; idle pauses are cut out."""
    found = timeline(frame)
    bars = found.lanes.merge(frame[["trial", "state", "score"]], on="trial").tail(MAX_BARS)
    unit, seconds = next(
        (unit for unit in (("seconds", 1), ("minutes", 60)) if found.seconds <= 180 * unit[1]), ("hours", 3600)
    )
    figure = figure_of("Timeline of the workers", height=140 + 34 * max(1, found.num_lanes), x=f"{unit} of searching")
    for state, word in STATE_WORDS.items():
        part = bars[bars["state"] == state]
        if not len(part):
            continue
        figure.add_bar(
            x=((part["end"] - part["start"]) / seconds).to_numpy(float), base=(part["start"] / seconds).to_numpy(float),
            y=part["lane"].to_numpy(int), orientation="h", name=word,
            marker={"color": STATE_COLORS[state], "opacity": 0.6 if state == "pruned" else 0.9, "line": EDGE},
            customdata=np.stack([part["trial"], part["end"] - part["start"]], axis=1).astype(float),
            hovertemplate=f"trial %{{customdata[0]}}, {word}, %{{customdata[1]:.1f}} s<extra></extra>",
        )  # fmt: skip
    for place, _ in found.pauses:
        figure.add_vline(x=place / seconds, line={"color": FAILED, "width": 1, "dash": "dot"})
    figure.update_layout(
        barmode="overlay", bargap=0.25,
        yaxis={"tickvals": list(range(found.num_lanes)), "ticktext": found.names, "autorange": "reversed",
               "showgrid": False},
    )  # fmt: skip
    return figure
