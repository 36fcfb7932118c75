"""Statistics of a study's trials: intervals, importances, what pruning saved, the Pareto front.

Each function takes the frame of `trials_table.trials_frame`, a row for each trial.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray

from fbsearch.config.space import LEVELS, format_value

# The standard normal quantile of a two-sided 95% interval.
Z = 1.959964
# A numeric parameter with at most this many different values is shown as a list of choices.
MAX_CHOICES = 8
MIN_IMPORTANCE_TRIALS = 20
MAX_IMPORTANCE_TRIALS = 1000
NUM_SHUFFLES = 499
# PED-ANOVA compares the best tenth of the trials with all; at least MIN_BEST trials, at most half.
MIN_BEST = 25


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
    return name.partition(".")[2].replace("_", " ")


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


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share counted on `count` independent cases (Wilson, 1927)."""
    centre = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, (centre - half) / (1 + Z**2 / count)), min(1.0, (centre + half) / (1 + Z**2 / count))


def ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the complete trials, best first."""
    return frame[frame["rank"].notna()].sort_values("rank")


def best_so_far(frame: pd.DataFrame) -> "pd.Series[float]":
    """Return, for each trial in the order of their numbers, the best score of a complete trial so far."""
    best: pd.Series[float] = frame["value"].where(frame["state"] == "complete").astype(float).cummax().ffill()
    return best


def shared_epoch(frame: pd.DataFrame) -> int | None:
    """Return the last epoch that every finished trial has reached, or None."""
    epochs = finished_trials(frame)["epochs"]
    return int(epochs.min()) if len(epochs) and epochs.min() > 0 else None


def accuracy_after(frame: pd.DataFrame, epoch: int) -> "pd.Series[float]":
    """Return the validation accuracy of each trial after an epoch (from 1); NaN if a trial did not reach it."""

    def look(history: list[dict[str, Any]]) -> Any:
        return history[epoch - 1].get("val_accuracy") if len(history) >= epoch else None

    return frame["history"].map(look).astype(float)


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


def importances(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how much each parameter mattered: a row for each basis and parameter, the most important first.

    Columns: `basis`: `early` (accuracy after the last epoch that all trials reached, with the pruned trials) or
    `final` (score of the complete trials alone). `share`: PED-ANOVA importance; the shares of a basis sum to 1.
    `explained`: share of the variance of the trials' ranks that only this parameter explains, in a linear model with
    all parameters. `chance`: 99% quantile of `explained` for shuffled ranks. `best`: the best values, as text.
    A basis with fewer than MIN_IMPORTANCE_TRIALS trials is left out; of many trials MAX_IMPORTANCE_TRIALS are sampled.
    Sources: Watanabe, Bansal, Hutter: PED-ANOVA (IJCAI 2023), in Optuna's form; Freedman and Lane (1983) on shuffling.
    """
    scores = {"final": frame["value"].where(frame["state"] == "complete")}
    epoch = shared_epoch(frame)
    if epoch is not None and (frame["state"] == "pruned").any():
        finished = frame["state"].isin(["complete", "pruned"])
        scores = {"early": accuracy_after(frame, epoch).where(finished)} | scores
    rows = [row for basis, score in scores.items() for row in _importance_rows(frame, score.astype(float), basis)]
    return pd.DataFrame(rows, columns=["basis", "parameter", "share", "explained", "chance", "best"])


def _importance_rows(frame: pd.DataFrame, scores: "pd.Series[float]", basis: str) -> list[dict[str, Any]]:
    known = scores[np.isfinite(scores)]
    if len(known) < MIN_IMPORTANCE_TRIALS or known.nunique() == 1:
        return []
    known = known.sample(min(len(known), MAX_IMPORTANCE_TRIALS), random_state=0)
    part = frame.loc[known.index]
    names = [name for name in parameters(frame) if labels(part[name]).nunique() > 1]
    if not names:
        return []
    shares = _ped_anova(part, known, names)
    ranks: NDArray[np.float64] = np.asarray(known.rank(), dtype=np.float64)
    columns = {name: _columns(part, name) for name in names}
    rows = []
    for name in names:
        others = [np.ones((len(ranks), 1)), *(columns[other] for other in names if other != name)]
        explained, chance = _explained(ranks, columns[name], np.hstack(others))
        row = {"basis": basis, "parameter": name, "share": shares[name], "explained": explained, "chance": chance}
        rows.append(row | {"best": _best_values(part, name, known)})
    return sorted(rows, key=lambda row: -row["explained"])


