"""A study from Python: its best trial, its trials as a table, its report and exports, the training of its winner."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from fbsearch.config.choices import DEFAULT_STORAGE, REPORTS
from fbsearch.config.export_file import EXPORT, dump_export
from fbsearch.config.goals import GOALS
from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError, FbsearchError, StorageError
from fbsearch.files import write_output
from fbsearch.study import catalogue
from fbsearch.study.catalogue import delete_study, rename_study
from fbsearch.study.database import open_storage, storage_errors
from fbsearch.study.export import CSV_TABLE, JSON_TABLE, export_best, export_front, export_trial, trial_table
from fbsearch.study.queries import best_trial
from fbsearch.study.study import goals_of, load_study, status, stored_config, stored_dataset
from fbsearch.study.trial_record import TrialRecord, trial_config
from fbsearch.winners.intervals import wilson_interval

if TYPE_CHECKING:
    import pandas

    from fbsearch.api.model import Model


@contextlib.contextmanager
def python_words() -> Iterator[None]:
    """Add to an error that names options of the command line how they are written in Python."""
    try:
        yield
    except FbsearchError as error:
        if "--" in str(error) and not hasattr(error, "__notes__"):
            error.add_note("In Python an option is an argument: --force is force=True, --name NAME is name='NAME'.")
        raise


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best complete trial. `value` is its validation accuracy, the highest of many: on new images expect less.

    Where the search has another `metric`, `value` is of that; with several objectives `values` has all by name, and the
    first of them has named the best. `interval` is the 95% interval of an accuracy that was counted on so many images
    (Wilson), None where their number is not stored, and of another metric. It does not correct for the
    choice among trials. `params` are the sampled values as Optuna has them.
    """

    number: int
    value: float
    metric: str
    values: dict[str, float]
    interval: tuple[float, float] | None
    params: dict[str, Any]
    num_parameters: int | None
    flops: int | None
    config: TrialConfig


