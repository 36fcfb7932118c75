"""Train the winners of a search: exported configurations at full budget, on request baselines, then the comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fbsearch.config.choices import BaselineRecipe
from fbsearch.config.export_file import describe_common, load_export
from fbsearch.data.untrusted import check_paths
from fbsearch.errors import ConfigError
from fbsearch.training import distributed
from fbsearch.winners.baselines import Baselines
from fbsearch.winners.comparison import compare, write_comparison
from fbsearch.winners.error_analysis import ErrorAnalysis, read_analysis
from fbsearch.winners.plan import Settings, choose_configs, plan_runs, study_folder
from fbsearch.winners.progress import View
from fbsearch.winners.records import Comparison, Retraining
from fbsearch.winners.results import summarize
from fbsearch.winners.retrain import Loader, retrain


@dataclass(frozen=True)
class FinalTraining:
    """The summary and the comparison of an export's trainings, and the folder in which they are written.

    `errors` has where each configuration of the summary errs, None where an older version has trained it. `notes` has
    a line for each configuration that keeps nothing of the fractal, and for each file that cannot be read.
    """

    study: str
    folder: Path
    summary: list[Retraining]
    errors: list[ErrorAnalysis | None]
    comparison: Comparison | None
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        content: dict[str, Any] = {"study": self.study, "folder": str(self.folder), "notes": self.notes}
        content["configs"] = [
            row.row() | {"errors": None if one is None else one.as_dict()}
            for row, one in zip(self.summary, self.errors, strict=True)
        ]
        return content if self.comparison is None else content | {"comparison": self.comparison.model_dump()}


def train_export(
    path: Path,
    settings: Settings,
    *,
    rank: int | None,
    top: int | None,
    baselines: Sequence[str],
    recipe: BaselineRecipe,
    device: str,
    untrusted: bool,
    console: Console,
) -> FinalTraining | None:
    """Train the configuration of `rank`, or the `top` best, and the named baselines; summarize and compare.

    With `untrusted`, refuse paths of the export that lead out of the current folder. Progress goes to `console`. Under
    torchrun all processes train the winners together; the others return None, rank 0 alone trains the baselines and
    writes.
    Raises what the user can mend as FbsearchError.
    """
    export = load_export(path)
    for config in export.configs if untrusted else ():
        check_paths(path, data=config.data, train=config.train)
    configs = choose_configs(export, path, rank=rank, top=top)
    runs = plan_runs(export, configs, settings)
    device = distributed.own_device(device)
    with distributed.join(device) as team:
        console.quiet = not team.leads
        with View(console) as view:
            load = Loader(device, say=view.say)
            winners = retrain(runs, load=load, view=view, team=team)
            if not team.leads:
                return None
            rivals = Baselines(export, path, configs[0], settings, recipe, names=baselines, load=load, view=view)
            outcomes = rivals.train()
    folder = study_folder(settings.output, export.study)
    summary = summarize(folder)
    comparison = None
    if baselines:
        comparison = compare(winners, outcomes, recipe=recipe)
        write_comparison(folder, comparison)
    notes = describe_common(configs)
    errors: list[ErrorAnalysis | None] = []
    for row in summary:
        try:
            errors.append(read_analysis(row.folders(folder)))
        except ConfigError as error:  # the training itself has gone well
            notes.append(str(error))
            errors.append(None)
    return FinalTraining(export.study, folder, summary, errors, comparison, notes)
