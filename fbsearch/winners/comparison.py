"""What a search's result is worth: its scores beside the baselines', and which differences are larger than the noise.

The rule (`judge`): two configurations differ where the 95% interval of the difference of their mean accuracies leaves
out 0. The interval's two parts add as squares: Welch's t interval over the seeds, and the sampling error of the
images both were scored on, binomial for each. Must not know how anything was trained.
"""

import itertools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from fbsearch.winners.checkpoint import write_bytes
from fbsearch.winners.results import summary_row, to_csv

COMPARISON_FORMAT = "fbsearch-comparison/1"
COMPARISON_NAME = "comparison.json"
CONFIDENCE = 0.95
UNKNOWN = "noise unknown"
ROW_KEYS = (
    "name", "kind", "accuracy_mean", "accuracy_std", "num_seeds", "num_parameters", "flops", "images_per_second_mean",
    "seconds_mean", "verdict", "note", "failure",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A baseline with the results of its seeds (`results.read_result`), none of them where it failed."""

    name: str
    note: str
    results: tuple[dict[str, Any], ...] = ()
    failure: str | None = None


def judge(row: Mapping[str, Any], reference: Mapping[str, Any], *, num_images: int) -> str:
    """`better`, `worse` or `no clear difference` of a row against the reference; `noise unknown` with a single seed.

    Both have `accuracy_mean`, `accuracy_std` (of the sample, n - 1) and `num_seeds`, and are scored on the same
    `num_images` images. Their binomial errors are added as if they were other images: common ones make the true error
    of a difference rather smaller, so that the verdict is rather too careful. A share of right answers is taken as
    (right + 1) / (images + 2), so that none is certain.
    """
    if row["num_seeds"] < 2 or reference["num_seeds"] < 2:
        return UNKNOWN
    difference = row["accuracy_mean"] - reference["accuracy_mean"]
    variances = [side["accuracy_std"] ** 2 / side["num_seeds"] for side in (row, reference)]
    shares = [(side["accuracy_mean"] * num_images + 1) / (num_images + 2) for side in (row, reference)]
    images = sum(share * (1 - share) / num_images for share in shares)
    by_images = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) ** 2 * images
    by_seeds = 0.0
    if sum(variances):
        weights = [variance / sum(variances) for variance in variances]
        terms = [weight**2 / (side["num_seeds"] - 1) for weight, side in zip(weights, (row, reference), strict=True)]
        degrees = 1 / sum(terms)  # Welch and Satterthwaite's
        by_seeds = float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) ** 2 * sum(variances)
    if abs(difference) <= math.sqrt(by_seeds + by_images):
        return "no clear difference"
    return "better" if difference > 0 else "worse"


def compare(winners: Sequence[dict[str, Any]], baselines: Sequence[Outcome], *, recipe: str) -> dict[str, Any]:
    """The comparison as JSON has it: a row for each exported configuration and each baseline.

    `winners` are the results of all seeds of all configurations, in order; the first one is the reference.
    """
    groups = [list(group) for _, group in itertools.groupby(winners, key=lambda result: result["rank"])]
    first = winners[0]
    reference = summary_row(groups[0])
    rows = []
    for results in groups:
        note = f"trial {results[0]['trial']} of the search, {results[0]['search_value']:.2%} on its validation images"
        rows.append(_row(f"rank {results[0]['rank']}", "winner", note, results, reference))
    rows[0]["verdict"] = "reference"
    for one in baselines:
        rows.append(_row(one.name, "baseline", one.note, one.results, reference, one.failure))
    return {
        "format": COMPARISON_FORMAT,
        "study": first["study"],
        "scored_on": first["scored_on"],
        "epochs": reference["epochs"],
        "num_seeds": reference["num_seeds"],
        "recipe": recipe,
        "rule": describe_rule(rows[0], num_images=first["num_images"], scored_on=first["scored_on"]),
        "conditions": {
            "device": first["device"],
            "num_threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "versions": first["versions"],
            "num_images": first["num_images"],
            "images_per_second": "training images a second, median over the epochs, mean over the seeds",
        },
        "rows": rows,
    }


def _row(
    name: str,
    kind: str,
    note: str,
    results: Sequence[dict[str, Any]],
    reference: Mapping[str, Any],
    failure: str | None = None,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(ROW_KEYS) | {
        "name": name, "kind": kind, "num_seeds": 0, "verdict": "failed", "note": note, "failure": failure,
    }  # fmt: skip
    if failure is None:
        row |= {key: value for key, value in summary_row(results).items() if key in row}
        row["verdict"] = judge(row, reference, num_images=results[0]["num_images"])
    return row


def describe_rule(reference: Mapping[str, Any], *, num_images: int, scored_on: str) -> str:
    """The rule of `judge` in one sentence."""
    if reference["num_seeds"] < 2:
        return "With one seed nobody knows how much another seed would change: --seeds 3 tells."
    return (
        f"better, worse than {reference['name']}: the {CONFIDENCE:.0%} interval of the difference of the means leaves "
        f"out 0 (Welch's t over the seeds, and the binomial error of {num_images:,} {scored_on} images)."
    )


def write_comparison(folder: Path, comparison: dict[str, Any]) -> None:
    """Write `comparison.json` and its rows as `baselines.csv`. StorageError if they cannot be written."""
    write_bytes(folder / "baselines.csv", to_csv(comparison["rows"]))
    write_bytes(folder / COMPARISON_NAME, json.dumps(comparison, indent=1).encode())
