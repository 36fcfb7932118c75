"""What a study's figures share: colours, axes of accuracies and parameters, the points of trials.

Accuracies are drawn on a scale that stretches towards 100%: equal steps there divide the error by equal factors.
Colours are readable on light and on dark ground.
"""

import html
import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from fbsearch.report.statistics import choices, labels, parameters, scale, short

BEST, COMPLETE, PRUNED, FAILED, NEUTRAL = "#e8710a", "#3f74d6", "#98a1b0", "#d6336c", "#7d8796"
STATE_COLORS = {"complete": COMPLETE, "pruned": PRUNED, "fail": FAILED}
STATE_WORDS = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Each figure draws at most so many trials of one state; the rest is sampled.
MAX_POINTS = 1500
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


def figure_of(title: str, *, height: int, x: str = "", y: str = "") -> go.Figure:
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


def accuracy_axis(values: Any) -> dict[str, Any]:
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


def thin(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` trials, drawn evenly, the best ten always among them."""
    if len(frame) <= most:
        return frame
    best = frame[frame["rank"] <= 10]
    others = frame.drop(best.index).sample(most - len(best), random_state=0)
    return pd.concat([best, others]).sort_values("trial")


def by_state(frame: pd.DataFrame, most: int) -> list[tuple[str, pd.DataFrame, str]]:
    """(state, its trials, a legend that says how many of how many are drawn) for pruned and complete trials."""
    parts = []
    for state in ("pruned", "complete"):
        part = frame[(frame["state"] == state) & np.isfinite(frame["score"].astype(float))]
        drawn = thin(part, most)
        name = state if len(drawn) == len(part) else f"{state} ({len(drawn):,} of {len(part):,})"
        if len(part):
            parts.append((state, drawn, name))
    return parts


def points(state: str) -> dict[str, Any]:
    return {"color": STATE_COLORS[state], "size": 6 if state == "pruned" else 8, "opacity": _opacity(state)}


def _opacity(state: str) -> float:
    return 0.45 if state == "pruned" else 0.85


def hover(frame: pd.DataFrame) -> NDArray[Any]:
    """What is said of a trial when it is pointed at: number, state, score, and what was sampled."""
    names = parameters(frame, varied=False)
    columns = [labels(frame[name]) for name in names]
    lines = []
    for row, (number, state, score) in enumerate(zip(frame["trial"], frame["state"], frame["score"], strict=True)):
        head = f"<b>trial {number}</b>, {STATE_WORDS.get(state, state)}: {score:.2%}"
        rest = [f"{short(name)} {html.escape(column.iloc[row])}" for name, column in zip(names, columns, strict=True)]
        lines.append("<br>".join([head, *rest]))
    return np.array(lines, dtype=object)


def scatter(
    figure: go.Figure, frame: pd.DataFrame, x: Any, y: Any, *, state: str, name: str, in_full: bool = False
) -> None:
    """A point for each trial; `in_full` says its whole configuration when it is pointed at, which takes space."""
    said: dict[str, Any] = {"text": hover(frame), "hovertemplate": "%{text}<extra></extra>"}
    if not in_full:
        numbers = np.stack([frame["trial"], 100 * frame["score"].astype(float)], axis=1).astype(np.float32)
        template = f"<b>trial %{{customdata[0]:d}}</b>, {state}: %{{customdata[1]:.2f}}%<extra></extra>"
        said = {"customdata": numbers, "hovertemplate": template}
    places = (np.asarray(side, dtype=np.float32) for side in (x, y))
    figure.add_scatter(**dict(zip("xy", places, strict=True)), mode="markers", marker=points(state), name=name, **said)


def places_of(frame: pd.DataFrame, name: str, *, jitter: float = 0.0) -> tuple["pd.Series[Any]", dict[str, Any]]:
    """Where each trial stands on the axis of a parameter, and that axis; equal choices are spread by `jitter`."""
    values = frame[name]
    if scale(frame, name) == "choices":
        names = choices(values)
        spread = jitter * (2 * ((frame["trial"] * 0.618034) % 1) - 1)
        axis: dict[str, Any] = {
            "tickvals": list(range(len(names))), "ticktext": [html.escape(text) for text in names],
        }  # fmt: skip
        # Level, aslant, or upright and small: many names must not lie on each other on a phone.
        axis["tickangle"] = 0 if sum(map(len, names)) <= 30 else -35 if len(names) <= 8 else -90
        if len(names) > 8:
            axis["tickfont"] = {"size": 10}
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
