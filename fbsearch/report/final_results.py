"""Results of `fbsearch train` and of the comparison with baselines, read for a report, and their figures."""

import html
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fbsearch.errors import ConfigError
from fbsearch.report.mistakes import Errors
from fbsearch.report.statistics import ranked
from fbsearch.report.style import BEST, COMPLETE, NEUTRAL, PRUNED, figure_of
from fbsearch.winners.error_analysis import read_analysis
from fbsearch.winners.records import COMPARISON_NAME, SUMMARY_NAME, Comparison, Competitor, Retraining, read_record

T = TypeVar("T")


@dataclass(frozen=True)
class Retrained:
    """The results of a study. `damaged` has a line for each file that could not be read.

    `errors` says where the search's best trial errs, or the first one that was trained; None where that is not stored.
    """

    trainings: list[Retraining] = field(default_factory=list)
    comparison: Comparison | None = None
    damaged: list[str] = field(default_factory=list)
    errors: Errors | None = None

    def winner(self, frame: pd.DataFrame) -> Retraining | None:
        """Return the training of the search's best trial, or None."""
        best = ranked(frame)["trial"].head(1)
        return next((one for one in self.trainings if len(best) and one.trial == best.item()), None)


def read_retrained(folder: Path, frame: pd.DataFrame) -> Retrained:
    """Read the results in a study's folder; trainings that do not belong to a trial of `frame` are left out."""
    damaged: list[str] = []

    def read(name: str, kind: type[T]) -> T | None:
        try:
            return read_record(folder / name, kind, way_out="it is left out")
        except ConfigError as error:
            damaged.append(str(error))
            return None

    known = []
    for one in read(SUMMARY_NAME, list[Retraining]) or []:
        value = frame["value"][(frame["trial"] == one.trial) & (frame["state"] == "complete")]
        if len(value) and math.isclose(value.item(), one.search_value):
            known.append(one)
        else:
            damaged.append(
                f"{folder / SUMMARY_NAME}: rank {one.rank}, trial {one.trial} is of another search; it is left out"
            )
    found = Retrained(known, read(COMPARISON_NAME, Comparison), damaged)
    shown = found.winner(frame) or next(iter(known), None)
    if shown is None:
        return found
    try:
        analysis = read_analysis(shown.folders(folder))
    except ConfigError as error:
        damaged.append(str(error))
        return found
    return found if analysis is None else replace(found, errors=Errors(shown, analysis))


def plot_trainings(trainings: list[Retraining]) -> go.Figure:
    """Draw the accuracy of each retrained configuration: each seed, their mean and deviation, and in the search."""
    names = [f"rank {one.rank}, trial {one.trial}" for one in trainings]
    figure = figure_of("Retrained at full budget", height=150 + 44 * len(names), x="accuracy")
    for name, one in zip(names, trainings, strict=True):
        figure.add_scatter(
            x=[100 * result.accuracy for result in one.results], y=[name] * len(one.results), mode="markers",
            marker={"color": PRUNED, "size": 6}, name="a seed", legendgroup="seed", showlegend=name == names[0],
            customdata=[result.seed for result in one.results],
            hovertemplate="seed %{customdata}: %{x:.2f}%<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[100 * one.search_value for one in trainings], y=names, mode="markers", name="in the search, validation",
        marker={"color": COMPLETE, "size": 9, "symbol": "diamond-open", "line": {"width": 2}},
        hovertemplate="%{y}: %{x:.2f}% in the search<extra></extra>",
    )  # fmt: skip
    _add_means(figure, names, trainings, colors=[BEST] * len(names), name="mean and deviation of the seeds")
    return figure


def plot_comparison(comparison: Comparison) -> go.Figure:
    """Draw the mean accuracy of the winner and of each trained baseline, with the standard deviation of the seeds."""
    scored = [one for one in comparison.rows if one.failure is None and one.accuracy_mean is not None]
    shown = [one for one in scored if math.isfinite(one.accuracy_mean or 0)]
    shown.sort(key=lambda one: -(one.accuracy_mean or 0))
    names = [html.escape(one.name) for one in shown]
    figure = figure_of("Winner and baselines", height=120 + 40 * len(shown), x=f"{comparison.scored_on} accuracy")
    colors = [BEST if one.verdict == "reference" else COMPLETE for one in shown]
    _add_means(figure, names, shown, colors=colors, name="mean and deviation of the seeds")
    return figure.update_layout(showlegend=False, margin_t=36)


def _add_means(
    figure: go.Figure, names: list[str], rows: "list[Retraining] | list[Competitor]", *, colors: list[str], name: str
) -> None:
    deviations = [100 * (one.accuracy_std or 0) for one in rows]
    figure.add_scatter(
        x=[100 * (one.accuracy_mean or 0) for one in rows], y=names, mode="markers", name=name,
        marker={"color": colors, "size": 11},
        error_x={"array": deviations, "thickness": 2, "color": NEUTRAL},
        customdata=np.array(deviations),
        hovertemplate="%{y}: %{x:.2f} \N{PLUS-MINUS SIGN} %{customdata:.2f}%<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        xaxis={"ticksuffix": "%"},
        yaxis={"autorange": "reversed", "showgrid": False, "type": "category"},
        legend={"traceorder": "normal"},
    )
