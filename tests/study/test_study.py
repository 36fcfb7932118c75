"""The Optuna side of a search on real SQLite files: going on with a study, sampling, grids, putting back, the best."""

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from fbsearch.config.export_file import dump_export, load_export
from fbsearch.config.models import FractalPatternType, TrialConfig
from fbsearch.config.space import encode_choice, grid_points
from fbsearch.config.study_file import SHORT_RUN_MODEL, SearchConfig, StudyConfig
from fbsearch.errors import ConfigError, StorageError
from fbsearch.files import write_whole
from fbsearch.messages import FailureKind
from fbsearch.study.database import open_storage
from fbsearch.study.export import export_best, trial_table
from fbsearch.study.queries import best_trial
from fbsearch.study.sampling import enqueue_grid_point, make_pruner, make_sampler, sample
from fbsearch.study.study import best_trials, create_study, flush, load_study, status
from fbsearch.study.trial_record import (
    FINISHED,
    fail,
    is_duplicate,
    is_failure,
    is_finished,
    is_infeasible,
    put_back,
    put_back_running,
    sampled_names,
    tell_duplicate,
    tell_infeasible,
    trial_config,
)

CONFIG = StudyConfig()
GRID = StudyConfig.model_validate(
    {
        "name": "grid",
        "space": {
            "model.fractal_levels": {"num_stages": [1, 2], "level": [1, 2]},
            "model.base_channels": {"low": 8, "high": 16, "step": 8},
            "train.keep_best": {"choices": [True, False]},
        },
        "search": {"sampler": "grid", "pruner": "none"},
    }
)
DATASET = {"num_classes": 10, "in_channels": 1, "image_size": 8, "num_train": 1000}


def study_of(change: dict[str, Any]) -> StudyConfig:
    return StudyConfig.model_validate(change)


def start(study: optuna.Study, config: StudyConfig = CONFIG, **attributes: Any) -> tuple[optuna.Trial, dict[str, Any]]:
    """Ask for a trial and sample it, as the coordinator does."""
    trial = study.ask()
    values = sample(trial, config)
    trial.set_user_attr("config", config.trial(values, seed=trial.number).model_dump(mode="json"))
    for key, value in attributes.items():
        trial.set_user_attr(key, value)
    return trial, values


def finish(study: optuna.Study, value: float, config: StudyConfig = CONFIG, **attributes: Any) -> int:
    trial, _ = start(study, config, **attributes)
    study.tell(trial, value)
    return trial.number


def frozen(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


@pytest.fixture
def study(storage: RDBStorage) -> optuna.Study:
    return create_study(storage, CONFIG)


# A new study, and going on with one.


def test_create_study_new_is_maximised_and_keeps_its_settings(study: optuna.Study) -> None:
    assert study.study_name == "digits"
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert StudyConfig.model_validate(study.user_attrs["config"]) == CONFIG


def test_create_study_again_goes_on_with_its_trials(storage: RDBStorage, study: optuna.Study) -> None:
    finish(study, 0.5)
    again = create_study(storage, CONFIG)
    assert again._study_id == study._study_id
    assert [trial.value for trial in again.trials] == [0.5]


def test_create_study_another_name_is_another_study(storage: RDBStorage, study: optuna.Study) -> None:
    finish(study, 0.5)
    assert create_study(storage, study_of({"name": "other"})).trials == []


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            {"space": CONFIG.model_dump()["space"] | {"train.learning_rate": {"low": 0.001, "high": 0.05}}},
            ["space.train.learning_rate: {'low': 0.003,", "{'low': 0.001,"],
        ),
        ({"space": {"model.pattern": {"choices": ["julia"]}}}, ["space.model.base_channels: {", "} -> absent"]),
        ({"search": {"limits": {"flops": 9}}}, ["search.limits: {", "'flops': None", "'flops': 9"]),
        (
            {"space": CONFIG.model_dump()["space"] | {"train.epochs": {"low": 1, "high": 2}}},
            ["space.train.epochs: absent -> {"],
        ),
        ({"train": {"epochs": 9}}, ["train.epochs: 6 -> 9"]),
        ({"model": SHORT_RUN_MODEL.model_dump() | {"activation": "gelu"}}, ["model.activation: relu -> gelu"]),
        ({"data": {"name": "mnist"}}, ["data.name: digits -> mnist"]),
    ],
)
def test_create_study_changed_says_what_and_offers_a_name(
    storage: RDBStorage, study: optuna.Study, change: dict[str, Any], lines: list[str]
) -> None:
    finish(study, 0.5)
    with pytest.raises(ConfigError) as caught:
        create_study(storage, study_of(change))
    message = str(caught.value)
    assert message.startswith("the study 'digits' in the database was searched with other settings (stored -> now):")
    for line in lines:
        assert line in message
    assert message.endswith("--name NAME starts a new study with these settings")
    assert "model.dropout" not in message
    assert StudyConfig.model_validate(load_study(storage, "digits").user_attrs["config"]) == CONFIG