class Study:
    """A study in a database. What it gives is read when it is asked for, so a running search can be looked at."""

    def __init__(self, study: optuna.Study, *, storage: str) -> None:
        """Wrap a study that `open_study` has opened in the database `storage`."""
        self._study, self._url = study, storage
        self._model: Model | None = None

    @property
    def name(self) -> str:
        """Return the study's name in the database."""
        return self._study.study_name

    @property
    def optuna(self) -> optuna.Study:
        """Return the plain Optuna study, for all that Optuna can do with one."""
        return self._study

    @property
    def model(self) -> "Model | None":
        """Return the model that `search(budget=...)` or the last `train` of this object made; None without one."""
        return self._model

    @property
    def config(self) -> StudyConfig:
        """Return the study file that the study was searched with. `search(study.config)` goes on with it."""
        return stored_config(self._study)

    @property
    def trials(self) -> "pandas.DataFrame":
        """Return a table of all trials: state, value, sampled values, costs, times, reason of a failure."""
        with storage_errors(self._url):
            return trial_table(self._study)

    @property
    def status(self) -> dict[str, Any]:
        """Return the counts of trials and the best one, as `fbsearch status --json` prints them."""
        with storage_errors(self._url):
            return status(self._study, url=self._url)

    @property
    def best(self) -> BestTrial:
        """Return the best complete trial. Raise StorageError if no trial is complete yet."""
        with storage_errors(self._url):
            trial = best_trial(self._study)
            num_val, goals = stored_dataset(self._study).get("num_val"), goals_of(self._study)
        if trial is None:
            raise StorageError(f"the study {self.name!r} has no complete trial yet; the same search goes on with it")
        record = TrialRecord.of(trial)
        return BestTrial(
            number=trial.number,
            value=trial.values[0],
            metric=goals[0],
            values=dict(zip(goals, trial.values, strict=True)),
            interval=wilson_interval(trial.values[0], num_val) if num_val and goals[0] == "val_accuracy" else None,
            params=trial.params,
            num_parameters=record.num_parameters,
            flops=record.flops,
            config=trial_config(trial),
        )

    @python_words()
    def report(self, path: str | Path | None = None, *, top: int = 10, force: bool = False) -> Path:
        """Write the report, one HTML file that opens offline, and return its path: without one reports/<study>.html.

        Raise ConfigError if the file is there and no report, without `force`.
        """
        from fbsearch.report.page import write_report

        with storage_errors(self._url):
            return write_report(self._study, None if path is None else Path(path), top=top, force=force)

    @python_words()
    def export(
        self,
        path: str | Path = "best.yaml",
        *,
        top: int = 5,
        trial: int | None = None,
        pareto: bool = False,
        force: bool = False,
    ) -> Path:
        """Write the `top` best configurations or one trial's (.yaml), or all trials (.csv, .json); return the path.

        `pareto` writes all of the Pareto front instead (.yaml), of a search with several objectives.
        Raise ConfigError for another ending, and if the file is there and of another kind, without `force`.
        StorageError for a trial that is not there, not complete, or repeats another.
        """
        path = Path(path)
        with storage_errors(self._url):
            if path.suffix in (".yaml", ".yml"):
                found = export_best(self._study, top=top) if trial is None else export_trial(self._study, trial)
                found = export_front(self._study) if pareto else found
                kind, text = EXPORT, dump_export(found)
            elif path.suffix == ".csv":
                kind, text = CSV_TABLE, self.trials.to_csv(index=False)
            elif path.suffix == ".json":
                kind, text = JSON_TABLE, self.trials.to_json(orient="records", date_format="iso", indent=1)
            else:
                raise ConfigError(f"{path}: ends in none of .yaml (the best), .csv and .json (all trials)")
        write_output(path, text, kind=kind, force=force, way_out="")
        return path

    @python_words()
    def train(
        self,
        *,
        seeds: int = 3,
        epochs: int | None = None,
        seconds: float | None = None,
        rank: int = 1,
        keep_validation: bool | None = None,
        device: str = "auto",
        output: str | Path = REPORTS,
        progress: bool = True,
    ) -> "Model":
        """Train the configuration of a rank with several seeds, score each once on the test split; return the first.

        The scores of all seeds are in `Model.training`. The folder output/<study>/rank-<R>/seed-<S> holds the result of
        each; a training that was stopped goes on after its last whole epoch, and a finished one is not repeated.

        Args:
            epochs: Passes over the data, instead of the configuration's or its budget.
            seconds: Seconds of training steps for each seed, instead of passes.
            keep_validation: Keep the validation images apart. Without it they are trained on too, unless they have to
                give the score, where there is no test split, or the configuration chooses an epoch by them.
            output: The folder of the results; a report finds them in `reports`.

        Raise FbsearchError for data that have changed and a folder with a training of other settings.
        """
        from fbsearch.api.training import train_winner

        self._model = train_winner(
            self._study,
            num_seeds=seeds,
            epochs=epochs,
            seconds=seconds,
            rank=rank,
            keep_validation=keep_validation,
            device=device,
            output=Path(output),
            progress=progress,
        )
        return self._model

    def rename(self, name: str) -> None:
        """Give the study another name. Raise StorageError if it is being searched, or the name is taken."""
        with storage_errors(self._url):
            rename_study(open_storage(self._url), self.name, name)
            self._study = load_study(open_storage(self._url), name)

    def delete(self) -> None:
        """Delete the study with all its trials. Raise StorageError if it is being searched."""
        with storage_errors(self._url):
            delete_study(open_storage(self._url), self.name)

    def __repr__(self) -> str:
        now = self.status
        counts = ", ".join(f"{now[f'num_{kind}']} {kind}" for kind in ("complete", "pruned", "failed", "running"))
        label = GOALS[now["metric"]].label
        best = now["best"] and f"; best {now['best']['value']:.2%} {label}, trial {now['best']['trial']}"
        return f"<Study {self.name!r} in {now['storage']}: {counts}{best or ''}>"

    def _repr_html_(self) -> str:
        from fbsearch.api.notebook import study_html

        with storage_errors(self._url):
            return study_html(self._study)


@python_words()
def open_study(name: str | None = None, *, storage: str | Path | None = None) -> Study:
    """Open a study, or the newest without a name. `storage` is that of `search`. Raise StorageError if absent."""
    url = storage_url(storage)
    with storage_errors(url):
        return Study(load_study(open_storage(url), name), storage=url)


@python_words()
def list_studies(*, storage: str | Path | None = None) -> "pandas.DataFrame":
    """Return a table of the studies of a database, the oldest first. `storage` is that of `search`."""
    import pandas

    url = storage_url(storage)
    with storage_errors(url):
        return pandas.DataFrame([study.as_dict() for study in catalogue.list_studies(open_storage(url))])


def storage_url(storage: str | Path | None) -> str:
    """Return the URL of a database: of an SQLite file for a path, $FBSEARCH_STORAGE or the default for None."""
    if storage is None:
        return os.environ.get("FBSEARCH_STORAGE") or DEFAULT_STORAGE
    return str(storage) if "://" in str(storage) else f"sqlite:///{storage}"
