"""The figures of a study: each a function of the frame that `report.trials_frame` makes, for the report or a notebook.

Knows nothing of databases and HTML. Traces are SVG and few, so that a report of thousands of trials stays small and
opens where there is no WebGL. Accuracies are drawn on a scale that stretches towards 100%: equal steps there divide the
error by equal factors. Colours are readable on light and on dark ground.
"""

import html
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from fbsearch.findings import (
    best_so_far,
    choices,
    labels,
    parameters,
    pareto_front,
    ranked,
    scale,
    short,
    timeline,
    wilson_interval,
)

BEST, COMPLETE, PRUNED, FAILED, NEUTRAL = "#e8710a", "#3f74d6", "#98a1b0", "#d6336c", "#7d8796"
STATE_COLORS = {"complete": COMPLETE, "pruned": PRUNED, "fail": FAILED}
STATE_WORDS = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
# Between bars that touch.
EDGE = {"width": 1, "color": "rgba(255,255,255,0.6)"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Each figure draws at most so many trials of one state; the rest is sampled.
MAX_POINTS = 1500
MAX_CURVES = 1000
MAX_BARS = 1500
NUM_BINS = 8
# An accuracy of 100% stands where 99.95% does: its error has no logarithm.
SMALLEST_ERROR = 5e-4
ACCURACY_TICKS = (0, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)


def template(*, dark: bool) -> go.layout.Template:
    """Fonts and colours for a light or a dark ground; the ground itself is left to what is behind."""
    ink, faint, ground = ("#d5dae3", "#2c333f", "#171b22") if dark else ("#2b3340", "#e6e9ee", "#ffffff")
    veil = "rgba(23,27,34,0.75)" if dark else "rgba(255,255,255,0.75)"
    axis = {
        "gridcolor": faint, "linecolor": faint, "zeroline": False, "automargin": True, "ticks": "",
        "title": {"standoff": 10},
    }  # fmt: skip
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": ground, "bordercolor": faint, "font": {"color": ink}, "align": "left"},
            "annotationdefaults": {"font": {"color": ink}, "bgcolor": veil},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
            "colorway": [COMPLETE, BEST, "#2a9d8f", "#8a63d2", FAILED, PRUNED],
        }
    )


def _figure(title: str, *, height: int, x: str = "", y: str = "") -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template=template(dark=False),
        title={"text": title, "x": 0, "xref": "paper", "font": {"size": 16}},
        height=height,
        margin={"l": 8, "r": 12, "t": 84, "b": 8},
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}},
        hovermode="closest",
    )
    return figure


def stretch(accuracy: Any) -> NDArray[np.float64]:
    """Accuracy in [0, 1] on the figures' scale: 0 at 0%, 1 at 90%, 2 at 99%."""
    error = 1 - np.asarray(accuracy, dtype=float)
    stretched: NDArray[np.float64] = -np.log10(np.maximum(error, SMALLEST_ERROR))
    return stretched


def _accuracy_axis(values: Any) -> dict[str, Any]:
    """Ticks and range of an axis of stretched accuracies that shows all `values`."""
    known = stretch([value for value in values if math.isfinite(value)] or [0.0, 1.0])
    low, high = float(known.min()), float(known.max())
    margin = max(0.04, 0.06 * (high - low))
    low, high = low - margin, high + margin
    candidates = [float(tick) for tick in ACCURACY_TICKS]
    if high - low < 0.5:  # a narrow range gets even steps instead
        ends = 100 * (1 - 10**-low), 100 * (1 - 10**-high)
        step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if (ends[1] - ends[0]) / s <= 6 or s == 20)
        candidates = [step * i for i in range(math.ceil(ends[0] / step), math.ceil(ends[1] / step))]
    ticks: list[tuple[float, str]] = []
    for accuracy in reversed([tick for tick in candidates if 0 <= tick < 100]):
        place = float(stretch(accuracy / 100))
        if low <= place <= high and (not ticks or ticks[-1][0] - place > 0.07 * (high - low)):
            ticks.append((place, f"{accuracy:g}%"))
    return {
        "range": [low, high],
        "tickvals": [place for place, _ in ticks],
        "ticktext": [text for _, text in ticks],
    }


