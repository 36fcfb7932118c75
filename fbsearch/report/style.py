"""Colours, axes and points that the figures of a study share.

Accuracies are drawn on the scale -log10(1 - accuracy): equal steps divide the error by equal factors, so that
differences near 100% can be seen. The colours are readable on a light and on a dark background.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from fbsearch.report.statistics import choices, labels, parameters, scale, short

BEST, COMPLETE, PRUNED, FAILED, NEUTRAL = "#e8710a", "#3f74d6", "#98a1b0", "#d6336c", "#7d8796"
GREEN, VIOLET = "#2a9d8f", "#8a63d2"
STATE_COLORS = {"complete": COMPLETE, "pruned": PRUNED, "fail": FAILED}
STATE_WORDS = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# The largest number of trials of one state in a figure; of more trials a sample is drawn.
MAX_POINTS = 1500
# An accuracy of 100% is drawn at 99.95%, because the logarithm of its error does not exist.
SMALLEST_ERROR = 5e-4
ACCURACY_TICKS = (0, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9)


def template(*, dark: bool) -> go.layout.Template:
    """Return fonts and colours for a light or a dark background; the background itself is transparent."""
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
            "colorway": [COMPLETE, BEST, GREEN, VIOLET, FAILED, PRUNED],
        }
    )


LIGHT = template(dark=False)


def faded(color: str, opacity: float) -> str:
    """Return a colour `#rrggbb` with an opacity in [0, 1], as CSS has it."""
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def figure_of(title: str, *, height: int, x: str = "", y: str = "") -> go.Figure:
    """Return an empty figure with a title, its height in pixels and the titles of its axes."""
    return go.Figure(
        layout={
            "template": LIGHT,
            "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 16}},
            "height": height,
            "margin": {"l": 8, "r": 12, "t": 84, "b": 8},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "hovermode": "closest",
        }
    )


def stretch(accuracy: Any) -> NDArray[np.float64]:
    """Map accuracies in [0, 1] to the scale of the figures: 0% to 0, 90% to 1, 99% to 2."""
    error = 1 - np.asarray(accuracy, dtype=float)
    stretched: NDArray[np.float64] = -np.log10(np.maximum(error, SMALLEST_ERROR))
    return stretched


def accuracy_axis(values: Any) -> dict[str, Any]:
    """Return range and ticks of an axis of stretched accuracies that shows all finite `values`."""
    known = stretch([value for value in values if math.isfinite(value)] or [0.0, 1.0])
    margin = max(0.04, 0.06 * float(np.ptp(known)))
    low, high = float(known.min()) - margin, float(known.max()) + margin
    candidates: Sequence[float] = ACCURACY_TICKS
    if high - low < 0.5:  # few of the ticks lie in a narrow range
        candidates = round_numbers(100 * (1 - 10**-low), 100 * (1 - 10**-high))
    ticks: list[tuple[float, str]] = []
    for percent in reversed([tick for tick in candidates if 0 <= tick < 100]):
        place = float(stretch(percent / 100))
        if low <= place <= high and (not ticks or ticks[-1][0] - place > 0.07 * (high - low)):
            ticks.append((place, f"{percent:g}%"))
    places, texts = zip(*ticks, strict=True) if ticks else ((), ())
    return {"range": [low, high], "tickvals": list(places), "ticktext": list(texts)}


def round_numbers(low: float, high: float) -> list[float]:
    """Return three to eight multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = power * max(digit for digit in (1, 2, 5) if digit * power <= (high - low) / 3)
    return [round(step * i, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def thin(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most `most` trials: the best ten and a random sample of the others."""
    if len(frame) <= most:
        return frame
    best = frame[frame["rank"] <= 10]
    others = frame.drop(best.index).sample(most - len(best), random_state=0)
    return pd.concat([best, others]).sort_values("trial")


def by_state(frame: pd.DataFrame, most: int) -> list[tuple[str, pd.DataFrame, str]]:
    """Return (state, trials to draw, name in the legend) for the pruned and for the complete trials.

    At most `most` trials of a state are drawn; the name says how many of how many.
    """
    parts = []
    for state in ("pruned", "complete"):
        part = frame[(frame["state"] == state) & np.isfinite(frame["score"].astype(float))]
        drawn = thin(part, most)
        name = state if len(drawn) == len(part) else f"{state} ({len(drawn):,} of {len(part):,})"
        if len(part):
            parts.append((state, drawn, name))
    return parts


def hover(frame: pd.DataFrame) -> NDArray[Any]:
    """Return an HTML label for each trial: its number, state, score and sampled values."""
    trials = zip(frame["trial"], frame["state"], frame["score"], strict=True)
    lines = [f"<b>trial {number}</b>, {STATE_WORDS.get(state, state)}: {score:.2%}" for number, state, score in trials]
    for name in parameters(frame, varied=False):
        values = labels(frame[name]).map(html.escape)
        lines = [f"{line}<br>{short(name)} {value}" for line, value in zip(lines, values, strict=True)]
    return np.array(lines, dtype=object)


def scatter(
    figure: go.Figure, frame: pd.DataFrame, x: Any, y: Any, *, state: str, name: str, in_full: bool = False
) -> None:
    """Add a point for each trial; with `in_full` its label holds the whole configuration, which takes more space."""
    if in_full:
        label = {"text": hover(frame), "hovertemplate": "%{text}<extra></extra>"}
    else:
        numbers = np.stack([frame["trial"], 100 * frame["score"].astype(float)], axis=1).astype(np.float32)
        text = f"<b>trial %{{customdata[0]:d}}</b>, {state}: %{{customdata[1]:.2f}}%<extra></extra>"
        label = {"customdata": numbers, "hovertemplate": text}
    size, opacity = (6, 0.45) if state == "pruned" else (8, 0.85)
    figure.add_scatter(
        x=np.asarray(x, dtype=np.float32), y=np.asarray(y, dtype=np.float32), mode="markers", name=name,
        marker={"color": STATE_COLORS[state], "size": size, "opacity": opacity}, **label,
    )  # fmt: skip


def places_of(frame: pd.DataFrame, name: str, *, jitter: float = 0.0) -> tuple["pd.Series[Any]", dict[str, Any]]:
    """Return the position of each trial on the axis of a parameter, and that axis.

    Choices stand at 0, 1, ..., spread by up to `jitter`; logarithmic parameters at their log10.
    """
    values = frame[name]
    if scale(frame, name) == "choices":
        names = choices(values)
        spread = jitter * (2 * ((frame["trial"] * 0.618034) % 1) - 1)
        axis: dict[str, Any] = {
            "tickvals": list(range(len(names))), "ticktext": [html.escape(text) for text in names],
            # Names on a narrow screen must not overlap.
            "tickangle": 0 if sum(map(len, names)) <= 30 else -35 if len(names) <= 8 else -90,
            "range": [-0.6, len(names) - 0.4],
        }  # fmt: skip
        if len(names) > 8:
            axis["tickfont"] = {"size": 10}
        return labels(values).map(names.index) + spread, axis
    numbers = values.astype(float)
    if scale(frame, name) == "linear":
        return numbers, {}
    places = pd.Series(np.log10(numbers), values.index)
    low, high = float(places.min()), float(places.max())
    digits = (1, 2, 5) if high - low < 2 else (1,)
    steps = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    ticks = [step for step in steps if low - 0.02 <= math.log10(step) <= high + 0.02]
    return places, {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{tick:g}" for tick in ticks]}