def test_create_study_other_search_settings_go_on(storage: RDBStorage, study: optuna.Study) -> None:
    finish(study, 0.5)
    again = create_study(storage, study_of({"search": {"sampler": "random", "pruner": "median", "seed": 3}}))
    assert isinstance(again.sampler, optuna.samplers.RandomSampler)
    assert isinstance(again.pruner, optuna.pruners.MedianPruner)
    assert len(again.trials) == 1


def test_create_study_with_what_changes_no_result_changed_goes_on(storage: RDBStorage, study: optuna.Study) -> None:
    finish(study, 0.5)
    train = CONFIG.train.model_copy(update={"cuda_graph": False, "tensorboard": "curves"})
    assert len(create_study(storage, CONFIG.model_copy(update={"train": train})).trials) == 1


def test_create_study_changed_before_the_first_trial_takes_the_new_settings(
    storage: RDBStorage, study: optuna.Study
) -> None:
    again = create_study(storage, study_of({"data": {"root": "elsewhere"}}))
    assert again.user_attrs["config"]["data"]["root"] == "elsewhere"


def test_create_study_foreign_with_trials_offers_a_name(storage: RDBStorage) -> None:
    foreign = optuna.create_study(storage=storage, study_name="digits", direction="maximize")
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(ConfigError, match=r"'digits' was not made by fbsearch; --name NAME starts a new one"):
        create_study(storage, CONFIG)
    assert "config" not in foreign.user_attrs


def test_create_study_foreign_that_is_minimised_is_refused(storage: RDBStorage) -> None:
    optuna.create_study(storage=storage, study_name="digits", direction="minimize")
    with pytest.raises(ConfigError):
        create_study(storage, CONFIG)


def test_create_study_of_a_newer_fbsearch_says_so(storage: RDBStorage, study: optuna.Study) -> None:
    finish(study, 0.5)
    study.set_user_attr("config", study.user_attrs["config"] | {"of_the_future": 1})
    with pytest.raises(ConfigError):
        create_study(storage, CONFIG)


def test_load_study_without_a_name_is_the_newest(storage: RDBStorage, study: optuna.Study) -> None:
    assert load_study(storage, None).study_name == "digits"
    finish(create_study(storage, study_of({"name": "a"})), 0.5)
    assert load_study(storage, None).study_name == "a"
    assert load_study(storage, "digits").study_name == "digits"
    create_study(storage, study_of({"name": "empty"}))
    assert load_study(storage, None).study_name == "a"


def test_load_study_unknown_lists_what_there_is(storage: RDBStorage, study: optuna.Study) -> None:
    create_study(storage, study_of({"name": "a"}))
    with pytest.raises(StorageError) as caught:
        load_study(storage, "digit")
    hint = "did you mean 'digits'? There are: digits, a"
    assert str(caught.value) == f"there is no study 'digit' in this database; {hint}"


