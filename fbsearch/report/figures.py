"""Figures of a study: the best trials, its history, learning curves, the worth of parts, costs, the workers' timeline.

Each takes the frame of `trials_table.trials_frame`. Traces are SVG, so that a figure opens without WebGL, and few, so
that the report of thousands of trials stays small. `parameter_figures` has the figures of single parameters.
"""

import html
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from fbsearch.report import style
from fbsearch.report.statistics import best_so_far, metric_label, metric_of, pareto_front, ranked
from fbsearch.report.timeline import timeline
from fbsearch.report.worth import Difference, PartWorth
from fbsearch.winners.intervals import wilson_interval

MAX_CURVES = 1000
MAX_BARS = 1500
COSTS = {"num_parameters": "parameters", "flops": "FLOPs an image", "seconds": "seconds of training"}


def plot_intervals(frame: pd.DataFrame, *, num_images: int, top: int) -> go.Figure:
    """Draw the scores of the best trials with their 95% intervals, and the best trial's interval as a band."""
    best = ranked(frame).head(top)
    figure = style.figure_of("The best trials and how sure their scores are", height=110 + 30 * len(best), x="accuracy")
    low, high = 100 * np.array([wilson_interval(value, num_images) for value in best["value"]]).T
    values = 100 * best["value"].to_numpy(dtype=float)
    figure.add_vrect(x0=low[0], x1=high[0], fillcolor=style.BEST, opacity=0.1, line_width=0, layer="below")
    figure.add_scatter(
        x=values, y=[f"{rank:.0f}.  trial {trial}" for rank, trial in zip(best["rank"], best["trial"], strict=True)],
        mode="markers", marker={"size": 10, "color": [style.BEST, *[style.COMPLETE] * (len(best) - 1)]},
        error_x={"array": high - values, "arrayminus": values - low, "thickness": 1.5, "color": style.NEUTRAL},
        customdata=np.stack([low, high], axis=1),
        hovertemplate="%{y}: %{x:.2f}%, 95% interval %{customdata[0]:.2f} to %{customdata[1]:.2f}%<extra></extra>",
    )  # fmt: skip
    return figure.update_layout(xaxis={"ticksuffix": "%"}, yaxis={"autorange": "reversed", "showgrid": False})


def plot_history(frame: pd.DataFrame) -> go.Figure:
    """Draw the score of each trial in the order of their starts, and the best score so far."""
    figure = style.figure_of("Optimisation history", height=380, x="trial", y=metric_label(frame))
    for state, part, name in style.by_state(frame, style.MAX_POINTS):
        style.scatter(figure, part, part["trial"], style.stretch(part["score"]), state=state, name=name, in_full=True)
    best = best_so_far(frame)
    best = best[best.notna() & ((best != best.shift()) | (best.index == best.index[-1]))]
    figure.add_scatter(
        x=frame["trial"][best.index].to_numpy(), y=style.stretch(best), mode="lines", name="best so far",
        line={"color": style.BEST, "width": 2.5, "shape": "hv"}, customdata=100 * best.to_numpy(),
        hovertemplate="best so far %{customdata:.2f}%<extra></extra>",
    )  # fmt: skip
    return figure.update_layout(yaxis=style.accuracy_axis(frame["score"].astype(float)))


def plot_learning_curves(frame: pd.DataFrame) -> go.Figure:
    """Draw the validation accuracy after each epoch of every trial; pruned trials are pale, the best three named."""
    figure = style.figure_of("Learning curves", height=440, x="epoch", y=metric_label(frame))
    seen = [np.zeros(0)]
    for state, part, name in style.by_state(frame, MAX_CURVES):
        epochs, values, numbers = _join_curves(part, metric_of(frame))
        seen.append(values)
        figure.add_scatter(
            x=epochs, y=style.stretch(values).astype(np.float32), mode="lines+markers", name=name, customdata=numbers,
            line={"color": style.STATE_COLORS[state], "width": 1}, opacity=0.35 if state == "pruned" else 0.6,
            marker={"size": 4 if state == "pruned" else 3}, meta=state,
            hovertemplate="trial %{customdata}, epoch %{x}<extra></extra>",
        )  # fmt: skip
    for (_, trial), color in zip(
        ranked(frame).head(3).iterrows(), (style.BEST, style.GREEN, style.VIOLET), strict=False
    ):
        epochs, values, _ = _join_curves(frame.loc[[trial.name]], metric_of(frame))
        figure.add_scatter(
            x=epochs, y=style.stretch(values), mode="lines", name=f"{trial['rank']:.0f}. trial {trial['trial']}",
            line={"color": color, "width": 2.5}, customdata=100 * values,
            hovertemplate=f"trial {trial['trial']}, epoch %{{x}}: %{{customdata:.2f}}%<extra></extra>",
        )  # fmt: skip
    figure.update_layout(yaxis=style.accuracy_axis(np.concatenate(seen)))
    if len(frame) and frame["epochs"].max() <= 12:
        figure.update_xaxes(dtick=1)
    return figure


def _join_curves(frame: pd.DataFrame, metric: str) -> NDArray[np.float32]:
    """Return epochs, values of the metric and trial numbers of all curves, one after another with a NaN after each."""
    points = [
        (stats["epoch"], stats.get(metric), number)
        for number, history in zip(frame["trial"], frame["history"], strict=True)
        for stats in [*history, {"epoch": math.nan}]
    ]
    return np.array(points, dtype=np.float32).reshape(-1, 3).T


