"""A storage that tries again while its database is away; every write is made once, in order.

A database is away while another program locks it, its disk is full, or its server is stopped or being started.
Optuna's own storage gives up at the first error. An operation whose answer was lost may have been done: those that
must not be done twice find out by a token that they write.
"""

import contextlib
import copy
import datetime
import functools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

from fbsearch.study.sqlite_file import SqliteFile

# A coordinator stops with the database's error after this time.
TIMEOUT_SECONDS = 300
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 1.0
# A system attribute of a trial, which identifies one whose making or taking was not confirmed.
TOKEN = "fbsearch:token"

R = TypeVar("R")
# Called with the error before each pause; False ends the retries.
OnRetry = Callable[[BaseException], bool]


def is_transient(error: BaseException) -> bool:
    """Return True for an error of a database that is locked, full or away; False for a broken or foreign database."""
    if isinstance(error, AssertionError):
        return "Should not reach" in str(error)  # Optuna's words for a full disk in WAL mode
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.PendingRollbackError):
        # Optuna takes a cut connection for a query that was too long, and asks again on that connection (this code of
        # SQLAlchemy's); the other cause is a flush that failed, which fails again.
        return error.code == "8s2b"
    if not isinstance(error, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)):
        return False
    return not any(sign in str(error) for sign in ("no such table", "no such column"))


class RetryingStorage(RDBStorage):
    """Optuna's storage in a database; an operation is tried again for up to `timeout_seconds` while that is away.

    `on_retry` is called before each pause, to look after workers and to show that the database is away. It must not use
    the storage. StorageError if the `file` of an SQLite database was deleted or replaced; what it held is saved first.
    """

    def __init__(
        self, *args: Any, file: SqliteFile | None = None, timeout_seconds: float = TIMEOUT_SECONDS, **kwargs: Any
    ) -> None:
        self.timeout_seconds, self._file = timeout_seconds, file
        self.max_pause_seconds = MAX_PAUSE_SECONDS
        self.on_retry: OnRetry | None = None
        self._away_since: float | None = None
        super().__init__(*args, **kwargs)

    def retry(self, operation: Callable[[bool], R]) -> R:
        """Return the result of `operation`, which is told whether it was tried before. Raise its last error in the end.

        The timeout is counted from the first error after the database's last answer: the operation after one that was
        given up does not wait as long again.
        """
        pause, is_again = MIN_PAUSE_SECONDS, False
        while True:
            try:
                result = operation(is_again)
            except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, AssertionError) as error:
                if not is_transient(error):
                    raise
                now = time.monotonic()
                self._away_since = now if self._away_since is None else self._away_since
                goes_on = self.on_retry is None or self.on_retry(error)
                if not goes_on or now - self._away_since >= self.timeout_seconds:
                    raise
            else:
                self._away_since = None
                # After, not before: what the operation wrote went to the file that is open, and is saved with it.
                if self._file is not None and not self._file.is_in_place():
                    raise self._file.save_lost()
                return result
            time.sleep(min(pause, self.max_pause_seconds))
            pause, is_again = 2 * pause, True

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Make a trial once. Optuna's own method makes another one where only the answer was lost."""
        template = copy.deepcopy(template_trial) if template_trial else _running_trial()
        template.system_attrs[TOKEN] = uuid.uuid4().hex

        def create(is_again: bool) -> tuple[int, int]:
            with _create_scoped_session(self.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                made: Any = _find_made(session, study_id, template.system_attrs[TOKEN]) if is_again else None
                made = made or self._get_prepared_new_trial(study_id, template, session)
                return made.trial_id, made.number

        template._trial_id, template.number = self.retry(create)
        return template

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state; return False if another process has taken a waiting trial."""
        if state == TrialState.RUNNING:
            return self._take(trial_id)

        def write(is_again: bool) -> bool:
            if is_again and RDBStorage.get_trial(self, trial_id).state == state:
                return True
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        return self.retry(write)

    def _take(self, trial_id: int) -> bool:
        token = uuid.uuid4().hex

        def take(is_again: bool) -> bool:
            with _create_scoped_session(self.scoped_session) as session:
                trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                self.check_trial_is_updatable(trial_id, trial.state)
                if trial.state != TrialState.WAITING:
                    return is_again and _find_made(session, trial.study_id, token) is not None
                trial.state, trial.datetime_start = TrialState.RUNNING, datetime.datetime.now()
                self._set_trial_attr_without_commit(session, models.TrialSystemAttributeModel, trial_id, TOKEN, token)
            return True

        return self.retry(take)


def _running_trial() -> FrozenTrial:
    return FrozenTrial(
        number=-1, trial_id=-1, state=TrialState.RUNNING, value=None, values=None,
        datetime_start=datetime.datetime.now(), datetime_complete=None, params={}, distributions={}, user_attrs={},
        system_attrs={}, intermediate_values={},
    )  # fmt: skip


def _find_made(session: sqlalchemy.orm.Session, study_id: int, token: str) -> models.TrialModel | None:
    attribute = models.TrialSystemAttributeModel
    query = (
        session.query(models.TrialModel)
        .join(attribute)
        .filter(models.TrialModel.study_id == study_id, attribute.key == TOKEN, attribute.value_json == f'"{token}"')
    )
    return query.one_or_none()


def _retried(operation: Callable[..., R]) -> Callable[..., R]:
    @functools.wraps(operation)
    def tried(self: RetryingStorage, *args: Any, **kwargs: Any) -> R:
        return self.retry(lambda _is_again: operation(self, *args, **kwargs))

    return tried


# Reads, and writes that change nothing when they are repeated: each sets a value under a key.
for _name in (
    "create_new_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs",
    "get_all_studies", "_set_trial_param", "set_trial_intermediate_value", "set_trial_user_attr",
    "set_trial_system_attr", "get_trial_id_from_study_id_trial_number", "get_trial", "get_trial_user_attrs",
    "get_trial_system_attrs", "_get_trials", "_get_best_trial_id",
):  # fmt: skip
    setattr(RetryingStorage, _name, _retried(getattr(RDBStorage, _name)))


def retry(storage: RDBStorage, operation: Callable[[], R]) -> R:
    """Return the result of an operation on a database, which may be done twice. Only a RetryingStorage retries."""
    return storage.retry(lambda _is_again: operation()) if isinstance(storage, RetryingStorage) else operation()


@contextlib.contextmanager
def call_on_retry(study: optuna.Study, on_retry: OnRetry) -> Iterator[None]:
    """Call `on_retry` while the study's database is away, within the block; never for a storage that does not retry."""
    storage = getattr(study._storage, "_backend", None)
    if not isinstance(storage, RetryingStorage):
        yield
        return
    storage.on_retry = on_retry
    try:
        yield
    finally:
        storage.on_retry = None
