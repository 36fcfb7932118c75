"""Schema of the files that `fbsearch train` writes and that reports read. A model's fields are the keys, in this order.

    <study>/rank-<R>/seed-<S>/result.json       SeedResult; a baseline's lies in baseline-<name>/seed-<S>, and beside it
                                                predictions.safetensors (`winners.predictions`)
    <study>/summary.json, summary.csv           Retraining, a row for each exported configuration
    <study>/comparison.json, baselines.csv      Comparison, its rows are Competitors
    <study>/random-search/draw-<N>.json         Draw

Accuracies are in [0, 1], losses in nats. `flops` are of one image's forward pass, two for each multiply-add.
Keys that another version of fbsearch has added are ignored.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from fbsearch.config.models import BudgetConfig, TrialConfig
from fbsearch.errors import ConfigError

RESULT_NAME, SUMMARY_NAME, COMPARISON_NAME = "result.json", "summary.json", "comparison.json"

ScoredOn: TypeAlias = Literal["test", "validation"]
Accuracy: TypeAlias = Annotated[float, Field(ge=0, le=1)]
T = TypeVar("T")


class Record(BaseModel):
    """Base class of all records."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ColumnScore(Record):
    """One column of a network as a network of its own; `depth` 0 is the whole one. The latency is of one image."""

    depth: int
    accuracy: float
    latency_ms: float
    num_parameters: int


class SeedResult(Record):
    """One finished training. Baselines have `baseline`, configurations of a search `rank`, `trial`, `search_value`.

    `val_accuracy` is None where the validation images were trained on. `seconds` are of all epochs,
    `images_per_second` is the median over the epochs. `settings` is `Run.settings()`.
    """

    format: Literal["fbsearch-result/1"] = "fbsearch-result/1"
    study: str
    baseline: str | None
    rank: int | None
    trial: int | None
    search_value: float | None
    seed: int
    scored_on: ScoredOn
    accuracy: Accuracy
    loss: float
    num_images: int
    val_accuracy: float | None
    epochs: int
    seconds: float
    images_per_second: float
    num_parameters: int
    flops: int
    fit: str
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    columns: list[ColumnScore]

    @property
    def length(self) -> str:
        """Return how long the training was: `8 epochs`, or `60 s of training steps`."""
        budget = self.settings.get("train", {}).get("budget")
        if budget is not None:
            return f"{BudgetConfig.model_validate(budget)} of training steps"
        return f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"


class Retraining(Record):
    """All trainings of one exported configuration. `accuracy_std` is the sample's (n - 1), None for a single seed.

    `summary.csv` and `fbsearch train --json` leave out `results`.
    """

    rank: int
    trial: int
    search_value: float
    scored_on: ScoredOn
    num_seeds: int
    accuracy_mean: Accuracy
    accuracy_std: float | None = Field(ge=0)
    accuracy_min: float
    accuracy_max: float
    num_parameters: int
    flops: int
    epochs: int
    seconds_mean: float
    images_per_second_mean: float
    results: list[SeedResult]

    @property
    def length(self) -> str:
        """Return how long the longest training was."""
        return max(self.results, key=lambda result: result.epochs).length

    def folders(self, study: Path) -> list[Path]:
        """Return the folders of the seeds in that of the study's results."""
        return [study / f"rank-{self.rank}" / f"seed-{result.seed}" for result in self.results]

    def row(self) -> dict[str, Any]:
        """Return the fields without the results of the seeds."""
        return self.model_dump(exclude={"results"})


class Competitor(Record):
    """A row of a comparison: an exported configuration or a baseline. `failure` says why one could not be trained."""

    name: str
    kind: Literal["winner", "baseline"]
    accuracy_mean: float | None = None
    accuracy_std: float | None = None
    num_seeds: int = 0
    num_parameters: int | None = None
    flops: int | None = None
    images_per_second_mean: float | None = None
    seconds_mean: float | None = None
    verdict: str = ""
    note: str = ""
    failure: str | None = None


class Conditions(Record):
    """The machine and the number of images of a comparison."""

    device: str
    num_threads: int
    machine: str
    versions: dict[str, str]
    num_images: int
    images_per_second: str = "training images a second, median over the epochs, mean over the seeds"


class Comparison(Record):
    """A search's best configurations beside baselines: same data, same trainer. The first row is the reference."""

    format: Literal["fbsearch-comparison/1"] = "fbsearch-comparison/1"
    study: str
    scored_on: ScoredOn
    epochs: int
    num_seeds: int
    recipe: str
    rule: str
    conditions: Conditions
    rows: list[Competitor]


class Draw(Record):
    """One configuration of a random search, trained: the validation accuracy of its kept weights, or its failure."""

    format: Literal["fbsearch-draw/1"] = "fbsearch-draw/1"
    number: int
    config: TrialConfig
    num_parameters: int
    epochs: int
    train_flops: int
    seconds: float
    val_accuracy: float | None
    failure: str | None


def average_seeds(results: Sequence[SeedResult]) -> dict[str, Any]:
    """Return the fields of Retraining and Competitor that combine the results of all seeds."""
    accuracies = [result.accuracy for result in results]
    return {
        "num_seeds": len(results),
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracy_min": min(accuracies),
        "accuracy_max": max(accuracies),
        "num_parameters": results[0].num_parameters,
        "flops": results[0].flops,
        "epochs": max(result.epochs for result in results),
        "seconds_mean": statistics.mean(result.seconds for result in results),
        "images_per_second_mean": statistics.mean(result.images_per_second for result in results),
    }


def read_record(path: Path, kind: type[T], *, way_out: str) -> T | None:
    """Read a JSON file as a record or a list of records; None where there is no file.

    Raises ConfigError, which names the first fault and ends in `way_out`, for a file that cannot be read or is damaged.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = ": ".join([*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]])
    except OSError as error:
        reason = str(error.strerror)
    raise ConfigError(f"{path}: cannot be read ({reason}); {way_out}")


def to_json(content: Record | Sequence[Record]) -> bytes:
    """Return the text of a JSON file."""
    return json.dumps(to_jsonable_python(content, inf_nan_mode="constants"), indent=1).encode()


def to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the text of a CSV file with a header; a float that is not a number becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})
    return text.getvalue().encode(errors="backslashreplace")