def plot_worth(parts: Sequence[PartWorth], *, label: str = "accuracy") -> go.Figure:
    """Draw each choice's difference in the score, called `label`, with its interval; sure ones are coloured."""
    names: list[str] = []
    num_rows = sum(1 + len(part.rows) for part in parts)
    figure = style.figure_of(
        f"Differences in {label} with their 95% intervals", height=140 + 26 * num_rows, x=f"points of {label}"
    )
    rows: dict[str, list[tuple[int, Difference]]] = {}
    for part in parts:
        head = f"<b>{html.escape(part.name)}</b>, against {html.escape(part.reference)}"
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=len(names), text=head,
            showarrow=False, bgcolor="rgba(0,0,0,0)",
        )  # fmt: skip
        names.append("")
        for row in part.rows:
            color = style.NEUTRAL if not row.is_sure else style.GREEN if row.mean > 0 else style.FAILED
            rows.setdefault(color, []).append((len(names), row))
            names.append(html.escape(row.choice))
    for color, found in rows.items():
        mean, low, high = 100 * np.array([(row.mean, row.low, row.high) for _, row in found]).T
        figure.add_scatter(
            x=mean, y=[place for place, _ in found], mode="markers", marker={"size": 9, "color": color},
            error_x={"array": high - mean, "arrayminus": mean - low, "thickness": 2, "width": 0, "color": color},
            customdata=[(html.escape(row.choice), 100 * row.low, 100 * row.high, row.num_trials) for _, row in found],
            hovertemplate="%{customdata[0]}: %{x:+.2f} points, 95% interval %{customdata[1]:+.2f} to "
            "%{customdata[2]:+.2f}, %{customdata[3]} trials<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": style.NEUTRAL, "width": 1.5}, layer="below")
    axis = {"tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.4, -0.6]}
    return figure.update_layout(showlegend=False, yaxis=axis | {"showgrid": False}, xaxis={"nticks": 7})


def plot_cost(frame: pd.DataFrame, cost: str) -> go.Figure:
    """Draw the score over a cost (a key of COSTS) with the Pareto front of the complete trials."""
    label = metric_label(frame)
    name = label.removeprefix("validation ")
    title = f"{name[0].upper()}{name[1:]} against {COSTS[cost]}"
    figure = style.figure_of(title, height=360, x=COSTS[cost], y=label)
    known = frame[frame[cost].notna()]
    for state, part, name in style.by_state(known, style.MAX_POINTS):
        style.scatter(figure, part, part[cost], style.stretch(part["score"]), state=state, name=name)
    front = pareto_front(frame, cost)
    figure.add_scatter(
        x=front[cost].to_numpy(float), y=style.stretch(front["value"]), mode="lines+markers", name="Pareto front",
        line={"color": style.BEST, "width": 2, "shape": "hv"}, marker={"size": 9, "color": style.BEST},
        text=style.hover(front), hovertemplate="%{text}<br>%{x:,.3s}<extra></extra>",
    )  # fmt: skip
    return figure.update_layout(
        xaxis={"type": "log", "tickformat": "~s", "dtick": "D2" if known[cost].max() < 100 * known[cost].min() else 1},
        yaxis=style.accuracy_axis(known["score"].astype(float)),
    )


def plot_timeline(frame: pd.DataFrame) -> go.Figure:
    """Draw a bar for each trial, from start to end, in the lane of its worker; pauses of all workers are cut out.

    plotly.express.timeline is no help here: it takes dates, which cannot leave pauses out.
    """
    found = timeline(frame)
    bars = found.lanes.merge(frame[["trial", "state", "score"]], on="trial").tail(MAX_BARS)
    units = (("seconds", 1), ("minutes", 60), ("hours", 3600))
    unit, seconds = next((unit for unit in units if found.seconds <= 180 * unit[1]), units[-1])
    figure = style.figure_of("Timeline of the workers", height=140 + 34 * found.num_lanes, x=f"{unit} of searching")
    for state, word in style.STATE_WORDS.items():
        part = bars[bars["state"] == state]
        if not len(part):
            continue
        lasted = (part["end"] - part["start"]).to_numpy(float)
        # A thin line separates bars that touch.
        marker = {"color": style.STATE_COLORS[state], "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}}
        figure.add_bar(
            x=lasted / seconds, base=part["start"].to_numpy(float) / seconds, y=part["lane"].to_numpy(int),
            orientation="h", name=word, marker=marker | {"opacity": 0.6 if state == "pruned" else 0.9},
            customdata=np.stack([part["trial"], lasted], axis=1).astype(float),
            hovertemplate=f"trial %{{customdata[0]}}, {word}, %{{customdata[1]:.1f}} s<extra></extra>",
        )  # fmt: skip
    for place, _ in found.pauses:
        figure.add_vline(x=place / seconds, line={"color": style.FAILED, "width": 1, "dash": "dot"})
    lanes = {"tickvals": list(range(found.num_lanes)), "ticktext": found.names, "autorange": "reversed"}
    return figure.update_layout(barmode="overlay", bargap=0.25, yaxis=lanes | {"showgrid": False})
