"""What the trials of a study say, as numbers: intervals, importances, what pruning saved.

Takes the frame that `report.trials_frame` makes, a row for each trial. Knows nothing of databases, figures and HTML.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray

from fbsearch.config.space import LEVELS

# Two-sided 95%.
Z = 1.959964
# A numeric parameter with at most this many different values is shown as a list of choices.
MAX_CHOICES = 8
MIN_IMPORTANCE_TRIALS = 20
MAX_IMPORTANCE_TRIALS = 1000
NUM_SHUFFLES = 499
# PED-ANOVA compares a tenth of the trials, at least so many, at most half, with all.
MIN_BEST = 25


def parameters(frame: pd.DataFrame, *, varied: bool = True) -> list[str]:
    """The dotted names that were sampled, levels as the one field they are; `varied`: with two values or more."""
    names = [name for name in frame.columns if "." in name and not name.startswith(f"{LEVELS}.")]
    finished = frame[frame["state"].isin(["complete", "pruned"])]
    return [name for name in names if not varied or labels(finished[name]).nunique() > 1]


def short(name: str) -> str:
    """A dotted name for people: `train.learning_rate` is `learning rate`."""
    return name.partition(".")[2].replace("_", " ")


def labels(values: "pd.Series[Any]") -> "pd.Series[str]":
    """Values of a parameter as text; what was sampled as `null` stands empty in a frame."""

    def text(value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool | np.bool_):
            return str(value).lower()
        return "null" if value is None or math.isnan(value) else f"{value:.4g}"

    return values.map(text, na_action=None)


def scale(frame: pd.DataFrame, name: str) -> str:
    """How a parameter is shown: `choices`, `linear`, or `log` where it was sampled so (`frame.attrs["log"]`)."""
    values = frame[name]
    numbers = pd.to_numeric(values, errors="coerce")
    is_number = not values.map(lambda value: isinstance(value, str | bool | np.bool_)).any() and numbers.notna().all()
    if not is_number or numbers.nunique() <= MAX_CHOICES:
        return "choices"
    return "log" if name in frame.attrs.get("log", ()) else "linear"


def choices(values: "pd.Series[Any]") -> list[str]:
    """The different values of a parameter as text: numbers by size, words by the alphabet."""
    text = labels(values)

    def order(label: str) -> tuple[int, float, str]:
        try:
            return (0, float(label), label)
        except ValueError:
            return (1, float(len(label)) if label.startswith("[") else 0.0, label)

    return sorted(text.unique(), key=order)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share that was counted on `count` independent cases (Wilson, 1927)."""
    centre = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, (centre - half) / (1 + Z**2 / count)), min(1.0, (centre + half) / (1 + Z**2 / count))


def ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """The complete trials, best first."""
    return frame[frame["rank"].notna()].sort_values("rank")


def best_so_far(frame: pd.DataFrame) -> "pd.Series[float]":
    """The best score of a complete trial up to each trial, in the order of their numbers."""
    best: pd.Series[float] = frame["value"].where(frame["state"] == "complete").astype(float).cummax().ffill()
    return best


def shared_epoch(frame: pd.DataFrame) -> int | None:
    """The last epoch that every finished trial has reached; None where there is none."""
    epochs = frame["epochs"][frame["state"].isin(["complete", "pruned"])]
    return int(epochs.min()) if len(epochs) and epochs.min() > 0 else None


def accuracy_after(frame: pd.DataFrame, epoch: int) -> "pd.Series[float]":
    """Validation accuracy of each trial after an epoch (from 1), NaN where a trial has not got there."""

    def look(history: list[dict[str, Any]]) -> float:
        value = history[epoch - 1].get("val_accuracy") if len(history) >= epoch else None
        return math.nan if value is None else float(value)

    return frame["history"].map(look).astype(float)


@dataclass(frozen=True)
class Saving:
    """Epochs that finished trials have run, and those that pruned trials have been spared."""

    num_run: int
    num_saved: int
    seconds_saved: float

    @property
    def share(self) -> float:
        """What was saved, of what all trials would have run."""
        return self.num_saved / max(1, self.num_run + self.num_saved)