def _columns(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return a parameter as columns of a linear model: x and x² for numbers, one for each choice but the first."""
    kind, values = scale(frame, name), frame[name]
    if kind == "choices":
        text = labels(values).to_numpy()
        return np.stack([text == choice for choice in choices(values)[1:]], axis=1).astype(np.float64)
    places = values.astype(float).to_numpy()
    places = np.log(places) if kind == "log" else places
    places = (places - places.mean()) / places.std()
    return np.stack([places, places**2], axis=1)


def _explained(
    ranks: NDArray[np.float64], own: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the share of the ranks' variance that only the `own` columns explain, and what chance reaches."""

    def basis(columns: NDArray[np.float64]) -> NDArray[np.float64]:
        left, singular, _ = np.linalg.svd(columns, full_matrices=False)
        kept: NDArray[np.float64] = left[:, singular > 1e-9 * singular.max(initial=1e-300)]
        return kept

    known = basis(others)
    left, mine = (part - known @ (known.T @ part) for part in (ranks[:, None], own))
    direction = basis(np.where(np.abs(mine) < 1e-9, 0, mine))
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.repeat(left, NUM_SHUFFLES, axis=1), axis=0)
    reached = ((direction.T @ np.hstack([left, shuffled])) ** 2).sum(axis=0) / ((ranks - ranks.mean()) ** 2).sum()
    return float(reached[0]), float(np.quantile(reached[1:], 0.99))


def _best_values(frame: pd.DataFrame, name: str, score: "pd.Series[float]") -> str:
    """Describe the best values: of choices by median score; of numbers the middle half of the best quarter."""
    values = frame[name]
    if scale(frame, name) == "choices":
        by_choice = score.groupby(labels(values)).median().sort_values()
        return f"best {by_choice.index[-1]}, worst {by_choice.index[0]}"
    top = values[score >= score.quantile(0.75)].astype(float)
    return f"best {top.quantile(0.25):.3g} to {top.quantile(0.75):.3g}"


def _stand_in(frame: pd.DataFrame, score: "pd.Series[float]", names: list[str]) -> optuna.Study:
    """Return a study in memory with each parameter as one dimension, `model.fractal_levels` as a choice."""
    columns: dict[str, pd.Series[Any]] = {}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in names:
        kind = scale(frame, name)
        if kind == "choices":
            columns[name] = labels(frame[name])
            distributions[name] = optuna.distributions.CategoricalDistribution(choices(frame[name]))
        else:
            columns[name] = frame[name].astype(float)
            low, high = columns[name].min(), columns[name].max()
            distributions[name] = optuna.distributions.FloatDistribution(low, high, log=kind == "log")
    params: list[dict[Any, Any]] = pd.DataFrame(columns).to_dict("records")
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.trial.create_trial(value=value, params=one, distributions=distributions)
        for value, one in zip(score, params, strict=True)
    )
    return study


def _ped_anova(frame: pd.DataFrame, score: "pd.Series[float]", names: list[str]) -> dict[str, float]:
    """Return PED-ANOVA importances that sum to 1; all 0 if the best trials differ from all trials in nothing."""
    quantile = min(0.5, max(0.1, MIN_BEST / len(score)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a value that was tried once
        raw = evaluator.evaluate(_stand_in(frame, score, names))
    total = sum(raw.values()) or 1.0
    return {name: value / total for name, value in raw.items()}


def pareto_front(frame: pd.DataFrame, cost: str) -> pd.DataFrame:
    """Return the complete trials that no trial of the same or lower cost beats in score, cheapest first."""
    known = frame[(frame["state"] == "complete") & frame[cost].notna()]
    ordered = known.sort_values([cost, "rank"])
    value = ordered["value"].astype(float)
    return ordered[value > value.cummax().shift(fill_value=-math.inf)]
