"""A database that may be away for a while: a coordinator waits for it, and every write is made once, in order.

Away means locked by another program, on a full disk, a server that is stopped or being started. Optuna's own storage
gives up at the first error; here each of its operations is tried again until the database is back. An operation whose
answer was lost may have been done: those that cannot simply be done again say how they find that out.
"""

import contextlib
import copy
import datetime
import functools
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

# How long a coordinator waits before it stops with the database's error.
PATIENCE_SECONDS = 300
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 1.0
# A trial's system attribute: by this a trial is found again whose making or taking was not confirmed.
TOKEN = "fbsearch:token"

P = ParamSpec("P")
R = TypeVar("R")
# Is told the error and asked before each pause; False ends the wait.
OnWait = Callable[[BaseException], bool]


def is_passing(error: BaseException) -> bool:
    """Whether what a database operation threw may pass: locked, full, unreachable; not a broken or foreign database."""
    if isinstance(error, AssertionError):
        return "Should not reach" in str(error)  # Optuna's words for a full disk in WAL mode
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sqlalchemy.exc.PendingRollbackError):
        # Optuna takes a cut connection for a query that was too long, and asks again on what is cut (SQLAlchemy's code
        # for that); the other cause is a flush that failed, which stays so.
        return error.code == "8s2b"
    if not isinstance(error, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)):
        return False
    return not any(sign in str(error) for sign in ("no such table", "no such column"))


def _patient(operation: Callable[Concatenate[RDBStorage, P], R]) -> Callable[Concatenate["RetryingStorage", P], R]:
    """The operation, tried until the database answers; only for what may be done twice."""

    @functools.wraps(operation)
    def tried(self: "RetryingStorage", *args: P.args, **kwargs: P.kwargs) -> R:
        return self.wait_for(lambda _is_again: operation(self, *args, **kwargs))

    return cast("Callable[Concatenate[RetryingStorage, P], R]", tried)


class RetryingStorage(RDBStorage):
    """Optuna's storage in a database, waiting up to `patience` seconds where that is away.

    `on_wait` is called before each pause: the place to look after workers and to show that the database is away. It
    must not use the storage.
    """

    def __init__(self, *args: Any, patience: float = PATIENCE_SECONDS, **kwargs: Any) -> None:
        self.patience = patience
        self.on_wait: OnWait | None = None
        self._away_since: float | None = None
        super().__init__(*args, **kwargs)

    def wait_for(self, operation: Callable[[bool], R]) -> R:
        """What `operation` gives; it is told whether it has been tried before. Its last error once patience is over.

        Patience is counted from the database's last answer, so that whoever comes after an operation that was given
        up does not wait as long again.
        """
        pause, is_again = MIN_PAUSE_SECONDS, False
        while True:
            try:
                result = operation(is_again)
            except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, AssertionError) as error:
                if not is_passing(error):
                    raise
                now = time.monotonic()
                self._away_since = now if self._away_since is None else self._away_since
                goes_on = self.on_wait is None or self.on_wait(error)
                if not goes_on or now - self._away_since >= self.patience:
                    raise
            else:
                self._away_since = None
                return result
            time.sleep(pause)
            pause, is_again = min(2 * pause, MAX_PAUSE_SECONDS), True

    # Reads, and writes that a second time change nothing: each sets a value under a key.
    create_new_study = _patient(RDBStorage.create_new_study)
    set_study_user_attr = _patient(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patient(RDBStorage.set_study_system_attr)
    get_study_id_from_name = _patient(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patient(RDBStorage.get_study_name_from_id)
    get_study_directions = _patient(RDBStorage.get_study_directions)
    get_study_user_attrs = _patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(RDBStorage.get_study_system_attrs)
    get_all_studies = _patient(RDBStorage.get_all_studies)
    _set_trial_param = _patient(RDBStorage._set_trial_param)
    set_trial_intermediate_value = _patient(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = _patient(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patient(RDBStorage.set_trial_system_attr)
    get_trial_id_from_study_id_trial_number = _patient(RDBStorage.get_trial_id_from_study_id_trial_number)
    get_trial = _patient(RDBStorage.get_trial)
    get_trial_user_attrs = _patient(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = _patient(RDBStorage.get_trial_system_attrs)
    _get_trials = _patient(RDBStorage._get_trials)
    _get_best_trial_id = _patient(RDBStorage._get_best_trial_id)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Make a trial, once: Optuna's own, which this replaces, makes another where only the answer was lost."""
        template = copy.deepcopy(template_trial) if template_trial else _running_trial()
        template.system_attrs[TOKEN] = uuid.uuid4().hex

        def create(is_again: bool) -> tuple[int, int]:
            with _create_scoped_session(self.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                made: Any = _find_made(session, study_id, template.system_attrs[TOKEN]) if is_again else None
                made = made or self._get_prepared_new_trial(study_id, template, session)
                return made.trial_id, made.number

        template._trial_id, template.number = self.wait_for(create)
        return template

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state; False where another process has taken a waiting trial."""
        if state == TrialState.RUNNING:
            return self._take(trial_id)

        def write(is_again: bool) -> bool:
            if is_again and RDBStorage.get_trial(self, trial_id).state == state:
                return True
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        return self.wait_for(write)

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

        return self.wait_for(take)


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


def patiently(storage: RDBStorage, operation: Callable[[], R]) -> R:
    """What `operation` on a database gives; it may be done twice. Only a patient storage waits."""
    return storage.wait_for(lambda _is_again: operation()) if isinstance(storage, RetryingStorage) else operation()


@contextlib.contextmanager
def while_away(study: optuna.Study, on_wait: OnWait) -> Iterator[None]:
    """Call `on_wait` while the study's database is away, within the block; a storage that has no patience never is."""
    storage = getattr(study._storage, "_backend", None)
    if not isinstance(storage, RetryingStorage):
        yield
        return
    storage.on_wait = on_wait
    try:
        yield
    finally:
        storage.on_wait = None
