"""Statistics of a study's trials: parameters, what pruning saved, the Pareto front.

Each function takes the frame of `trials_table.trials_frame`, a row for each trial.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fbsearch.config.goals import GOALS
from fbsearch.config.space import LEVELS, format_value, split_name

# A numeric parameter with at most this many different values is shown as a list of choices.
MAX_CHOICES = 8


def metric_of(frame: pd.DataFrame) -> str:
    """Return the name of the score, the first goal of the search."""
    return str(frame.attrs.get("metric", "val_accuracy"))


def metric_label(frame: pd.DataFrame) -> str:
    """Return the score's name for people: `validation accuracy`."""
    return GOALS[metric_of(frame)].label


def finished_trials(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the complete and the pruned trials."""
    return frame[frame["state"].isin(["complete", "pruned"])]


def parameters(frame: pd.DataFrame, *, varied: bool = True) -> list[str]:
    """Return the dotted names of the sampled parameters, `model.fractal_levels` as one; `varied`: those that differ."""
    names = [name for name in frame.columns if "." in name and not name.startswith(f"{LEVELS}.")]
    finished = finished_trials(frame)
    return [name for name in names if not varied or labels(finished[name]).nunique() > 1]


def short(name: str) -> str:
    """Shorten a dotted name for people: `train.learning_rate` to `learning rate`."""
    return split_name(name)[1].replace("_", " ")


def labels(values: "pd.Series[Any]") -> "pd.Series[str]":
    """Return a parameter's values as text; `null` is stored in a frame as NaN."""
    return values.map(format_value, na_action=None)


def scale(frame: pd.DataFrame, name: str) -> str:
    """Return how to show a parameter: `choices`, `linear`, or `log` if it was sampled so (`frame.attrs["log"]`)."""
    values = frame[name]
    is_number = not values.map(lambda value: isinstance(value, str | bool | np.bool_)).any() and values.notna().all()
    if not is_number or values.nunique() <= MAX_CHOICES:
        return "choices"
    return "log" if name in frame.attrs.get("log", ()) else "linear"


def choices(values: "pd.Series[Any]") -> list[str]:
    """Return the different values of a parameter as text: numbers by size, lists by length, words by the alphabet."""

    def order(label: str) -> tuple[int, float, str]:
        try:
            return (0, float(label), label)
        except ValueError:
            return (1, len(label) if label.startswith("[") else 0, label)

    return sorted(labels(values).unique(), key=order)


def ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the complete trials, best first."""
    return frame[frame["rank"].notna()].sort_values("rank")


def best_so_far(frame: pd.DataFrame) -> "pd.Series[float]":
    """Return, for each trial in the order of their numbers, the best score of a complete trial so far."""
    best: pd.Series[float] = frame["value"].where(frame["state"] == "complete").astype(float).cummax().ffill()
    return best


@dataclass(frozen=True)
class Saving:
    """The number of epochs that finished trials ran, and of those that pruning saved."""

    num_run: int
    num_saved: int
    seconds_saved: float

    @property
    def share(self) -> float:
        """The saved share of the epochs that all trials would have run without pruning."""
        return self.num_saved / max(1, self.num_run + self.num_saved)


def saved_by_pruning(frame: pd.DataFrame) -> Saving | None:
    """Return what pruning saved, a saved epoch at the mean time of its trial's epochs; None if no plan is stored."""
    done = finished_trials(frame)
    pruned = done[(done["state"] == "pruned") & done["planned_epochs"].notna() & (done["epochs"] > 0)]
    if done["planned_epochs"].isna().all():
        return None
    saved = (pruned["planned_epochs"] - pruned["epochs"]).clip(lower=0).astype(float)
    seconds = saved * pruned["seconds"].astype(float) / pruned["epochs"]
    return Saving(int(done["epochs"].sum()), int(saved.sum()), float(seconds.sum()))


def pareto_front(frame: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the complete trials that no trial of the same or lower cost beats in score, cheapest first."""
    known = frame[(frame["state"] == "complete") & frame[cost].notna()]
    ordered = known.sort_values([cost, "rank"])
    value = ordered["value"].astype(float)
    return ordered[value > value.cummax().shift(fill_value=-math.inf)]
