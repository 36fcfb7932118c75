"""Verdicts of a comparison, its files and its table."""

import csv
import io
import json
import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from fbsearch.cli.tables import print_comparison
from fbsearch.winners.comparison import Outcome, compare, judge, write_comparison
from fbsearch.winners.records import Comparison, Competitor, SeedResult


def row(mean: float, std: float | None, num_seeds: int = 3) -> Competitor:
    return Competitor(name="", kind="winner", accuracy_mean=mean, accuracy_std=std, num_seeds=num_seeds)


@pytest.mark.parametrize(
    ("ours", "theirs", "num_images", "verdict"),
    [
        (row(0.99, 0.001), row(0.90, 0.001), 360, "better"),
        (row(0.90, 0.001), row(0.99, 0.001), 360, "worse"),
        (row(0.985, 0.001), row(0.980, 0.001), 360, "no clear difference"),  # too few images
        (row(0.985, 0.0001), row(0.980, 0.0001), 100_000, "better"),
        (row(0.985, 0.01), row(0.980, 0.01), 100_000, "no clear difference"),  # too much between the seeds
        (row(0.95, 0.02, 2), row(0.90, 0.001, 2), 100_000, "no clear difference"),  # two seeds: t is 12.7
        (row(0.99, 0.0), row(0.5, 0.0), 360, "better"),  # seeds that agree
        (row(1.0, 0.0), row(1.0, 0.0), 10, "no clear difference"),
        (row(0.99, None, 1), row(0.1, 0.01), 360, "noise unknown"),
        (row(0.99, 0.01), row(0.1, None, 1), 360, "noise unknown"),
    ],
)
def test_judge_of_known_cases(ours: Competitor, theirs: Competitor, num_images: int, verdict: str) -> None:
    assert judge(ours, theirs, num_images=num_images) == verdict


accuracies = st.lists(st.integers(0, 360).map(lambda right: right / 360), min_size=2, max_size=5)


@given(accuracies, accuracies, st.integers(10, 10_000))
def test_judge_is_antisymmetric_and_never_bolder_than_the_seeds_alone(
    ours: list[float], theirs: list[float], num_images: int
) -> None:
    sides = [row(statistics.mean(side), statistics.stdev(side), len(side)) for side in (ours, theirs)]
    verdict = judge(sides[0], sides[1], num_images=num_images)
    opposite = {"better": "worse", "worse": "better"}
    assert judge(sides[1], sides[0], num_images=num_images) == opposite.get(verdict, verdict)
    assert judge(sides[0], sides[0], num_images=num_images) == "no clear difference"
    if verdict != "no clear difference" and min(side.accuracy_std or 0 for side in sides) > 1e-3:
        assert stats.ttest_ind(ours, theirs, equal_var=False).pvalue < 0.05


def make_result(name: str, accuracy: float, *, rank: int | None = None) -> SeedResult:
    return SeedResult(
        study="digits", baseline=None if rank else name, rank=rank, trial=12, seed=0,
        search_value=0.9875, scored_on="test", accuracy=accuracy, loss=0.1, num_images=360, val_accuracy=None,
        epochs=30, seconds=12.5, images_per_second=1234.5, num_parameters=213_492, flops=11_496_672, fit="",
        device="cpu", versions={"torch": "2.15.0"}, settings={}, columns=[],
    )  # fmt: skip


@pytest.fixture
def comparison() -> Comparison:
    winners = [make_result("", accuracy, rank=rank) for rank, mean in ((1, 0.985), (2, 0.98)) for accuracy in
               (mean - 0.001, mean + 0.001)]  # fmt: skip
    worse = tuple(make_result("resnet18", accuracy) for accuracy in (0.60, 0.61))
    baselines = [Outcome("resnet18", "torchvision's", worse), Outcome("medium", "", failure="out of memory")]
    return compare(winners, baselines, recipe="same")


def test_compare_has_the_schema_that_reports_read(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(tmp_path, comparison)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written == comparison.model_dump()
    head = {key: written[key] for key in ("format", "study", "scored_on", "epochs", "num_seeds", "recipe")}
    assert head == {
        "format": "fbsearch-comparison/1", "study": "digits", "scored_on": "test", "epochs": 30, "num_seeds": 2,
        "recipe": "same",
    }  # fmt: skip
    first, second, resnet, medium = written["rows"]
    assert [(one["name"], one["kind"], one["verdict"]) for one in written["rows"]] == [
        ("rank 1", "winner", "reference"),
        ("rank 2", "winner", "no clear difference"),
        ("resnet18", "baseline", "worse"),
        ("medium", "baseline", "failed"),
    ]
    assert first["accuracy_mean"] == pytest.approx(0.985) and second["num_seeds"] == 2
    assert resnet["accuracy_std"] == pytest.approx(math.sqrt(0.5) * 0.01) and resnet["failure"] is None
    assert medium["failure"] == "out of memory" and medium["accuracy_mean"] is None
    with (tmp_path / "baselines.csv").open(newline="") as file:
        assert [one["name"] for one in csv.DictReader(file)] == ["rank 1", "rank 2", "resnet18", "medium"]


def test_print_comparison_fits_100_columns_and_says_how_it_judged(comparison: Comparison) -> None:
    file = io.StringIO()
    print_comparison(Console(file=file, width=100), comparison)
    text = file.getvalue()
    assert max(len(line) for line in text.split("\n")) <= 100 and "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "98.50% \N{PLUS-MINUS SIGN} 0.14%" in text and "failed: out of memory" in text
    text = " ".join(text.split())
    assert "Welch's t over the seeds" in text and "360 test images" in text


def test_compare_with_one_seed_says_that_the_noise_is_unknown() -> None:
    found = compare(
        [make_result("", 0.98, rank=1)], [Outcome("small", "", (make_result("small", 0.1),))], recipe="same"
    )
    assert found.rows[1].verdict == "noise unknown" and found.rows[1].accuracy_std is None
    assert found.rule.startswith("One seed does not show")
