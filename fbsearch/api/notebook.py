"""A study in the output of a notebook's cell: its counts, its best trial, the curve of its search, what mattered."""

import math
from collections.abc import Sequence
from html import escape

import optuna
import pandas as pd

from fbsearch.errors import printable
from fbsearch.report import text as sections
from fbsearch.report.statistics import best_so_far, labels, metric_label, metric_of, parameters, ranked, short
from fbsearch.report.trials_table import trials_frame
from fbsearch.report.worth import estimate_worth
from fbsearch.study.study import stored_dataset
from fbsearch.winners.intervals import wilson_interval

WIDTH, HEIGHT, MARGIN = 480, 140, 8
MAX_PARTS = 5
BEST_COLOR, TRIAL_COLOR = "#2a78d6", "#8894a0"


def study_html(study: optuna.Study) -> str:
    """Return a study as HTML without scripts. Its colours are readable on light and dark ground."""
    frame, dataset = trials_frame(study), stored_dataset(study)
    counts = frame["state"].value_counts()
    states = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no trial yet"
    head = f"<b>{_text(study.study_name)}</b>: {_text(states)}"
    best = ranked(frame).head(1)
    if best.empty:
        return f"<div>{head}</div>"
    num_val = dataset.get("num_val") if metric_of(frame) == "val_accuracy" else None
    return f"<div>{head}{_best(best, num_val)}{_curve(frame)}{_worth(frame)}</div>"


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _best(best: pd.DataFrame, num_val: int | None) -> str:
    """Return the accuracy of the best trial with its interval, and its sampled values."""
    row = best.iloc[0]
    interval = ""
    if num_val:
        low, high = wilson_interval(float(row["value"]), num_val)
        interval = f" (95% interval {low:.2%} to {high:.2%}, on {num_val:,} images)"
    values = ", ".join(
        f"{_text(short(name))} {_text(labels(best[name]).iloc[0])}" for name in parameters(best, varied=False)
    )
    name = metric_label(best)
    return f"<p>Best: <b>{row['value']:.2%}</b> {name}{interval}, trial {row['trial']}<br>{values}</p>"


def _curve(frame: pd.DataFrame) -> str:
    """Return an SVG of the score of each trial, and of the best so far, over the trials in their order."""
    shown = frame[frame["state"].isin(["complete", "pruned"]) & frame["score"].notna()]
    if len(shown) < 2:
        return ""
    scores, best = shown["score"].tolist(), best_so_far(shown).tolist()
    low, high = min(scores), max(scores)

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        wide, tall = (WIDTH - 2 * MARGIN) / (len(values) - 1), (HEIGHT - 2 * MARGIN) / max(high - low, 1e-9)
        return [(MARGIN + i * wide, HEIGHT - MARGIN - (value - low) * tall) for i, value in enumerate(values)]

    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{TRIAL_COLOR}"/>' for x, y in points(scores))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points(best) if not math.isnan(y))
    title = f"{metric_label(frame)} of {len(scores)} finished trials, from {low:.2%} to {high:.2%}, and the best so far"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{title}">{dots}'
        f'<polyline points="{line}" fill="none" stroke="{BEST_COLOR}" stroke-width="1.5"/></svg>'
        f"<br><small>{title}</small>"
    )


def _worth(frame: pd.DataFrame) -> str:
    """Return what the parts are worth that matter most, or why that is not known."""
    worths = estimate_worth(frame)
    if not worths.parts:
        return f"<p>What mattered is not known: {_text(worths.reason)}</p>"
    lines = map(sections.describe_part, worths.parts[:MAX_PARTS])
    rows = "".join(f"<li><b>{_text(name)}</b>: {_text(said)}</li>" for name, said in lines)
    return f"<p>What mattered, surest first:</p><ul>{rows}</ul>"
