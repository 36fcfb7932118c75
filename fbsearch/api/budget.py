"""A search and the training of its winner within one wall time: `run --budget`, and `budget=` in Python."""

import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fbsearch.config.durations import format_duration
from fbsearch.config.export_file import EXPORT, ExportedConfig, dump_export
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.sources import has_test_split
from fbsearch.errors import ConfigError, SearchError
from fbsearch.files import check_output, file_name, write_output
from fbsearch.messages import EpochStats
from fbsearch.study.export import export_best
from fbsearch.study.study import best_trials, stored_dataset
from fbsearch.study.trial_record import TrialRecord

if TYPE_CHECKING:
    import optuna

    from fbsearch.study.locks import StudyClaim

NUM_SEEDS = 3
SEARCH_SHARE = 0.75
# The training loads more modules than a worker, whose start is measured, and the test images.
START_UP_FACTOR = 1.25
MIN_START_UP_SECONDS = 5.0
# Search and training share what is left of the time without the start of the training.
START_UP_WEIGHT = SEARCH_SHARE * START_UP_FACTOR
# The share of what is then left for training steps. The rest is for states, figures, and steps slower than the timed.
STEPS_SHARE = 0.9
MIN_SECONDS = 0.1  # that `fbsearch train --seconds` takes
WAY_OUT = "; --output names another folder"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The wall time of a search with its training, and the training's folder and flags. Clocks are time.monotonic."""

    study: str
    seconds: float
    started: float
    output: Path
    device: str
    untrusted: bool
    has_test: bool

    @property
    def folder(self) -> Path:
        """Return the folder of the study's results, as `fbsearch train` names it."""
        return self.output / file_name(self.study)

    @property
    def export(self) -> Path:
        """Return the path of the export that is trained."""
        return self.folder / "best.yaml"

    @property
    def search_seconds(self) -> float:
        """Return how long the search may still take."""
        return max(0.0, self.started + SEARCH_SHARE * self.seconds - time.monotonic())

    def announce(self) -> str:
        """Return what will be done, in which time."""
        search = SEARCH_SHARE * self.seconds
        text = f"about {format_duration(search)} of search, {format_duration(self.seconds - search)} of training"
        if not self.has_test:
            text += "; there is no test split, so the score will be the validation split's, by which the search chooses"
        return text

    def check_alone(self, claim: "StudyClaim") -> None:
        """Raise ConfigError if other coordinators search the study: each would train a winner of its own."""
        if claim.num_other_claims():
            raise ConfigError(
                f"the study {self.study!r} is being searched by another `fbsearch run`, and --budget trains the winner "
                "when its own search ends; search without --budget, then `fbsearch export` and `fbsearch train`"
            )


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The training of a search's best configuration: NUM_SEEDS seeds, each with `seconds` of training steps."""

    budget: Budget
    keep_validation: bool
    seconds: float
    seconds_in_search: float

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the arguments of `fbsearch` that train it."""
        return (*_arguments(self.budget, keep_validation=self.keep_validation), "--seconds", str(self.seconds))

    @property
    def command(self) -> str:
        """Return the command as a user would type it."""
        return f"fbsearch {shlex.join(self.arguments)}"

    @property
    def note(self) -> str:
        """Return a warning that the trial was trained for longer in the search; nothing if it was not."""
        if self.seconds >= self.seconds_in_search:
            return ""
        return f"note: its trial was trained for {self.seconds_in_search:.1f} s; a larger --budget gives more"


def make_budget(
    config: StudyConfig, *, seconds: float, started: float, output: Path, device: str, untrusted: bool
) -> Budget:
    """Return the budget of a command. ConfigError where the folder of the results has an earlier training.

    Another training in the same folder would be of other settings: its seconds and its configuration are not yet known.
    """
    budget = Budget(
        study=config.name,
        seconds=seconds,
        started=started,
        output=output,
        device=device,
        untrusted=untrusted,
        has_test=has_test_split(config.data),
    )
    found = next(budget.folder.glob("rank-1/seed-*/[!.]*"), None)
    if found is not None:
        raise ConfigError(
            f"{found.parent.parent}: holds an earlier training of this study, with which the one of --budget would be "
            f"mixed{WAY_OUT}. One that was interrupted goes on with the `fbsearch train` command that was printed"
        )
    check_output(budget.export, kind=EXPORT, force=False)
    return budget


def choose_winner(budget: Budget, study: "optuna.Study", *, start_up: float | None) -> Winner:
    """Write the export of a search that has ended, and return the training of its first configuration.

    `start_up` are the seconds until the first worker was ready; None where no worker was started. SearchError if no
    trial is complete, or too little time is left.
    """
    if not best_trials(study, 1):
        raise SearchError(
            f"no trial is complete after {format_duration(time.monotonic() - budget.started)}, so that there is "
            "nothing to train; what is finished is kept, and the same command with a larger --budget goes on with it"
        )
    best = export_best(study, top=5)
    write_output(budget.export, dump_export(best), kind=EXPORT, force=False, way_out=WAY_OUT)
    config, (trial,) = best.configs[0], best_trials(study, 1)
    keeps_validation = not budget.has_test or config.train.keep_best or config.train.early_stopping is not None
    history = [EpochStats(**epoch) for epoch in TrialRecord.of(trial).history or []]
    scoring = _scoring_seconds(config, history, stored_dataset(study), keeps_validation=keeps_validation)
    loading = max(MIN_START_UP_SECONDS, START_UP_FACTOR * (start_up or 0.0))
    left = budget.started + budget.seconds - time.monotonic()
    seconds = math.floor(10 * STEPS_SHARE * ((left - loading) / NUM_SEEDS - scoring)) / 10
    if seconds < MIN_SECONDS:
        command = shlex.join(_arguments(budget, keep_validation=keeps_validation))
        raise SearchError(
            f"{format_duration(max(0.0, left))} are left, too few to load the data and to train {NUM_SEEDS} networks; "
            f"`fbsearch {command}` trains them without a limit, a larger --budget within one"
        )
    in_search = sum(stats.step_seconds for stats in history)
    return Winner(budget=budget, keep_validation=keeps_validation, seconds=seconds, seconds_in_search=in_search)


def _arguments(budget: Budget, *, keep_validation: bool) -> list[str]:
    arguments = ["train", str(budget.export), "--seeds", str(NUM_SEEDS), "--device", budget.device]
    arguments += ["--output", str(budget.output)] + ["--untrusted"] * budget.untrusted
    return arguments + ["--keep-validation"] * keep_validation


def _scoring_seconds(
    config: ExportedConfig, history: list[EpochStats], dataset: dict[str, Any], *, keeps_validation: bool
) -> float:
    """Return an upper bound of the seconds in which one seed is scored, from the validations of its trial."""
    if not history:
        return 0.0
    validation = max(stats.val_seconds for stats in history)
    passes = 1.0
    if config.model.drop_path in ("global", "mixed"):  # each column is scored too
        passes += max(config.model.fractal_levels)
    scored = (dataset["num_test"] or dataset["num_val"]) / dataset["num_val"]
    return float(validation * (passes * scored + config.train.epochs * keeps_validation))
