"""What fbsearch relies on inside Optuna. A test that fails here names what a new version has changed."""

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

PACKAGE = Path(__file__).parents[2]


def test_optuna_is_capped_at_the_version_whose_internals_are_known() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = [text for text in project["dependencies"] if re.match(r"optuna\b(?!-)", text)]
    assert requirement == "optuna>=5.0,<5.1"
    assert optuna.__version__.startswith("5.0.")


def test_only_study_uses_optunas_private_names() -> None:
    private = re.compile(r"optuna\.[\w.]*\b_\w+|\._storage\b|\._trial_id\b|\._study_id\b|\._backend\b")
    found = {
        str(path.relative_to(PACKAGE))
        for path in (PACKAGE / "fbsearch").rglob("*.py")
        if path.parent.name != "study" and private.search(path.read_text(encoding="utf-8"))
    }
    assert not found


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (RDBStorage, "_create_new_trial", ("study_id", "template_trial")),
        (RDBStorage, "_get_prepared_new_trial", ("study_id", "template_trial", "session")),
        (
            RDBStorage,
            "_set_trial_param",
            ("trial_id", "param_name", "param_value_internal", "distribution", "previous_distribution"),
        ),
        (RDBStorage, "_set_trial_attr_without_commit", ("session", "model_cls", "trial_id", "key", "value")),
        (RDBStorage, "_get_trials", ("study_id", "states", "included_trial_ids", "trial_id_greater_than")),
        (RDBStorage, "_get_best_trial_id", ("study_id", "direction")),
        (RDBStorage, "check_trial_is_updatable", ("trial_id", "trial_state")),
        (_CachedStorage, "_read_trials_from_remote_storage", ("study_id",)),
        (_CachedStorage, "_add_trials_to_cache", ("study_id", "trials")),
        (models.TrialModel, "find_or_raise_by_id", ("trial_id", "session", "for_update")),
        (models.StudyModel, "find_or_raise_by_id", ("study_id", "session", "for_update")),
        (models.TrialValueModel, "value_to_stored_repr", ("value",)),
        (models.TrialValueModel, "stored_repr_to_value", ("value", "float_type")),
        (models.TrialIntermediateValueModel, "intermediate_value_to_stored_repr", ("value",)),
    ],
)
def test_private_methods_take_what_they_took(owner: type[Any], name: str, parameters: tuple[str, ...]) -> None:
    found = tuple(inspect.signature(getattr(owner, name)).parameters)
    assert tuple(parameter for parameter in found if parameter not in ("self", "cls")) == parameters


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        (models.TrialModel, {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"}),
        (models.TrialParamModel, {"param_id", "trial_id", "param_name", "param_value", "distribution_json"}),
        (models.TrialValueModel, {"trial_value_id", "trial_id", "objective", "value", "value_type"}),
        (
            models.TrialIntermediateValueModel,
            {"trial_intermediate_value_id", "trial_id", "step", "intermediate_value", "intermediate_value_type"},
        ),
        (models.TrialUserAttributeModel, {"trial_user_attribute_id", "trial_id", "key", "value_json"}),
        (models.TrialSystemAttributeModel, {"trial_system_attribute_id", "trial_id", "key", "value_json"}),
    ],
)
def test_tables_have_the_columns_they_had(model: type[Any], columns: set[str]) -> None:
    assert {column.name for column in model.__table__.columns} == columns


def test_cache_reads_unfinished_trials_again_and_finished_ones_once(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage)
    cached = study._storage
    assert type(cached) is _CachedStorage and cached._backend is storage
    for value in (1.0, 2.0):
        study.tell(study.ask(), value)
    waiting = study.ask()
    assert len(study.get_trials(deepcopy=False)) == 3
    info = cached._studies[study._study_id]
    assert isinstance(info, _StudyInfo) and sorted(info.trials) == [0, 1, 2]
    assert info.unfinished_trial_ids == {waiting._trial_id}
    assert info.last_finished_trial_id == waiting._trial_id - 1
    assert info.param_distribution == {}
    assert cached._trial_id_to_study_id_and_number[waiting._trial_id] == (study._study_id, 2)


def test_scoped_session_commits_or_rolls_back_and_wraps_errors(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage, study_name="s")
    with pytest.raises(ZeroDivisionError), _create_scoped_session(storage.scoped_session) as session:
        models.StudyModel.find_or_raise_by_id(study._study_id, session).study_name = "t"
        raise ZeroDivisionError
    assert storage.get_study_name_from_id(study._study_id) == "s"
    bad = pytest.raises(optuna.exceptions.StorageInternalError)
    with bad, _create_scoped_session(storage.scoped_session) as session:
        session.execute(sqlalchemy.text("SELECT * FROM absent"))


def test_enqueued_parameters_are_kept_under_the_name_that_put_back_reads(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage)
    study.enqueue_trial({"x": 0.5}, user_attrs={"attempt": 2})
    (waiting,) = study.trials
    assert waiting.state == TrialState.WAITING
    assert (waiting.system_attrs["fixed_params"], waiting.user_attrs) == ({"x": 0.5}, {"attempt": 2})


def test_trial_that_another_process_ended_refuses_writes(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    study.tell(trial.number, 0.5)
    assert isinstance(study.trials[0], FrozenTrial)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.report(0.5, step=1)
