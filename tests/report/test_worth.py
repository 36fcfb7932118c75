"""What parts are worth: the truth lies in the intervals, for samplers that learn and trials that are pruned."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fbsearch.report.text import describe_comparison, describe_part
from fbsearch.report.worth import COMPUTE, Difference, PartWorth, Worths, estimate_worth

# Accuracy that each choice adds, and how many times the FLOPs it costs.
WORTH = {
    "model.dynamics": {"none": 0.0, "last": 0.02, "all": 0.01},
    "model.pattern": {"none": 0.0, "julia": 0.0, "cantor": 0.0},
    "train.optimizer": {"adamw": 0.0, "muon": 0.04},
    COMPUTE: {"1x": 0.0, "2x": 0.015},
}
COST = {"none": 1.0, "last": 1.4, "all": 1.9}
CHOICES = {name: list(values) for name, values in WORTH.items() if name != COMPUTE} | {
    "model.base_channels": [8, 16, 24, 32]
}


def simulate(
    seed: int, num_trials: int, *, noise: float = 0.02, learns: bool = True, prunes: bool = True
) -> pd.DataFrame:
    """Trials of four epochs. From the tenth on, most choices repeat a good trial's, and the worse half is pruned."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(num_trials):
        row: dict[str, Any] = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
        if learns and number >= 10:
            best = sorted(rows, key=lambda row: -row["accuracy"])[: number // 5]
            row |= {name: best[rng.integers(len(best))][name] for name in CHOICES if rng.random() < 0.6}
        rate = math.exp(rng.uniform(math.log(0.002), math.log(0.05)))
        flops = 1000.0 * row["model.base_channels"] ** 2 * COST[row["model.dynamics"]]
        scatter = noise * (2 if row["train.optimizer"] == "adamw" else 1)
        accuracy = 0.6 + 0.015 * math.log2(flops / 1e5) - 0.01 * math.log(rate / 0.01) ** 2
        accuracy += sum(WORTH[name][row[name]] for name in CHOICES if name in WORTH) + scatter * rng.standard_t(4)
        is_pruned = prunes and number >= 10 and accuracy < np.median([other["accuracy"] for other in rows])
        history = [{"epoch": 1 + epoch, "val_accuracy": accuracy - less} for epoch, less in enumerate((0.2, 0.1, 0, 0))]
        history = history[:2] if is_pruned else history
        model = {"dynamics": row["model.dynamics"], "pattern": row["model.pattern"], "fractal_levels": [2]}
        row |= {"train.learning_rate": rate, "state": "pruned" if is_pruned else "complete", "epochs": len(history)}
        row |= {"accuracy": accuracy, "planned_epochs": 4, "history": history, "score": history[-1]["val_accuracy"]}
        rows.append(row | {"flops": flops, "config": {"model": model, "train": {}}})
    frame = pd.DataFrame(rows)
    frame.attrs["log"] = ["train.learning_rate"]
    return frame


def holds(part: PartWorth) -> bool:
    """Whether the intervals of a part all hold the truth."""
    true = WORTH[part.part]
    return all(row.low <= true[row.choice] - true[part.reference] <= row.high for row in part.rows)


@pytest.mark.slow
def test_intervals_hold_the_truth_in_about_95_of_100_studies() -> None:
    held: dict[str, list[bool]] = {name: [] for name in WORTH}
    for seed in range(150):
        for part in estimate_worth(simulate(seed, 50)).parts:
            if part.part in held:
                held[part.part].append(holds(part))
    for name, part_held in held.items():
        assert len(part_held) >= 140, name
        assert 0.90 <= np.mean(part_held) <= 0.99, name


def test_a_known_effect_is_found_and_the_rest_is_not() -> None:
    found = estimate_worth(simulate(0, 150))
    by_name = {part.part: part for part in found.parts}
    assert found.at_equal_compute and found.skipped == ()
    assert by_name["train.optimizer"].is_sure
    assert not by_name["model.pattern"].is_sure
    assert "model.base_channels" not in by_name
    assert [part.distance for part in found.parts] == sorted((part.distance for part in found.parts), reverse=True)


def test_trials_are_compared_where_all_of_them_were() -> None:
    found = estimate_worth(simulate(0, 60))
    assert (found.num_trials, found.share, found.when) == (60, 0.5, "after epoch 2 of 4")
    found = estimate_worth(simulate(0, 60, prunes=False))
    assert (found.num_trials, found.share, found.when) == (60, 1, "at the end of their training")


def test_a_part_that_only_costs_is_worth_less_than_nothing_at_equal_compute() -> None:
    frame = simulate(1, 150, noise=0.001, learns=False, prunes=False)
    dear = (frame["model.pattern"] == "cantor") & (frame["model.dynamics"] != "none")
    frame["flops"] *= np.where(dear, 4, 1)
    (pattern,) = (part for part in estimate_worth(frame).parts if part.part == "model.pattern")
    cantor, julia = pattern.rows
    assert cantor.mean == pytest.approx(-0.03, abs=0.003) and cantor.is_sure
    assert julia.mean == pytest.approx(0, abs=0.003) and not julia.is_sure


def test_a_pattern_without_dynamics_is_not_compared() -> None:
    frame = simulate(1, 120, noise=0.001, learns=False, prunes=False)
    acts = frame["model.dynamics"] != "none"
    (pattern,) = (part for part in estimate_worth(frame).parts if part.part == "model.pattern")
    assert {row.choice: row.num_trials for row in pattern.rows} == {
        choice: (acts & (frame["model.pattern"] == choice)).sum() for choice in ("julia", "cantor")
    }


def test_compute_that_follows_from_the_parts_is_not_held_equal() -> None:
    frame = simulate(0, 60).drop(columns="model.base_channels")
    found = estimate_worth(frame.assign(flops=1e5 * frame["model.dynamics"].map(COST)))
    assert not found.at_equal_compute
    assert "not at equal compute" in describe_comparison(found)
    assert COMPUTE not in [part.part for part in found.parts]


def test_channels_are_a_part_where_the_budget_is_compute() -> None:
    frame = simulate(0, 80)
    frame["config"] = [{**config, "train": {"budget": {"flops": 1e12}}} for config in frame["config"]]
    found = estimate_worth(frame)
    assert found.at_equal_compute
    assert "model.base_channels" in [part.part for part in found.parts]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (simulate(0, 60).head(0), "0 finished trials are too few"),
        (simulate(0, 19), "19 finished trials are too few: a comparison needs 20"),
        (simulate(0, 30).assign(**{f"model.x{i}": [0, 1, 2] * 10 for i in range(4)}), "too few for the 9 parts that"),
        (simulate(0, 30, prunes=False).assign(score=0.5), "All trials have the same accuracy"),
        (simulate(0, 30).drop(columns=[*CHOICES, "train.learning_rate"]).assign(flops=1.0), "No part was tried"),
    ],
)
def test_nothing_is_said_of_too_little(frame: pd.DataFrame, reason: str) -> None:
    found = estimate_worth(frame)
    assert found.parts == ()
    assert reason in found.reason


