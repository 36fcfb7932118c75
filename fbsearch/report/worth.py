"""What each searched part is worth: differences in accuracy at equal compute, with intervals.

A linear model explains the accuracy of all finished trials, complete and pruned, at one point of their training: the
last that all of them reached, as a share of the planned epochs. That is early where a pruner stops trials early. Only
the better trials reach a later point, and trials that are chosen by accuracy say little about what accuracy depends
on; for the same reason no trial is taken at its own last epoch.

The model adds up a term for each choice and two, x and x², for each number, so that a part is not given the merit of
what was tried together with it: a sampler that learns, such as TPE, repeats good combinations. Compute is one more
number, the logarithm of the FLOPs spent until then. A part that doubles the cost must be better than what twice as
much brings elsewhere. `model.base_channels` has no term of its own, since it is how compute is spent; the row "compute"
says what twice the median brings. Where the study gives all trials the same compute (`train.budget`), the channels are
a part like any other.

Intervals are of heteroscedasticity-consistent standard errors (HC3: MacKinnon and White, 1985), as some choices scatter
more than others, with quantiles of Student's t; those of one part hold together in 95 of 100 studies (Dunnett, 1955),
so that one of them beside 0 is evidence that the part matters. Assumed is that parts add up: what a part is worth
together with a certain other one is not asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from numpy.typing import NDArray

from fbsearch.config.space import split_name
from fbsearch.config.unused_fields import unused_model_fields
from fbsearch.report.statistics import choices, finished_trials, labels, metric_of, parameters, scale, short

COMPUTE = "compute"
CHANNELS = "model.base_channels"
MIN_TRIALS = 20
# A choice that fewer trials have made is not compared; a model with fewer trials a term is not fitted.
MIN_TRIALS_A_CHOICE = 4
MIN_TRIALS_A_TERM = 2
# Compute is left out where the parts explain all but this share of its variance: it cannot be told from them.
MIN_OWN_VARIANCE = 0.05
LEVEL = 0.95
NUM_DRAWS = 20_000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The accuracy of one choice less that of the reference, in [-1, 1], with its 95% interval."""

    choice: str
    mean: float
    low: float
    high: float
    num_trials: int

    @property
    def is_sure(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class PartWorth:
    """What the choices of one part are worth against `reference`; `part` is a dotted name, or COMPUTE."""

    part: str
    reference: str
    rows: tuple[Difference, ...]

    @property
    def name(self) -> str:
        """The part's name for people."""
        return short(self.part) or self.part

    @property
    def is_sure(self) -> bool:
        """Whether there is evidence that the part matters."""
        return any(row.is_sure for row in self.rows)

    @property
    def bound(self) -> float:
        """The largest difference that the intervals allow."""
        return max(max(-row.low, row.high) for row in self.rows)

    @property
    def distance(self) -> float:
        """The distance of the surest interval from 0; negative where every interval holds 0."""
        return max(max(row.low, -row.high) for row in self.rows)


@dataclass(frozen=True)
class Worths:
    """The worth of all parts that were compared, the surest first; without parts, `reason` says why.

    Compared are `num_trials` trials after `share` of their planned epochs; `when` says so in words. `skipped` names
    the parts whose choices were tried too rarely, or never apart from another part.
    """

    parts: tuple[PartWorth, ...] = ()
    reason: str = ""
    num_trials: int = 0
    share: float = 1.0
    when: str = ""
    at_equal_compute: bool = True
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Factor:
    """A part as `columns` [trial, term] of the model, all 0 for the reference; `points` are (choice, terms, trials)."""

    name: str
    columns: Array
    reference: str = ""
    points: list[tuple[str, Array, int]] = field(default_factory=list)


def estimate_worth(frame: pd.DataFrame) -> Worths:
    """Return what each searched part is worth in the trials of `trials_table.trials_frame`.

    A choice is compared with `none` or `false` where that was tried, otherwise with the most frequent one; of numbers
    the quartiles of the tried values with their median.
    """
    done = finished_trials(frame)
    if done["planned_epochs"].isna().any():
        return Worths(reason="Some trials do not say how many epochs they were to have: an old version stored them.")
    share = common_share(done)
    epochs = _epochs_at(done, share)
    accuracy = _accuracy_at(done, epochs, share)
    done = done[np.isfinite(accuracy)]
    accuracy, epochs = accuracy[done.index], epochs[done.index]
    if len(done) < MIN_TRIALS:
        return Worths(reason=f"{len(done)} finished trials are too few: a comparison needs {MIN_TRIALS}.")
    if accuracy.nunique() == 1:
        return Worths(reason="All trials have the same accuracy.")
    parts = [_factor(done, name) for name in parameters(done)]
    parts = [part for part in parts if part.points]
    compute = _compute(done, epochs)
    others = [part for part in parts if part.name != CHANNELS]
    is_separate = compute is not None and _own_variance(compute.columns[:, :1], others) >= MIN_OWN_VARIANCE
    factors = [*others, compute] if compute is not None and is_separate else parts
    num_terms = 1 + sum(part.columns.shape[1] for part in factors)
    if len(done) < MIN_TRIALS_A_TERM * num_terms:
        return Worths(
            reason=f"{len(done)} finished trials are too few for the {len(factors)} parts that were searched: a "
            f"comparison needs {MIN_TRIALS_A_TERM * num_terms}."
        )
    found = fit_factors(factors, np.asarray(accuracy, dtype=float)) if factors else []
    known = {part.part for part in found} | ({CHANNELS} if is_separate else set())
    return Worths(
        parts=tuple(sorted(found, key=lambda part: -part.distance)),
        reason="" if found else "No part was tried in two ways often enough.",
        num_trials=len(done),
        share=share,
        when=_describe_point(done, epochs, share),
        at_equal_compute=is_separate or (compute is None and _knows_compute(done)),
        skipped=tuple(name for name in parameters(done) if name not in known),
    )


def common_share(done: pd.DataFrame) -> float:
    """Return the share of their planned epochs that all finished trials reached; a complete trial is at its end."""
    pruned = done[done["state"] == "pruned"]
    return float((pruned["epochs"] / pruned["planned_epochs"]).min()) if len(pruned) else 1.0


def _describe_point(done: pd.DataFrame, epochs: "pd.Series[float]", share: float) -> str:
    if share == 1:
        return "at the end of their training"
    if epochs.nunique() == done["planned_epochs"].nunique() == 1:
        return f"after epoch {epochs.iloc[0]:.0f} of {done['planned_epochs'].iloc[0]:.0f}"
    return f"after {share:.0%} of their epochs"


def _epochs_at(done: pd.DataFrame, share: float) -> "pd.Series[float]":
    """Return the number of epochs of each trial at a share of its plan, at least 1, at most those it trained."""
    planned = (done["planned_epochs"] * share + 1e-9) // 1
    return planned.clip(lower=1).clip(upper=done["epochs"].clip(lower=1)).astype(float)


def _accuracy_at(done: pd.DataFrame, epochs: "pd.Series[float]", share: float) -> "pd.Series[float]":
    """Return the score after `epochs`; at a share of 1 that of the end, which may be the best epoch's."""
    if share == 1:
        return done["score"].astype(float)
    pairs = zip(done["history"], epochs, strict=True)
    metric = metric_of(done)
    found = [history[int(epoch) - 1].get(metric) if len(history) >= epoch else None for history, epoch in pairs]
    return pd.Series(found, done.index, dtype=float)


def _compute(done: pd.DataFrame, epochs: "pd.Series[float]") -> _Factor | None:
    """Return the logarithm of each trial's training FLOPs; None if they are equal by the study's budget or by chance.

    None, too, where they are not known: see `_knows_compute`.
    """
    if any(config.get("train", {}).get("budget") for config in done["config"]):
        return None
    doublings = np.log2(np.asarray(epochs * done["flops"].where(done["flops"] > 0), dtype=float))
    if not np.isfinite(doublings).all() or np.ptp(doublings) < 0.01:
        return None
    x = doublings - np.median(doublings)
    return _Factor(COMPUTE, np.stack([x, x**2], axis=1), "1x", [("2x", np.ones(2), len(done))])


def _knows_compute(done: pd.DataFrame) -> bool:
    """Return True if the trials have FLOPs, which old versions did not store, or the same budget."""
    return bool((done["flops"] > 0).all()) or any(config.get("train", {}).get("budget") for config in done["config"])


def _factor(done: pd.DataFrame, name: str) -> _Factor:
    """Return a searched field as a factor, without points if nothing can be compared."""
    section, field = split_name(name)
    acts = np.array([section != "model" or field not in _unused_fields(config) for config in done["config"]])
    return _choice_factor(done, name, acts) if scale(done, name) == "choices" else _number_factor(done, name, acts)


def _unused_fields(config: dict[str, Any]) -> set[str]:
    model = config.get("model")  # missing where an old version stored none
    return set() if model is None else unused_model_fields(model)


def _choice_factor(done: pd.DataFrame, name: str, acts: NDArray[np.bool_]) -> _Factor:
    """Return choices as one column each but for the reference; all rare ones share a column that is not compared."""
    text = labels(done[name]).to_numpy()
    counts = {choice: int((acts & (text == choice)).sum()) for choice in choices(done[name])}
    common = [choice for choice, count in counts.items() if count >= MIN_TRIALS_A_CHOICE]
    if len(common) < 2:
        return _Factor(name, np.zeros((len(done), 0)))
    plain = [choice for choice in ("none", "false") if choice in common]
    reference = plain[0] if plain else max(common, key=lambda choice: counts[choice])
    compared = [choice for choice in common if choice != reference]
    rare = acts & ~np.isin(text, common)
    columns = [acts & (text == choice) for choice in compared] + ([rare] if rare.any() else [])
    units = np.eye(len(columns))
    points = [(choice, units[i], counts[choice]) for i, choice in enumerate(compared)]
    return _Factor(name, np.stack(columns, axis=1).astype(float), reference, points)


def _number_factor(done: pd.DataFrame, name: str, acts: NDArray[np.bool_]) -> _Factor:
    """Return numbers as x and x² around their median, compared at their quartiles."""
    values = done[name].to_numpy(dtype=float)
    is_log = scale(done, name) == "log"
    low, middle, high = np.quantile(values[acts], (0.25, 0.5, 0.75), method="nearest") if acts.any() else (0, 0, 0)
    if low == high:
        return _Factor(name, np.zeros((len(done), 0)))
    places, ends = (np.log(part) if is_log else part for part in (values, np.array([low, middle, high])))
    x, at = ((part - ends[1]) / (ends[2] - ends[0]) for part in (places, ends))
    columns = np.where(acts[:, None], np.stack([x, x**2], axis=1), 0.0)
    points = [
        (f"{value:.3g}", np.array([place, place**2]), int(acts.sum()))
        for value, place in zip((low, high), at[[0, 2]], strict=True)
        if place != 0
    ]
    return _Factor(name, columns, f"{middle:.3g}", points)


def _own_variance(column: Array, others: Sequence[_Factor]) -> float:
    """Return the share of a column's variance that a linear model of the other factors leaves."""
    design = np.hstack([np.ones((len(column), 1)), *(part.columns for part in others)])
    rest = column - design @ np.linalg.lstsq(design, column, rcond=None)[0]
    return float((rest**2).sum() / ((column - column.mean()) ** 2).sum())


def fit_factors(factors: Sequence[_Factor], accuracy: Array) -> list[PartWorth]:
    """Fit the accuracies by the factors' columns, and return the differences that the data determine."""
    design = np.hstack([np.ones((len(accuracy), 1)), *(part.columns for part in factors)])
    inverse = np.linalg.pinv(design)
    known = inverse @ design  # projects on what the data determine
    freedom = len(accuracy) - np.linalg.matrix_rank(design)
    leverage = np.einsum("nt,tn->n", design, inverse).clip(max=1 - 1e-9)
    # A trial that alone determines a term is fitted exactly, and says nothing of the scatter.
    rest = np.where(leverage < 1 - 1e-6, (accuracy - design @ (inverse @ accuracy)) / (1 - leverage), 0.0)
    spread = inverse * rest
    covariance = spread @ spread.T
    found, start = [], 1
    for part in factors:
        stop = start + part.columns.shape[1]
        contrasts = np.zeros((len(part.points), design.shape[1]))
        contrasts[:, start:stop] = [terms for _, terms, _ in part.points]
        start = stop
        keep = np.abs(contrasts @ known - contrasts).max(axis=1) < 1e-6
        means = contrasts @ (inverse @ accuracy)
        errors = np.sqrt(np.einsum("it,tu,iu->i", contrasts, covariance, contrasts))
        keep &= errors > 0
        if keep.any():
            half = errors * _joint_quantile(contrasts[keep] @ covariance @ contrasts[keep].T, freedom)
            rows = [
                Difference(choice, float(mean), float(mean - width), float(mean + width), count)
                for (choice, _, count), mean, width, ok in zip(part.points, means, half, keep, strict=True)
                if ok
            ]
            found.append(PartWorth(part.name, part.reference, tuple(rows)))
    return found


def _joint_quantile(covariance: Array, freedom: int) -> float:
    """Return how many standard errors hold all differences of this covariance at once in 95 of 100 studies."""
    if len(covariance) == 1:
        return float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom))
    rng = np.random.default_rng(0)
    errors = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(errors, errors))
    draws = rng.standard_normal((NUM_DRAWS, len(errors))) @ (vectors * np.sqrt(values.clip(min=0))).T
    draws /= np.sqrt(rng.chisquare(freedom, (NUM_DRAWS, 1)) / freedom)
    return float(np.quantile(np.abs(draws).max(axis=1), LEVEL))
