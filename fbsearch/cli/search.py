"""A search as `fbsearch run` runs it: the claim on the study, the view, the result; with a budget, the winner too."""

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fbsearch.api.budget import Budget, choose_winner
from fbsearch.api.search import Limits, claimed_search
from fbsearch.cli.budget import as_dict, train_winner
from fbsearch.cli.live import make_view
from fbsearch.cli.options import EXIT_INTERRUPTED
from fbsearch.cli.status import print_end, print_front, print_next
from fbsearch.cli.tables import print_errors, print_score, print_trained_folder
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.choices import DEFAULT_STORAGE, REPORTS
from fbsearch.config.durations import format_duration
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import FbsearchError
from fbsearch.study.database import hide_password
from fbsearch.study.study import status as study_status
from fbsearch.winners.records import Retraining
from fbsearch.workers.executor import Executor

if TYPE_CHECKING:  # it loads pandas, which a search can do without
    from fbsearch.winners.error_analysis import ErrorAnalysis


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of `fbsearch run` that a search needs."""

    limits: Limits
    storage: str
    as_json: bool

    @property
    def shown_storage(self) -> str | None:
        """Return the storage for the commands that are printed; None for the default one."""
        return None if self.storage == DEFAULT_STORAGE else self.storage


def run_search(config: StudyConfig, executor: Executor, options: Options, *, budget: Budget | None) -> int:
    """Search, with a budget train the winner too, and print the results. Return the exit code.

    Raise FbsearchError, and typer.Exit where the training has ended otherwise than well.
    """
    console = SafeConsole(stderr=options.as_json)
    if budget is not None:
        console.print(budget.announce(), markup=False, highlight=False, soft_wrap=True)
    view = make_view(console, config)
    with claimed_search(
        config, executor, url=options.storage, view=view, limits=options.limits, budget=budget
    ) as found:
        state = found.state
        content = study_status(found.study, url=options.storage) | {"end": state.end}
        if not options.as_json:
            print_end(console, state)
            print_front(console, content["front"], state.goals)
        winner = None
        if budget is not None and state.end != "interrupted":
            try:
                winner = choose_winner(budget, found.study, start_up=found.start_up)
            except FbsearchError:
                if options.as_json:  # the search has ended well
                    print(json.dumps(content))
                raise
    if budget is not None and winner is not None:
        row, folder = train_winner(winner, console=console)
        errors = _read_errors(row, folder)
        content |= as_dict(row, folder) | {"errors": errors.as_dict()}
        if not options.as_json:
            _print_training(console, row, errors, folder, budget=budget, storage=options.shown_storage)
    elif not options.as_json:
        print_next(console, state, storage=options.shown_storage)
    if options.as_json:
        print(json.dumps(content))
    return EXIT_INTERRUPTED if state.end == "interrupted" else 0


def _read_errors(row: Retraining, folder: Path) -> "ErrorAnalysis":
    """Return where the winner's networks err, from the predictions that were stored when they were scored."""
    from fbsearch.winners.error_analysis import read_analysis

    errors = read_analysis(sorted(folder.glob(f"rank-{row.rank}/seed-*")))
    assert errors is not None, "the seeds were trained by this version"
    return errors


def _print_training(
    console: SafeConsole, row: Retraining, errors: "ErrorAnalysis", folder: Path, *, budget: Budget, storage: str | None
) -> None:
    """Print the score of a winner, where it errs, what the whole has taken, and what to do next."""
    print_score(console, row)
    print_errors(console, errors)
    took = time.monotonic() - budget.started
    console.print(f"{format_duration(took)} of {format_duration(budget.seconds)} were used", highlight=False)
    flag = f" --storage {hide_password(storage)}" if storage else ""
    report = [f"fbsearch report {shlex.quote(budget.study)}{flag}"]
    # A report shows the trainings in its own folder.
    print_trained_folder(console, folder, more=report if budget.output == REPORTS else [])