@pytest.mark.parametrize("name", [None, "digits"])
def test_load_study_where_there_is_none_names_run(storage: RDBStorage, name: str | None) -> None:
    with pytest.raises(StorageError, match=r"no study in this database yet; `fbsearch run` makes one"):
        load_study(storage, name)


# Samplers and pruners.


def test_sampler_same_seed_draws_the_same(storage: RDBStorage) -> None:
    drawn = [start(create_study(storage, study_of({"name": name})))[1] for name in ("a", "b")]
    other = start(create_study(storage, study_of({"name": "c", "search": {"seed": 1}})))[1]
    assert drawn[0] == drawn[1] != other


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_sampler_of_a_resumed_study_draws_other_numbers(storage: RDBStorage, sampler: str) -> None:
    config = study_of({"search": {"sampler": sampler}})
    rates = []
    for _ in range(4):
        study = create_study(storage, config)
        trial, values = start(study, config)
        study.tell(trial, 0.5)
        rates.append(values["train.learning_rate"])
    assert len(set(rates)) == 4


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("random", optuna.samplers.RandomSampler),
        ("nsga2", optuna.samplers.NSGAIISampler),
        ("cmaes", optuna.samplers.CmaEsSampler),
        ("gp", optuna.samplers.GPSampler),
    ],
)
def test_sampler_is_the_one_that_is_named_and_samples(
    storage: RDBStorage, name: Any, kind: type[optuna.samplers.BaseSampler]
) -> None:
    assert isinstance(make_sampler(SearchConfig(sampler=name), num_trials=0), kind)
    config = study_of({"search": {"sampler": name}})
    study = create_study(storage, config)
    for number in range(9 if name == "gp" else 12):  # from the eleventh, gp loads torch
        assert finish(study, number / 12, config) == number


