"""The studies of a database: list, delete and rename them. A study that is being searched is left alone."""

import contextlib
import datetime
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.study_file import MAX_NAME
from fbsearch.errors import ConfigError, StorageError
from fbsearch.study.locks import StudyHeldError, claim_study, is_claimed
from fbsearch.study.queries import best_trial, count_trials, list_rows
from fbsearch.study.study import CONFIG, describe_searcher, find_row, goals_of, stored_settings


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study in one row. `data` is the data set's name, with its folder or file where it has one.

    `best` is the best trial's value of `metric`, the first goal. `last` is when its last trial began or ended, in local
    time. A study of another program has a name and counts only.
    """

    name: str
    data: str
    is_ours: bool
    is_searched: bool
    num_complete: int
    num_pruned: int
    num_failed: int
    num_running: int
    num_waiting: int
    num_infeasible: int
    best: float | None
    metric: str
    last: datetime.datetime | None

    def as_dict(self) -> dict[str, Any]:
        """Return what `fbsearch studies --json` prints."""
        return asdict(self) | {"last": self.last and self.last.isoformat(timespec="seconds")}


def list_studies(storage: RDBStorage) -> list[StudySummary]:
    """Return all studies of a database, the oldest first, those of other programs too."""
    found = []
    for row in list_rows(storage, mark=CONFIG):
        study = optuna.load_study(storage=storage, study_name=row.name)
        counts = count_trials(study)
        data, best = _describe(study) if row.is_ours else ("another program's", None)
        # Only then can it be: to ask makes a lock file beside an SQLite database.
        can_be_searched = row.is_ours and (counts[TrialState.RUNNING] > 0 or row.num_trials == 0)
        summary = StudySummary(
            name=row.name,
            data=data,
            is_ours=row.is_ours,
            is_searched=can_be_searched and is_claimed(study),
            num_complete=counts[TrialState.COMPLETE],
            num_pruned=counts[TrialState.PRUNED],
            num_failed=counts[TrialState.FAIL],
            num_running=counts[TrialState.RUNNING],
            num_waiting=counts[TrialState.WAITING],
            num_infeasible=counts["infeasible"],
            best=None if best is None else best.values[0],
            metric="val_accuracy" if best is None else goals_of(study)[0],
            last=row.last and row.last.astimezone(),
        )
        found.append(summary)
    return found


def _describe(study: optuna.Study) -> tuple[str, FrozenTrial | None]:
    """Return the name of a study's data and its best trial; `damaged` and None if either cannot be read."""
    try:
        data, best = stored_settings(study).get("data", {}), best_trial(study)
        goals_of(study)  # by which the best is named
    except (StorageError, json.JSONDecodeError):
        return "damaged", None
    name, root = (data.get(key, "?") for key in ("name", "root")) if isinstance(data, dict) else ("?", "?")
    return f"{name} {root}" if name in ("folder", "arrays") else str(name), best


def delete_study(storage: RDBStorage, name: str) -> int:
    """Delete a study with all its trials; return their number.

    StorageError if there is no such study, another program made it, or a search holds it.
    """
    with _hold(storage, name):
        row = find_row(storage, name)
        in_study = models.TrialModel.study_id == row.study_id
        trials = sqlalchemy.select(models.TrialModel.trial_id).where(in_study)
        with storage.engine.begin() as connection:
            # Optuna's own way reads each trial with all it has before it deletes it. Tables are sorted by what they
            # refer to, so those that refer to a study or to its trials come before these.
            for table in reversed(models.BaseModel.metadata.sorted_tables):
                if "study_id" in table.c:
                    connection.execute(table.delete().where(table.c.study_id == row.study_id))
                elif "trial_id" in table.c:
                    connection.execute(table.delete().where(table.c.trial_id.in_(trials)))
    return row.num_trials


def rename_study(storage: RDBStorage, old: str, new: str) -> None:
    """Give a study another name, in its stored study file too.

    ConfigError for a name that no study can have; StorageError as `delete_study`, and if the new name is taken.
    """
    if not 1 <= len(new) <= MAX_NAME:
        raise ConfigError(f"the new name must have 1 to {MAX_NAME} characters, not {len(new)}")
    with _hold(storage, old):
        row = find_row(storage, old)
        if any(other.name == new for other in list_rows(storage, mark=CONFIG)):
            raise StorageError(f"there is a study {new!r} already; delete it first, or choose another name")
        settings = stored_settings(optuna.load_study(storage=storage, study_name=old)) | {"name": new}
        study, attribute = models.StudyModel, models.StudyUserAttributeModel
        renamed = sqlalchemy.update(study).where(study.study_id == row.study_id).values(study_name=new)
        stored = (attribute.study_id == row.study_id) & (attribute.key == CONFIG)
        with storage.engine.begin() as connection:
            connection.execute(renamed)
            connection.execute(sqlalchemy.update(attribute).where(stored).values(value_json=json.dumps(settings)))


@contextlib.contextmanager
def _hold(storage: RDBStorage, name: str) -> Iterator[None]:
    """Keep searches of one of fbsearch's studies out within the block. StorageError if there is one now."""
    if not find_row(storage, name).is_ours:
        raise StorageError(f"the study {name!r} was not made by fbsearch; Optuna's own tools change it")
    searcher = f"the study {name!r} is being searched{describe_searcher(storage, name)}; end that with Ctrl-C first"
    with contextlib.ExitStack() as stack:
        try:
            claim = stack.enter_context(claim_study(storage, name))
        except StudyHeldError:
            raise StorageError(searcher) from None
        stack.enter_context(claim.lock())
        if claim.num_other_claims():
            raise StorageError(searcher)
        yield
