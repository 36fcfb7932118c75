"""Compare a search's best configurations with baselines, and tell differences from noise.

`judge` calls two configurations different where the 95% interval of the difference of their mean accuracies leaves
out 0. The interval's two parts add as squares: Welch's t interval over the seeds, and the binomial sampling error of
the images that both were scored on.
"""

import itertools
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from scipy import stats

from fbsearch.files import write_whole
from fbsearch.winners.records import (
    COMPARISON_NAME,
    Comparison,
    Competitor,
    Conditions,
    SeedResult,
    average_seeds,
    to_csv,
    to_json,
)

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcome:
    """A baseline with the results of its seeds, or with the reason why it could not be trained."""

    name: str
    note: str
    results: tuple[SeedResult, ...] = ()
    failure: str | None = None


def judge(row: Competitor, reference: Competitor, *, num_images: int) -> str:
    """Return `better`, `worse` or `no clear difference`; `noise unknown` where either has a single seed.

    Both are scored on the same `num_images` images. Their binomial errors are added as if the images were different:
    common images make the true error of a difference smaller, so the verdict is cautious. The share of right answers
    is taken as (right + 1) / (images + 2), so that no share is certain.
    """
    sides = [(s.accuracy_mean, s.accuracy_std, s.num_seeds) for s in (row, reference)]
    known = [(mean, std, num) for mean, std, num in sides if mean is not None and std is not None and num > 1]
    if len(known) < 2:
        return "noise unknown"
    difference = known[0][0] - known[1][0]
    variances = [std**2 / num for _, std, num in known]
    shares = [(mean * num_images + 1) / (num_images + 2) for mean, _, _ in known]
    images = sum(share * (1 - share) / num_images for share in shares)
    by_images = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) ** 2 * images
    by_seeds = 0.0
    if sum(variances):
        weights = [variance / sum(variances) for variance in variances]
        degrees = 1 / sum(
            w**2 / (num - 1) for w, (_, _, num) in zip(weights, known, strict=True)
        )  # Welch-Satterthwaite
        by_seeds = float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) ** 2 * sum(variances)
    if abs(difference) <= math.sqrt(by_seeds + by_images):
        return "no clear difference"
    return "better" if difference > 0 else "worse"


def compare(winners: Sequence[SeedResult], baselines: Sequence[Outcome], *, recipe: str) -> Comparison:
    """Return a row for each exported configuration and each baseline.

    `winners` are the results of all seeds of all configurations, in order; the first configuration is the reference.
    """
    groups = [list(group) for _, group in itertools.groupby(winners, key=lambda result: result.rank)]
    first = winners[0]
    rows: list[Competitor] = []
    for results in groups:
        one = results[0]
        note = f"trial {one.trial} of the search, {one.search_value:.2%} on its validation images"
        rows.append(_row(f"rank {one.rank}", "winner", note, results, rows))
    for baseline in baselines:
        if baseline.failure is None:
            rows.append(_row(baseline.name, "baseline", baseline.note, baseline.results, rows))
        else:
            rows.append(Competitor(name=baseline.name, kind="baseline", verdict="failed", failure=baseline.failure))
    return Comparison(
        study=first.study,
        scored_on=first.scored_on,
        epochs=max(result.epochs for result in groups[0]),
        num_seeds=rows[0].num_seeds,
        recipe=recipe,
        rule=describe_rule(rows[0], num_images=first.num_images, scored_on=first.scored_on),
        conditions=Conditions(
            device=first.device,
            num_threads=torch.get_num_threads(),
            machine=platform.machine(),
            versions=first.versions,
            num_images=first.num_images,
        ),
        rows=rows,
    )


def _row(
    name: str, kind: Literal["winner", "baseline"], note: str, results: Sequence[SeedResult], above: list[Competitor]
) -> Competitor:
    """Return the row of what was trained, judged against the first of the rows above it."""
    row = Competitor(name=name, kind=kind, note=note, verdict="reference", **average_seeds(results))
    if not above:
        return row
    return row.model_copy(update={"verdict": judge(row, above[0], num_images=results[0].num_images)})


def describe_rule(reference: Competitor, *, num_images: int, scored_on: str) -> str:
    """Return the rule of `judge` in one sentence."""
    if reference.num_seeds < 2:
        return "One seed does not show how much the accuracy varies between seeds; use --seeds 3."
    return (
        f"better, worse than {reference.name}: the {CONFIDENCE:.0%} interval of the difference of the means leaves "
        f"out 0 (Welch's t over the seeds, and the binomial error of {num_images:,} {scored_on} images)."
    )


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write `comparison.json` and its rows as `baselines.csv`. StorageError if they cannot be written."""
    write_whole(folder / "baselines.csv", to_csv([row.model_dump() for row in comparison.rows]))
    write_whole(folder / COMPARISON_NAME, to_json(comparison))