@pytest.mark.parametrize(
    ("pruner", "kind"),
    [
        ("median", optuna.pruners.MedianPruner),
        ("successive_halving", optuna.pruners.SuccessiveHalvingPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("none", optuna.pruners.NopPruner),
    ],
)
def test_pruner_is_the_one_that_is_named(pruner: str, kind: type[optuna.pruners.BasePruner]) -> None:
    assert isinstance(make_pruner(study_of({"search": {"pruner": pruner}})), kind)


def test_pruner_hyperband_counts_to_the_longest_trial() -> None:
    config = study_of({"search": {"pruner": "hyperband"}, "space": {"train.epochs": {"low": 3, "high": 27, "step": 8}}})
    pruner = make_pruner(config)
    assert isinstance(pruner, optuna.pruners.HyperbandPruner)
    assert pruner._max_resource == 27


def test_create_study_of_values_that_clash_is_an_error(storage: RDBStorage) -> None:
    config = study_of({"train": {"schedule": "cosine"}, "space": {"train.warmup_epochs": {"low": 0, "high": 20}}})
    with pytest.raises(ConfigError, match="cannot be used together: train: warmup_epochs 20"):
        create_study(storage, config)


def test_pruner_successive_halving_prunes_the_worse(study: optuna.Study) -> None:
    pruned = []
    for value in (0.9, 0.8, 0.7, 0.6, 0.1):
        trial, _ = start(study)
        trial.report(value, step=2)
        pruned.append(trial.should_prune())
        study.tell(trial, value)
    assert pruned == [False, True, True, True, True]


# Sampling.


def test_sample_default_space_gives_valid_trials_of_fixed_types(study: optuna.Study) -> None:
    seen = set()
    for _ in range(30):
        trial, values = start(study)
        assert values.keys() == CONFIG.space.keys()
        levels = values["model.fractal_levels"]
        assert isinstance(levels, tuple)
        assert len(levels) in (1, 2)
        assert set(levels) <= {1, 2}
        assert type(values["model.base_channels"]) is int
        assert FractalPatternType(values["model.pattern"])
        assert type(values["train.learning_rate"]) is float
        assert 0.003 <= values["train.learning_rate"] <= 0.05
        stages = {name for name in trial.params if name.startswith("model.fractal_levels.")}
        assert stages == {"model.fractal_levels.num_stages", *(f"model.fractal_levels.{i}" for i in range(len(levels)))}
        seen.add(levels)
        study.tell(trial, 0.5)
    assert len(seen) == 6


def test_sample_every_kind_of_dimension_keeps_its_type(storage: RDBStorage) -> None:
    space = {
        "model.fractal_levels": {"choices": [[1], [1, 2]]},
        "model.base_channels": {"low": 8, "high": 24, "step": 8},
        "model.dropout": {"low": 0, "high": 0.5, "step": 0.25},
        "model.drop_path_prob": {"low": 0, "high": 0.5},
        "train.batch_size": {"low": 16, "high": 64, "log": True},
        "train.epochs": {"low": 1.0, "high": 3.0},
        "train.early_stopping": {"low": 1, "high": 3},
        "train.clip_grad_norm": {"choices": [None, 1]},
        "train.keep_best": {"choices": [True, False]},
    }
    config = study_of({"space": space, "search": {"sampler": "random"}})
    study = create_study(storage, config)
    seen: dict[str, set[Any]] = {name: set() for name in space}
    for _ in range(20):
        for name, value in start(study, config)[1].items():
            seen[name].add(encode_choice(value))
    assert seen["model.fractal_levels"] == {"[1]", "[1, 2]"}
    assert seen["model.base_channels"] == {8, 16, 24}
    assert seen["model.dropout"] == {0, 0.25, 0.5}
    assert all(0 <= value <= 0.5 for value in seen["model.drop_path_prob"])
    assert all(16 <= value <= 64 for value in seen["train.batch_size"])
    assert seen["train.epochs"] == seen["train.early_stopping"] == {1, 2, 3}
    assert seen["train.clip_grad_norm"] == {None, 1}
    assert seen["train.keep_best"] == {True, False}
    types = {name: {type(value) for value in values} for name, values in seen.items()}
    assert types["model.base_channels"] == types["train.epochs"] == types["train.batch_size"] == {int}
    assert types["model.dropout"] == types["model.drop_path_prob"] == {float}
    assert types["train.keep_best"] == {bool}


def test_sampled_names_are_fields(study: optuna.Study) -> None:
    trial, _ = start(study)
    assert sampled_names(frozen(study, trial.number)) == list(CONFIG.space)


def test_trial_config_is_what_was_stored(study: optuna.Study) -> None:
    trial, values = start(study)
    config = trial_config(frozen(study, trial.number))
    assert config == CONFIG.trial(values, seed=trial.number)


# Grids.


def grid_point(values: dict[str, Any]) -> str:
    return str(sorted(values.items()))


def run_grid(study: optuna.Study, config: StudyConfig, *, most: int) -> Iterator[str]:
    for _ in range(most):
        if not enqueue_grid_point(study, config):
            return
        trial, values = start(study, config)
        study.tell(trial, 0.5)
        yield grid_point(values)


def test_grid_every_point_once_also_when_resumed(url: str) -> None:
    seen: list[str] = []
    for _ in range(3):
        storage = open_storage(url, create=True)
        seen += run_grid(create_study(storage, GRID), GRID, most=10)
        storage.engine.dispose()
    assert len(seen) == 24
    assert sorted(seen) == sorted(map(grid_point, grid_points(GRID.space)))
    assert seen != list(map(grid_point, grid_points(GRID.space)))


def test_grid_at_its_end_puts_nothing_into_the_queue(storage: RDBStorage) -> None:
    study = create_study(storage, GRID)
    assert len(list(run_grid(study, GRID, most=100))) == 24
    assert not enqueue_grid_point(study, GRID)
    assert not study.get_trials(states=(TrialState.WAITING,))


def test_grid_point_put_back_is_run_again_and_no_other_left_out(storage: RDBStorage) -> None:
    study = create_study(storage, GRID)
    enqueue_grid_point(study, GRID)
    _, first = start(study, GRID)
    put_back_running(study)
    again, values = start(study, GRID)
    assert values == first
    assert again.user_attrs["grid_index"] == 0
    study.tell(again, 0.5)
    rest = list(run_grid(study, GRID, most=100))
    assert sorted([grid_point(first), *rest]) == sorted(map(grid_point, grid_points(GRID.space)))


@pytest.mark.parametrize("num_sampled", [0, 1])
def test_grid_point_put_back_before_it_was_sampled_is_the_same_point(storage: RDBStorage, num_sampled: int) -> None:
    """SIGKILL between two suggests of a trial: what is in the database then."""
    part = GRID.model_copy(update={"space": dict(list(GRID.space.items())[:num_sampled])})
    study = create_study(storage, GRID)
    points = []
    for _ in range(8):  # by chance, one may be the same
        enqueue_grid_point(study, GRID)
        trial = study.ask()
        sample(trial, part)
        points.append(frozen(study, trial.number).system_attrs["fixed_params"])
        put_back_running(study)
        again, values = start(study, GRID)
        study.tell(again, 0.5)
        assert {name: encode_choice(value) for name, value in values.items()} == points[-1]


# Putting back.


def test_put_back_ends_the_trial_with_its_reason_and_queues_its_parameters(study: optuna.Study) -> None:
    trial, values = start(study)
    put_back(study, frozen(study, trial.number), kind="worker_died", message="was killed by SIGKILL", attempt=2)
    dead = frozen(study, trial.number)
    assert dead.state == TrialState.FAIL
    assert dead.user_attrs["failure"] == {"kind": "worker_died", "message": "was killed by SIGKILL"}
    assert is_failure(dead)
    again, same = start(study)
    assert (again.number, same) == (trial.number + 1, values)
    assert (again.user_attrs["retry_of"], again.user_attrs["attempt"]) == (trial.number, 2)
    assert frozen(study, again.number).intermediate_values == {}


def test_put_back_a_retry_names_the_first_trial(study: optuna.Study) -> None:
    trial, values = start(study)
    for attempt in (2, 3):
        put_back(study, frozen(study, trial.number), kind="x", message="y", attempt=attempt)
        trial, same = start(study)
        assert same == values
        assert (trial.user_attrs["retry_of"], trial.user_attrs["attempt"]) == (0, attempt)


def test_put_back_running_is_no_failure_and_no_attempt(storage: RDBStorage, study: optuna.Study) -> None:
    sampled = []
    for _ in range(2):
        trial, values = start(study)
        trial.report(0.3, step=1)
        sampled.append(values)
    flush(study)
    done = finish(study, 0.5)
    again = create_study(storage, CONFIG)
    assert put_back_running(again) == 2
    assert put_back_running(again) == 0
    assert [trial.state for trial in again.trials[:3]] == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert not any(is_failure(trial) for trial in again.trials)
    assert frozen(again, 0).user_attrs["failure"]["kind"] == FailureKind.INTERRUPTED
    queued = [again.ask() for _ in range(2)]
    assert [trial.user_attrs["retry_of"] for trial in queued] == [0, 1]
    assert [trial.user_attrs["attempt"] for trial in queued] == [1, 1]
    assert [sample(trial, CONFIG) for trial in queued] == sampled
    assert frozen(again, done).value == 0.5


def test_put_back_running_a_retry_keeps_its_attempt(study: optuna.Study) -> None:
    trial, _ = start(study)
    put_back(study, frozen(study, trial.number), kind="x", message="y", attempt=2)
    start(study)
    put_back_running(study)
    again = study.ask()
    assert (again.user_attrs["retry_of"], again.user_attrs["attempt"]) == (0, 2)


def test_fail_is_a_failure_and_queues_nothing(study: optuna.Study) -> None:
    trial, _ = start(study)
    fail(study, trial.number, kind="non_finite_loss", message="the loss is nan")
    assert is_failure(frozen(study, trial.number))
    assert not study.get_trials(states=(TrialState.WAITING,))


# The best, the state, the export, the table.


def test_best_trials_of_equal_values_smaller_then_earlier_first(study: optuna.Study) -> None:
    for value, size in [(0.9, 50), (0.9, 10), (0.8, 1), (0.9, 10), (0.95, 99)]:
        finish(study, value, num_parameters=size)
    assert [trial.number for trial in best_trials(study, 10)] == [4, 1, 3, 0, 2]
    assert [trial.number for trial in best_trials(study, 2)] == [4, 1]


def test_best_trials_are_complete_ones_only(study: optuna.Study) -> None:
    assert best_trials(study, 3) == []
    pruned, _ = start(study)
    pruned.report(0.99, step=1)
    study.tell(pruned, state=TrialState.PRUNED)
    failed, _ = start(study)
    fail(study, failed.number, kind="x", message="y")
    start(study)
    done = finish(study, 0.5)
    assert [trial.number for trial in best_trials(study, 3)] == [done]
    assert {frozen(study, number).state for number in (pruned.number, done)} == set(FINISHED)


def test_status_keys_and_counts(study: optuna.Study) -> None:
    url = "postgresql+psycopg://me:geheim@host/db"
    assert status(study, url=url) == {
        "study": "digits",
        "storage": "postgresql+psycopg://me:***@host/db",
        "num_complete": 0,
        "num_pruned": 0,
        "num_failed": 0,
        "num_running": 0,
        "num_waiting": 0,
        "num_infeasible": 0,
        "num_duplicates": 0,
        "best": None,
        "metric": "val_accuracy",
        "race": None,
        "front": None,
    }
    best = finish(study, 0.75)
    finish(study, 0.5)
    study.tell(start(study)[0], state=TrialState.PRUNED)
    fail(study, start(study)[0].number, kind="x", message="y")
    start(study)
    put_back_running(study)
    study.enqueue_trial({})
    start(study)
    found = status(study, url=url)
    assert {key: value for key, value in found.items() if key.startswith("num_")} == {
        "num_complete": 2, "num_pruned": 1, "num_failed": 1, "num_running": 1, "num_waiting": 1,
        "num_infeasible": 0, "num_duplicates": 0,
    }  # fmt: skip
    assert (found["best"]["trial"], found["best"]["value"]) == (best, 0.75)
    assert TrialConfig.model_validate(found["best"]["config"]) == trial_config(frozen(study, best))


def slow_status(study: optuna.Study) -> dict[str, Any]:
    """What status gives, from every trial."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials if is_finished(trial) or not trial.state.is_finished()]
    best = next(iter(best_trials(study, 1)), None)
    return {
        "study": study.study_name,
        "storage": "sqlite:///x.db",
        "num_complete": states.count(TrialState.COMPLETE),
        "num_pruned": states.count(TrialState.PRUNED),
        "num_failed": sum(is_failure(trial) for trial in trials),
        "num_running": states.count(TrialState.RUNNING),
        "num_waiting": states.count(TrialState.WAITING),
        "num_infeasible": sum(map(is_infeasible, trials)),
        "num_duplicates": sum(map(is_duplicate, trials)),
        "metric": "val_accuracy",
        "best": best
        and {
            "trial": best.number,
            "value": best.value,
            "values": {"val_accuracy": best.value},
            "config": best.user_attrs["config"],
        },
        "race": None,
        "front": None,
    }


def fill_mixed(study: optuna.Study) -> None:
    """Trials of every state and way to fail, and ties at the best value."""
    for value, size in [(0.1 + 0.2, 50), (0.3, 1), (0.1 + 0.2, 9), (0.1 + 0.2, 10), (0.1 + 0.2, 9)]:
        finish(study, value, num_parameters=size)
    for value in (0.1 + 0.2, 0.99):  # pruned ones are not the best, however good
        pruned, _ = start(study, num_parameters=1)
        pruned.report(value, step=1)
        study.tell(pruned, state=TrialState.PRUNED)
    for kind in ("worker_died", "worker_died", "non_finite_loss"):
        fail(study, start(study)[0].number, kind=kind, message=f'"kind": "{FailureKind.INTERRUPTED}"')
    study.tell(start(study)[0], state=TrialState.FAIL)  # without a reason
    tell_infeasible(study, start(study)[0], constraints={"flops": 0.1}, kind="over_limits", message="large")
    for of in (2, 5):  # complete, pruned
        tell_duplicate(study, start(study)[0], of=frozen(study, of))
    for _ in range(2):
        start(study)
    start(study, duplicate_of=2)  # killed before it was told
    put_back_running(study)
    # A trial that was told a reason and goes on, for a moment, is running.
    start(study, failure={"kind": FailureKind.INTERRUPTED, "message": "x"})


@pytest.mark.parametrize("step", ["empty", "unfinished", "mixed", "infinite"])
def test_status_equals_what_all_trials_say(storage: RDBStorage, study: optuna.Study, step: str) -> None:
    fill_mixed(create_study(storage, study_of({"name": "another"})))  # of which nothing is counted
    if step == "unfinished":
        start(study)
        study.enqueue_trial({})
    elif step != "empty":
        fill_mixed(study)
    if step == "infinite":
        for size in (2, 1):
            finish(study, float("inf"), num_parameters=size)
    found = status(load_study(storage, study.study_name), url="sqlite:///x.db")
    assert found == slow_status(study)
    if step == "mixed":
        counts = [found[f"num_{kind}"] for kind in ("complete", "pruned", "failed", "running", "waiting")]
        assert counts == [5, 2, 4, 1, 2]
        assert (found["num_infeasible"], found["num_duplicates"]) == (1, 2)
        assert found["best"]["trial"] == 2


def test_best_trial_is_the_first_of_best_trials(study: optuna.Study) -> None:
    assert best_trial(study) is None
    finish(study, 0.5, num_parameters=1)
    fill_mixed(study)
    assert best_trial(study) == best_trials(study, 1)[0]
    unsized = finish(study, 0.5)
    found = best_trial(study)
    assert found == best_trials(study, 1)[0] and found is not None and found.number == unsized


def test_load_study_and_status_read_one_trial_only(
    storage: RDBStorage, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_mixed(study)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("reads every trial")

    monkeypatch.setattr(RDBStorage, "_get_trials", refuse)
    assert status(load_study(storage, None), url="sqlite:///x.db")["best"]["trial"] == 2


def with_environment(study: optuna.Study, values: list[float]) -> None:
    study.set_user_attr("dataset", DATASET | {"class_names": list("0123456789")})
    for number, value in enumerate(values):
        environment = {"versions": {"torch": "2", "fbsearch": "0.1.0"}}
        finish(study, value, num_parameters=100 + number, environment=environment, flops=10 + number, seconds=0.5)


def test_export_best_is_whole_and_in_order(study: optuna.Study, tmp_path: Any) -> None:
    with_environment(study, [0.5, 0.9, 0.7])
    export = export_best(study, top=2)
    assert (export.study, export.versions) == ("digits", {"torch": "2", "fbsearch": "0.1.0"})
    assert [(c.rank, c.trial, c.value, c.num_parameters) for c in export.configs] == [
        (1, 1, 0.9, 101),
        (2, 2, 0.7, 102),
    ]
    for exported in export.configs:
        config = trial_config(frozen(study, exported.trial))
        assert (exported.data, exported.model, exported.train, exported.seed) == (
            config.data, config.model, config.train, config.seed,
        )  # fmt: skip
        assert (exported.num_classes, exported.in_channels, exported.image_size) == (10, 1, 8)
    path = tmp_path / "best.yaml"
    write_whole(path, dump_export(export))
    assert load_export(path) == export.model_copy(update={"exported": export.exported.replace(microsecond=0)})


def test_export_best_says_what_was_searched_and_what_it_cost(study: optuna.Study) -> None:
    with_environment(study, [0.5, 0.9])  # told without an epoch
    for num_epochs, flops, state in ((2, 100, TrialState.PRUNED), (3, 1000, TrialState.COMPLETE)):
        trial, _ = start(study, flops=flops, seconds=num_epochs)
        for step in range(1, num_epochs + 1):
            trial.report(0.1, step=step)
        study.tell(trial, 0.1 if state == TrialState.COMPLETE else None, state=state)
    fail(study, start(study, flops=7, seconds=9)[0].number, kind="error", message="not counted")
    search = export_best(study, top=1).search
    assert search is not None
    assert (search.model, search.train, search.space) == (CONFIG.model, CONFIG.train, CONFIG.space)
    assert search.compute.model_dump() == {
        "num_trials": 4, "num_epochs": 5, "train_flops": 1000 * (2 * 100 + 3 * 1000), "seconds": 6.0,
    }  # fmt: skip


def test_export_best_of_a_space_that_another_version_wrote_goes_without(study: optuna.Study) -> None:
    with_environment(study, [0.5])
    study.set_user_attr("config", study.user_attrs["config"] | {"unknown": 1})
    assert export_best(study, top=1).search is None


def test_export_best_more_than_there_are_gives_all(study: optuna.Study) -> None:
    with_environment(study, [0.5, 0.9])
    assert [config.trial for config in export_best(study, top=5).configs] == [1, 0]


def test_export_best_without_a_complete_trial_names_run(study: optuna.Study) -> None:
    study.tell(start(study)[0], state=TrialState.PRUNED)
    with pytest.raises(StorageError, match=r"'digits' has no complete trial yet; `fbsearch run` goes on with it"):
        export_best(study, top=1)


def test_status_and_export_of_a_foreign_study_say_so(storage: RDBStorage) -> None:
    foreign = optuna.create_study(storage=storage, study_name="theirs", direction="maximize")
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(StorageError):
        status(load_study(storage, "theirs"), url="sqlite:///x.db")
    with pytest.raises(StorageError):
        export_best(load_study(storage, "theirs"), top=1)


def test_trial_table_has_a_row_for_each_trial(study: optuna.Study) -> None:
    trial, values = start(study, num_parameters=123, flops=456, seconds=1.5, device="cpu")
    for step in (1, 2):
        trial.report(0.4, step=step)
    study.tell(trial, 0.5)
    study.tell(start(study)[0], state=TrialState.PRUNED)
    fail(study, start(study)[0].number, kind="non_finite_loss", message="the loss is nan")
    table = trial_table(study)
    assert list(table.trial) == [0, 1, 2]
    assert list(table.state) == ["complete", "pruned", "fail"]
    assert {
        "value", "model.fractal_levels.num_stages", "model.fractal_levels.0", "model.base_channels", "model.pattern",
        "train.learning_rate", "num_parameters", "flops", "seconds", "device", "epochs", "started", "ended", "seed",
        "failure",
    } <= set(table.columns)  # fmt: skip
    first = table.iloc[0]
    assert (first.value, first.num_parameters, first.flops, first.seconds) == (0.5, 123, 456, 1.5)
    assert (first.device, first.epochs, first.seed) == ("cpu", 2, 0)
    assert first["train.learning_rate"] == values["train.learning_rate"]
    assert first["model.pattern"] == values["model.pattern"]
    assert first.started <= first.ended
    assert list(table.failure.isna()) == [True, True, False]
    assert table.iloc[2].failure == "the loss is nan"


def test_trial_table_without_trials_has_its_columns(study: optuna.Study) -> None:
    assert {"trial", "state", "value", "num_parameters", "epochs", "failure"} <= set(trial_table(study).columns)