def _thin(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` trials, drawn evenly, the best ten always among them."""
    if len(frame) <= most:
        return frame
    best = frame[frame["rank"] <= 10]
    others = frame.drop(best.index).sample(most - len(best), random_state=0)
    return pd.concat([best, others]).sort_values("trial")


def _by_state(frame: pd.DataFrame, most: int) -> list[tuple[str, pd.DataFrame, str]]:
    """(state, its trials, a legend that says how many of how many are drawn) for pruned and complete trials."""
    parts = []
    for state in ("pruned", "complete"):
        part = frame[(frame["state"] == state) & np.isfinite(frame["score"].astype(float))]
        drawn = _thin(part, most)
        name = state if len(drawn) == len(part) else f"{state} ({len(drawn):,} of {len(part):,})"
        if len(part):
            parts.append((state, drawn, name))
    return parts


def _points(state: str) -> dict[str, Any]:
    return {"color": STATE_COLORS[state], "size": 6 if state == "pruned" else 8, "opacity": _opacity(state)}


def _opacity(state: str) -> float:
    return 0.45 if state == "pruned" else 0.85


def _hover(frame: pd.DataFrame) -> NDArray[Any]:
    """What is said of a trial when it is pointed at: number, state, score, and what was sampled."""
    names = parameters(frame, varied=False)
    columns = [labels(frame[name]) for name in names]
    lines = []
    for row, (number, state, score) in enumerate(zip(frame["trial"], frame["state"], frame["score"], strict=True)):
        head = f"<b>trial {number}</b>, {STATE_WORDS.get(state, state)}: {score:.2%}"
        rest = [f"{short(name)} {html.escape(column.iloc[row])}" for name, column in zip(names, columns, strict=True)]
        lines.append("<br>".join([head, *rest]))
    return np.array(lines, dtype=object)


def _scatter(
    figure: go.Figure, frame: pd.DataFrame, x: Any, y: Any, *, state: str, name: str, in_full: bool = False
) -> None:
    """A point for each trial; `in_full` says its whole configuration when it is pointed at, which takes space."""
    said: dict[str, Any] = {"text": _hover(frame), "hovertemplate": "%{text}<extra></extra>"}
    if not in_full:
        numbers = np.stack([frame["trial"], 100 * frame["score"].astype(float)], axis=1).astype(np.float32)
        template = f"<b>trial %{{customdata[0]:d}}</b>, {state}: %{{customdata[1]:.2f}}%<extra></extra>"
        said = {"customdata": numbers, "hovertemplate": template}
    places = (np.asarray(side, dtype=np.float32) for side in (x, y))
    figure.add_scatter(**dict(zip("xy", places, strict=True)), mode="markers", marker=_points(state), name=name, **said)


# ------------------------------------------------------------------------------------------------ the search


def plot_intervals(frame: pd.DataFrame, *, num_images: int, top: int) -> go.Figure:
    """The scores of the best trials with their 95% intervals, and a band where the best one's lies."""
    best = ranked(frame).head(top)
    figure = _figure("The best trials and how sure their scores are", height=110 + 30 * len(best), x="accuracy")
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
    figure = _figure("Optimisation history", height=380, x="trial", y="validation accuracy")
    for state, part, name in _by_state(frame, MAX_POINTS):
        _scatter(figure, part, part["trial"], stretch(part["score"]), state=state, name=name, in_full=True)
    best = best_so_far(frame)
    steps = best.notna() & ((best != best.shift()) | (best.index == best.index[-1]))
    figure.add_scatter(
        x=frame["trial"][steps].to_numpy(), y=stretch(best[steps]), mode="lines", name="best so far",
        line={"color": BEST, "width": 2.5, "shape": "hv"}, customdata=100 * best[steps].to_numpy(),
        hovertemplate="best so far %{customdata:.2f}%<extra></extra>",
    )  # fmt: skip
    figure.update_layout(yaxis=_accuracy_axis(frame["score"].astype(float)))
    return figure


def plot_learning_curves(frame: pd.DataFrame) -> go.Figure:
    """Validation accuracy after each epoch of every trial; pruned ones are faded, the best three have names."""
    figure = _figure("Learning curves", height=440, x="epoch", y="validation accuracy")
    seen = [0.0]
    for state, part, name in _by_state(frame, MAX_CURVES):
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
    figure.update_layout(yaxis=_accuracy_axis(seen[1:]))
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
    figure = _figure("Parameter importances (PED-ANOVA)", height=height, x="share of importance")
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


def _places(frame: pd.DataFrame, name: str, *, jitter: float = 0.0) -> tuple["pd.Series[Any]", dict[str, Any]]:
    """Where each trial stands on the axis of a parameter, and that axis; equal choices are spread by `jitter`."""
    values = frame[name]
    if scale(frame, name) == "choices":
        names = choices(values)
        spread = jitter * (2 * ((frame["trial"] * 0.618034) % 1) - 1)
        axis = {"tickvals": list(range(len(names))), "ticktext": [html.escape(text) for text in names]}
        axis["tickangle"] = 0 if sum(map(len, names)) <= 30 else -35
        return labels(values).map(names.index) + spread, axis | {"range": [-0.6, len(names) - 0.4]}
    numbers = values.astype(float)
    if scale(frame, name) == "linear":
        return numbers, {}
    places = pd.Series(np.log10(numbers), values.index)
    low, high = float(places.min()), float(places.max())
    digits = (1, 2, 5) if high - low < 2 else (1,)
    steps = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    ticks = [step for step in steps if low - 0.02 <= math.log10(step) <= high + 0.02]
    return places, {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{tick:g}" for tick in ticks]}


def plot_slice(frame: pd.DataFrame, name: str) -> go.Figure:
    """The score of each trial over one parameter; for choices, with the median of the complete trials."""
    shown = frame[frame["state"].isin(["complete", "pruned"])]
    figure = _figure(short(name), height=310, y="accuracy")
    places, axis = _places(shown, name, jitter=0.28)
    for state, part, legend in _by_state(shown, MAX_POINTS):
        _scatter(figure, part, places[part.index], stretch(part["score"]), state=state, name=legend)
    complete = shown[shown["state"] == "complete"]
    if scale(shown, name) == "choices" and len(complete):
        middle = complete["value"].astype(float).groupby(places[complete.index].round()).median()
        lines_x = np.ravel([[x - 0.36, x + 0.36, math.nan] for x in middle.index])
        figure.add_scatter(
            x=lines_x, y=np.repeat(stretch(middle), 3), mode="lines", name="median of complete",
            line={"color": BEST, "width": 3}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(xaxis=axis, yaxis=_accuracy_axis(shown["score"].astype(float)))
    return figure


def plot_pair(frame: pd.DataFrame, x: str, y: str) -> go.Figure:
    """The median score of the complete trials over two parameters: a contour where both are numbers, else cells."""
    complete = frame[(frame["state"] == "complete")]
    finished = frame[frame["state"].isin(["complete", "pruned"])]
    figure = _figure(f"{short(x)} and {short(y)}", height=330, x=short(x), y=short(y))
    cells = pd.DataFrame({"score": complete["value"].astype(float)})
    axes: dict[str, Any] = {}
    for side, name in (("x", x), ("y", y)):
        places, axes[side] = _places(finished, name)
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
        points = _thin(complete, MAX_POINTS // 3)
        at = [_places(finished, name)[0][points.index] for name in (x, y)]
        figure.add_scatter(
            x=at[0], y=at[1], mode="markers", name="complete", showlegend=False,
            marker={"size": 4, "color": "#ffffff", "line": {"color": "#000000", "width": 0.5}},
            text=_hover(points), hovertemplate="%{text}<extra></extra>",
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
    figure = _figure("Parallel coordinates", height=440)
    accuracy = _accuracy_axis(finished["score"].astype(float))
    columns, tick_lists = [], []
    for name in names:
        places, axis = _places(finished, name, jitter=0.2)
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


# --------------------------------------------------------------------------------------------- cost and time


COSTS = {"num_parameters": "parameters", "flops": "FLOPs an image", "seconds": "seconds of training"}


def plot_cost(frame: pd.DataFrame, cost: str) -> go.Figure:
    """Score over what a trial cost (a key of COSTS), with the front of the complete trials that none beats."""
    figure = _figure(f"Accuracy against {COSTS[cost]}", height=360, x=COSTS[cost], y="accuracy")
    known = frame[frame[cost].notna()]
    for state, part, name in _by_state(known, MAX_POINTS):
        _scatter(figure, part, part[cost].astype(float), stretch(part["score"]), state=state, name=name)
    front = pareto_front(frame, cost)
    figure.add_scatter(
        x=front[cost].astype(float).to_numpy(), y=stretch(front["value"]), mode="lines+markers", name="Pareto front",
        line={"color": BEST, "width": 2, "shape": "hv"}, marker={"size": 9, "color": BEST},
        text=_hover(front), hovertemplate="%{text}<br>%{x:,.3s}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        xaxis={"type": "log", "tickformat": "~s", "dtick": "D2" if known[cost].max() < 100 * known[cost].min() else 1},
        yaxis=_accuracy_axis(known["score"].astype(float)),
    )
    return figure


def plot_timeline(frame: pd.DataFrame) -> go.Figure:
    """A bar for each trial in the lane of whoever trained it, from its start to its end; idle pauses are cut out."""
    found = timeline(frame)
    bars = found.lanes.merge(frame[["trial", "state", "score"]], on="trial").tail(MAX_BARS)
    unit, seconds = next(
        (unit for unit in (("seconds", 1), ("minutes", 60)) if found.seconds <= 180 * unit[1]), ("hours", 3600)
    )
    figure = _figure("Timeline of the workers", height=140 + 34 * max(1, found.num_lanes), x=f"{unit} of searching")
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
    lanes = list(range(found.num_lanes))
    figure.update_layout(
        barmode="overlay", bargap=0.25,
        yaxis={"tickvals": lanes, "ticktext": [f"lane {lane + 1}" for lane in lanes], "autorange": "reversed",
               "showgrid": False},
    )  # fmt: skip
    return figure