def saved_by_pruning(frame: pd.DataFrame) -> Saving | None:
    """What pruning saved; a spared epoch counts the mean time of the trial's own epochs. None: no plan is known."""
    done = frame[frame["state"].isin(["complete", "pruned"])]
    pruned = done[(done["state"] == "pruned") & done["planned_epochs"].notna() & (done["epochs"] > 0)]
    if done["planned_epochs"].isna().all():
        return None
    spared = (pruned["planned_epochs"] - pruned["epochs"]).clip(lower=0).astype(float)
    seconds = spared * pruned["seconds"].astype(float) / pruned["epochs"]
    return Saving(int(done["epochs"].sum()), int(spared.sum()), float(seconds.sum()))


# ------------------------------------------------------------------------------------------------- what mattered


def importances(frame: pd.DataFrame) -> pd.DataFrame:
    """How much each parameter mattered: a row for each basis and parameter, what matters most first.

    Basis `early` is the accuracy after the last epoch that all trials reached, so it includes what was pruned; `final`
    is the score of complete trials alone. `share` is the PED-ANOVA importance, which sums to 1. `explained` is the
    share of the trials' order (of the variance of their ranks) that only this parameter explains, in a linear model of
    all of them; `chance` is what shuffled ranks reach in one case of 100. `best` says in words which values did best.
    A basis with fewer than MIN_IMPORTANCE_TRIALS trials is absent; of more than MAX_IMPORTANCE_TRIALS some are drawn.
    Source: Watanabe, Bansal, Hutter: PED-ANOVA (IJCAI 2023), in Optuna's form; Freedman and Lane (1983) on shuffling.
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
        best = _best_values(part, name, known)
        rows.append({"basis": basis, "parameter": name, "share": shares[name], "explained": explained})
        rows[-1] |= {"chance": chance, "best": best}
    return sorted(rows, key=lambda row: -row["explained"])


def _columns(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A parameter as columns of a linear model: a parabola for numbers, one column for each choice but the first."""
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
    """The share of the ranks' variance that `own` columns explain beyond `others`, and what chance reaches."""

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
    """Which values did best: choices by their median score; numbers, where the best quarter has its middle half."""
    values = frame[name]
    if scale(frame, name) == "choices":
        by_choice = score.groupby(labels(values)).median().sort_values()
        return f"best {by_choice.index[-1]}, worst {by_choice.index[0]}"
    top = values[score >= score.quantile(0.75)].astype(float)
    return f"best {top.quantile(0.25):.3g} to {top.quantile(0.75):.3g}"


def _stand_in(frame: pd.DataFrame, score: "pd.Series[float]", names: list[str]) -> optuna.Study:
    """A study in memory with each parameter as one dimension; levels, which hang on each other, as one choice."""
    columns: dict[str, list[Any]] = {}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in names:
        kind = scale(frame, name)
        if kind == "choices":
            columns[name] = labels(frame[name]).tolist()
            distributions[name] = optuna.distributions.CategoricalDistribution(choices(frame[name]))
        else:
            columns[name] = frame[name].astype(float).tolist()
            low, high = min(columns[name]), max(columns[name])
            distributions[name] = optuna.distributions.FloatDistribution(low, high, log=kind == "log")
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        optuna.trial.create_trial(
            value=value, params={name: columns[name][row] for name in names}, distributions=distributions
        )
        for row, value in enumerate(score)
    )
    return study


def _ped_anova(frame: pd.DataFrame, score: "pd.Series[float]", names: list[str]) -> dict[str, float]:
    """Importances that sum to 1, all 0 where there are none: of what sets the best MIN_BEST trials or tenth apart."""
    quantile = min(0.5, max(0.1, MIN_BEST / len(score)))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that values were tried once, which the model of the ranks allows for
        raw = evaluator.evaluate(_stand_in(frame, score, names))
    total = sum(raw.values()) or 1.0
    return {name: value / total for name, value in raw.items()}


# -------------------------------------------------------------------------------------------------- cost


def pareto_front(frame: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The complete trials that no other beats in score at the same cost or less, cheapest first."""
    known = frame[(frame["state"] == "complete") & frame[cost].notna()]
    ordered = known.sort_values([cost, "rank"])
    value = ordered["value"].astype(float)
    return ordered[value > value.cummax().shift(fill_value=-math.inf)]