def test_values_that_are_missing_or_rare_do_no_harm() -> None:
    frame = simulate(0, 60, prunes=False)
    frame.loc[0, "score"] = math.nan
    frame.loc[[1, 2], "model.pattern"] = "julia-two"
    frame["model.dropout"] = [0.0] * 58 + [0.1, 0.2]
    frame["train.clip_grad_norm"] = [*[1.0 + i for i in range(59)], None]
    frame["config"] = [{}, {"model": {}}, *frame["config"][2:]]
    found = estimate_worth(frame)
    assert found.num_trials == 59
    assert found.skipped == ("model.dropout", "train.clip_grad_norm")
    numbers = [(row.low, row.mean, row.high) for part in found.parts for row in part.rows]
    assert np.isfinite(numbers).all()
    assert "julia-two" not in [row.choice for part in found.parts for row in part.rows]


def test_parts_that_always_go_together_are_not_told_apart() -> None:
    frame = simulate(0, 60)
    frame["model.join"] = frame["train.optimizer"].map({"adamw": "gates", "muon": "mean"})
    found = estimate_worth(frame)
    assert {"model.join", "train.optimizer"} <= set(found.skipped)


def test_words_say_what_the_intervals_say() -> None:
    sure = (Difference("julia", 0.012, 0.004, 0.02, 9), Difference("cantor", -0.3, -0.5, -0.1, 9))
    unsure = Difference("sierpinski", 0.0, -0.03, 0.02, 9)
    assert describe_part(PartWorth("model.pattern", "none", (*sure, unsure))) == (
        "pattern",
        "julia is worth 1.2 points more than none (0.40 to 2.0), cantor is worth 30.0 less (10.0 to 50.0); no evidence "
        "of a difference for sierpinski.",
    )
    assert describe_part(PartWorth("train.learning_rate", "0.01", (unsure,))) == (
        "learning rate",
        "no evidence that it matters; against 0.01, more than 3.0 points can be excluded.",
    )
    assert "at equal compute" in describe_comparison(Worths(num_trials=20, when="at the end of their training"))
