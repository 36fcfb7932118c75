"""Schema of race.json, which `fbsearch bench race` writes after every run: the fields are the keys, in this order.

Accuracies are in [0, 1]. `flops` are of one image's forward pass, two for each multiply-add.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from fbsearch.messages import FailureKind
from fbsearch.winners.records import Accuracy, Record

RACE_NAME = "race.json"


class RaceRun(Record):
    """One training with a budget of `budget_seconds`; one that failed has `failure_kind`, `failure` and no accuracy.

    A point of `curve` is the seconds that training has taken until then, and the accuracy on the validation images.
    Validation takes none of the seconds; the steps at the start that warm up and measure do.
    """

    entrant: str
    trained: str
    budget_seconds: float
    seed: int
    val_accuracy: Accuracy | None = None
    num_images: int = 0  # that training has seen, each as often as it was seen
    curve: tuple[tuple[float, Accuracy], ...] = ()
    failure_kind: FailureKind | None = None
    failure: str | None = None
    settings: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, float, int]:
        return self.entrant, self.trained, self.budget_seconds, self.seed

    @property
    def name(self) -> str:
        """Return the name of the run, for messages."""
        return f"{self.entrant} ({self.trained}), {self.budget_seconds:g} s, seed {self.seed}"


class Score(Record):
    """The runs of one entrant with one budget. `std` is the sample's (n - 1), None for a single run.

    `counts` is true for the best of the ways in which an entrant was trained.
    """

    budget_seconds: float
    mean: float | None
    std: float | None
    num_runs: int
    num_failed: int
    counts: bool


class Standing(Record):
    """A row of the table: an entrant, trained in one way, with a score for each budget it has runs of."""

    entrant: str
    note: str
    trained: str
    num_parameters: int | None
    flops: int | None
    remark: str = ""
    scores: tuple[Score, ...] = ()

    def score(self, budget: float) -> Score | None:
        """Return the score of a budget, None where no run has ended yet."""
        return next((score for score in self.scores if score.budget_seconds == budget), None)


class Race(Record):
    """The content of race.json. `machine` is that of the first run; all runs are of the same. `table` sums them up."""

    format: Literal["fbsearch-race/1"] = "fbsearch-race/1"
    study: str
    command: str
    machine: dict[str, Any]
    dataset: dict[str, Any]
    augment: dict[str, Any]
    precision: str
    table: tuple[Standing, ...] = ()
    runs: tuple[RaceRun, ...] = ()

    @property
    def budgets(self) -> list[float]:
        return sorted({run.budget_seconds for run in self.runs})

    def winner(self, budget: float) -> Standing | None:
        """Return a budget's best row: of those with the most runs the highest mean; None where every run has failed."""
        scored = [(score, row) for row in self.table if (score := row.score(budget)) and score.mean is not None]
        return max(scored, key=lambda pair: _worth(pair[0]))[1] if scored else None


def rank(rows: Iterable[Standing], runs: Sequence[RaceRun]) -> tuple[Standing, ...]:
    """Return the rows with the scores of their runs, the best at the longest budget first."""
    found = [row.model_copy(update={"scores": _scores(row, runs)}) for row in rows]
    best: dict[tuple[str, float], tuple[int, float]] = {}
    for row in found:
        for score in row.scores:
            key = row.entrant, score.budget_seconds
            best[key] = max(_worth(score), best.get(key, (0, -1.0)))

    def judge(row: Standing, score: Score) -> Score:
        counts = _worth(score) == best[row.entrant, score.budget_seconds]
        return score.model_copy(update={"counts": counts})

    judged = [row.model_copy(update={"scores": tuple(judge(row, score) for score in row.scores)}) for row in found]
    return tuple(
        sorted(judged, key=lambda row: [(s.budget_seconds, _worth(s)) for s in row.scores[::-1]], reverse=True)
    )


def _worth(score: Score) -> tuple[int, float]:
    """Return what orders scores: those of more runs first, then the higher mean."""
    return score.num_runs, -1.0 if score.mean is None else score.mean


def _scores(row: Standing, runs: Sequence[RaceRun]) -> tuple[Score, ...]:
    own = [run for run in runs if (run.entrant, run.trained) == (row.entrant, row.trained)]
    scores = []
    for budget in sorted({run.budget_seconds for run in own}):
        ended = [run for run in own if run.budget_seconds == budget]
        values = [run.val_accuracy for run in ended if run.val_accuracy is not None]
        scores.append(
            Score(
                budget_seconds=budget,
                mean=statistics.mean(values) if values else None,
                std=statistics.stdev(values) if len(values) > 1 else None,
                num_runs=len(values),
                num_failed=len(ended) - len(values),
                counts=True,
            )
        )
    return tuple(scores)
