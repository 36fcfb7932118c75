"""The Pareto front of a search with several objectives: a figure for each pair of them, and the rows of a table.

Each takes the frame of `trials_table.trials_frame`.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fbsearch.config.goals import GOALS, METRICS, format_goal
from fbsearch.report import style
from fbsearch.report.statistics import labels, parameters, short
from fbsearch.study.front import Front

_COLUMNS = {"parameters": "num_parameters"}


def draw_fronts(frame: pd.DataFrame, front: Front) -> Iterator[tuple[str, go.Figure]]:
    """Yield (name, figure) for each pair of objectives."""
    for y, x in itertools.combinations(front.goals, 2):
        yield f"front {x} {y}", plot_front(frame, front, x=x, y=y)


def plot_front(frame: pd.DataFrame, front: Front, *, x: str, y: str) -> go.Figure:
    """Draw the complete trials over two objectives; the front's are orange, its knee and its best are named."""
    names = [GOALS[name].label for name in (x, y)]
    title = names[1][0].upper() + names[1][1:]
    figure = style.figure_of(f"{title} and {names[0]}", height=420, x=names[0], y=names[1])
    complete = frame[frame["state"] == "complete"]
    others = complete[~complete["trial"].isin(front.values)]
    style.scatter(
        figure, others, _places(others, front, x), _places(others, front, y), state="complete", name="complete"
    )
    own = complete[complete["trial"].isin(front.values)].copy()
    places_x, places_y = (_places(own, front, goal) for goal in (x, y))
    order = places_x.sort_values().index
    figure.add_scatter(
        x=places_x[order].to_numpy(), y=places_y[order].to_numpy(), name="Pareto front",
        text=style.hover(own.loc[order]),
        mode="lines+markers" if len(front.goals) == 2 else "markers", hovertemplate="%{text}<extra></extra>",
        line={"color": style.BEST, "width": 2, "shape": "hv"}, marker={"size": 10, "color": style.BEST},
    )  # fmt: skip
    _name_marks(figure, own, front, places_x, places_y)
    return figure.update_layout(xaxis=_axis(complete, front, x), yaxis=_axis(complete, front, y))


def _name_marks(
    figure: go.Figure, own: pd.DataFrame, front: Front, places_x: "pd.Series[float]", places_y: "pd.Series[float]"
) -> None:
    """Write `best` and `knee` beside their trials."""
    words: dict[int, str] = {next(iter(front.values)): "best"}
    if front.knee is not None:
        words[front.knee] = "best, knee" if front.knee in words else "knee"
    rows = [own.index[own["trial"] == number][0] for number in words]
    figure.add_scatter(
        x=places_x[rows].to_numpy(), y=places_y[rows].to_numpy(), mode="markers+text", showlegend=False,
        text=[f"<b>{word}</b>, trial {number}" for number, word in words.items()], textposition="bottom right",
        marker={"size": 16, "color": style.BEST, "symbol": "circle-open", "line": {"width": 2}}, hoverinfo="skip",
        cliponaxis=False,
    )  # fmt: skip


def _column(front: Front, goal: str) -> str:
    return "value" if goal == front.goals[0] else _COLUMNS.get(goal, goal)


def _places(frame: pd.DataFrame, front: Front, goal: str) -> "pd.Series[float]":
    values = frame[_column(front, goal)].astype(float)
    return pd.Series(style.stretch(values), frame.index) if goal in METRICS else values


def _axis(frame: pd.DataFrame, front: Front, goal: str) -> dict[str, Any]:
    if goal in METRICS:
        return style.accuracy_axis(frame[_column(front, goal)].astype(float))
    if not GOALS[goal].is_cost:
        return {}
    values = frame[_column(front, goal)].astype(float)
    return {"type": "log", "tickformat": "~s", "dtick": "D2" if values.max() < 100 * values.min() else 1}


def front_rows(frame: pd.DataFrame, front: Front) -> list[dict[str, Any]]:
    """Return the rows of the front's table, the best of the first objective first."""
    by_trial = frame.set_index("trial")
    sampled = parameters(frame)
    rows: list[dict[str, Any]] = []
    for number, values in front.values.items():
        marks = ["best"] * (not rows) + ["knee"] * (number == front.knee)
        trial = by_trial.loc[[number]]
        rows.append(
            {
                "trial": number,
                "mark": ", ".join(marks),
                "values": [format_goal(goal, value) for goal, value in zip(front.goals, values, strict=True)],
                "sampled": ", ".join(f"{short(name)} {labels(trial[name]).iloc[0]}" for name in sampled),
            }
        )
    return rows
