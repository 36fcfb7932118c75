"""Searches with several objectives: exactly N with pruning, kills, several coordinators, repeats; bad settings.

Runs are from a table; the last tests train.
"""

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import optuna_dashboard
import pytest
import sklearn.metrics
import torch
import yaml
from made_table import SPACE, make_run, write_table
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from simulated_search import make_stats

from fbsearch.bench.table_executor import TableExecutor
from fbsearch.bench.table_file import Table, read_table
from fbsearch.cli.live import PlainLines
from fbsearch.cli.status import print_end, print_front, watch_table
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.export_file import load_export
from fbsearch.config.study_file import SearchConfig, StudyConfig
from fbsearch.data.dataset import Split
from fbsearch.errors import ConfigError, StorageError
from fbsearch.messages import DatasetInfo, Event, FailureKind
from fbsearch.report.dashboard import annotate_all
from fbsearch.report.page import write_report
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.dashboard_storage import ArtifactFolder
from fbsearch.study.database import open_storage
from fbsearch.study.export import trial_table
from fbsearch.study.locks import claim_study
from fbsearch.study.queries import best_trial
from fbsearch.study.study import best_trials, check_classes, create_study, goals_of, status
from fbsearch.study.trial_record import TrialRecord, is_duplicate, is_finished, num_epochs
from fbsearch.training.evaluation import mean_scores
from fbsearch.training.step import PADDING, Totals
from fbsearch.workers.local import InProcessExecutor
from fbsearch.workers.worker import final_value

Fbsearch = Callable[..., tuple[int, str, str]]
OBJECTIVES = ["val_accuracy", "flops"]
WIDTHS, RATES = [8, 12, 16, 20, 24, 28], [0.001, 0.002, 0.004, 0.006]
N = 20


def write_wide_table(path: Path, *, failing: int | None = None) -> Path:
    """A table of which wider networks cost more and are better, up to a point; a width may fail."""
    space = SPACE | {
        "model.base_channels": {"choices": WIDTHS}, "train.learning_rate": {"choices": RATES},
    }  # fmt: skip
    runs = []
    for width in WIDTHS:
        for rate in RATES:
            top = 0.6 + 0.3 * (1 - np.exp(-width / 8)) + 20 * min(rate, 0.008 - rate) * (0.5 if width == 28 else 1)
            curve = tuple(round(top * epoch / 4, 6) for epoch in range(1, 5))
            changes: dict[str, Any] = {"val_accuracy": curve, "value": curve[-1], "val_loss": (1 - top,) * 4}
            if width == failing:
                changes |= {"value": None, "failure_kind": FailureKind.NON_FINITE_LOSS, "failure": "not finite"}
            runs.append(make_run(width, rate, 0, **changes).model_copy(update={"flops": 1000 * width**2}))
    return write_table(path, runs, space=space)


class Searches:
    """Searches of one study in one database, with workers on a virtual clock."""

    def __init__(self, storage: RDBStorage, table: Table) -> None:
        self.storage, self.table = storage, table

    def config(self, **search: Any) -> StudyConfig:
        made = SearchConfig.model_validate({"objectives": OBJECTIVES, "sampler": "random"} | search)
        return self.table.study.model_copy(update={"search": made})

    def run(
        self, *, num_trials: int = N, num_workers: int = 3, show: Any = None, **search: Any
    ) -> tuple[optuna.Study, SearchState]:
        config = self.config(**search)
        executor = TableExecutor(self.table, num_workers=num_workers, draw=0)
        with claim_study(self.storage, config.name) as claim:
            study = create_study(self.storage, config)
            coordinator = Coordinator(
                study, config, executor, num_trials=num_trials, trial_timeout=1e9, show=show or (lambda *_: None),
                claim=claim, clock=executor.clock,
            )  # fmt: skip
            return study, coordinator.run()


@pytest.fixture
def searches(storage: RDBStorage, tmp_path: Path) -> Searches:
    return Searches(storage, read_table(write_wide_table(tmp_path / "made.jsonl.xz")))


def counted(study: optuna.Study) -> list[int]:
    return [trial.number for trial in study.get_trials() if is_finished(trial)]


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "grid"])
def test_search_prunes_and_ends_with_exactly_n(searches: Searches, sampler: str) -> None:
    study, state = searches.run(sampler=sampler)
    trials = study.get_trials()
    assert (state.end, state.num_finished, len(counted(study))) == ("finished", N, N)
    assert 0 < state.num_pruned < N - 2, "the rung is after epoch 1 of 4"
    assert {len(trial.values or ()) for trial in trials if trial.state == TrialState.COMPLETE} == {2}
    for trial in trials:
        record = TrialRecord.of(trial)
        if is_finished(trial):
            assert record.curve is not None and record.history is not None
            assert record.curve == [[epoch["val_accuracy"], record.flops] for epoch in record.history]
            assert len(record.curve) == (1 if trial.state == TrialState.PRUNED else 4) == num_epochs(trial)
    # Nothing that was stopped would have been on the front of all that were drawn.
    assert {trial.number for trial in study.best_trials} >= {item["trial"] for item in status(study, url="")["front"]}


def test_search_is_an_ordinary_study_with_directions(searches: Searches) -> None:
    study, state = searches.run()
    plain = optuna.load_study(storage=searches.storage, study_name=study.study_name)
    assert [way.name for way in plain.directions] == ["MAXIMIZE", "MINIMIZE"]
    best = max(plain.best_trials, key=lambda trial: (trial.values[0], -trial.values[1]))
    assert state.best is not None and best.number == state.best.number == best_trials(study, 1)[0].number
    content = status(study, url="sqlite:///x")
    assert (
        content["metric"] == "val_accuracy" and content["best"]["trial"] == best.number == content["front"][0]["trial"]
    )
    assert content["best"]["values"] == dict(zip(OBJECTIVES, best.values, strict=True))
    assert [item["trial"] for item in content["front"] if item["is_knee"]] != []


@pytest.mark.parametrize("num_ended", [1, 7])
def test_search_goes_on_after_a_kill_to_exactly_n(searches: Searches, num_ended: int) -> None:
    def kill(state: SearchState, event: Event | None) -> None:
        if state.num_finished >= num_ended and state.running:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searches.run(show=kill)
    study, state = searches.run()
    assert (state.end, len(counted(study))) == ("finished", N)
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert state.best == best_trials(study, 1)[0]


def test_search_of_two_coordinators_ends_with_exactly_n(postgres_url: str, tmp_path: Path) -> None:
    table = read_table(write_wide_table(tmp_path / "made.jsonl.xz"))
    ended: list[SearchState] = []

    def search() -> None:
        storage = open_storage(postgres_url, create=True, retries=True)
        ended.append(Searches(storage, table).run(num_workers=2)[1])
        storage.engine.dispose()

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storage = open_storage(postgres_url)
    study = optuna.load_study(storage=storage, study_name=table.study.name)
    assert [state.end for state in ended] == ["finished"] * 2 and len(counted(study)) == N
    assert best_trial(study) == best_trials(study, 1)[0]
    storage.engine.dispose()


def test_repeats_and_failures_are_as_with_one_goal(storage: RDBStorage, tmp_path: Path) -> None:
    table = read_table(write_wide_table(tmp_path / "made.jsonl.xz", failing=12))
    study, state = Searches(storage, table).run(num_trials=30, sampler="tpe", num_workers=1)
    # 6 widths x 4 rates; those of a width that are not pruned fail.
    assert state.end == "space_exhausted" and state.num_finished + state.num_failed == 24
    trials = study.get_trials()
    repeats = [trial for trial in trials if is_duplicate(trial)]
    assert repeats and state.num_failed >= 1
    for trial in repeats:
        same = trials[trial.user_attrs["duplicate_of"]]
        assert trial.values == (same.values if same.state == TrialState.COMPLETE else None)
    assert all(item["trial"] not in {t.number for t in repeats} for item in status(study, url="")["front"])


# What people see


def test_front_is_shown_exported_and_reported(
    searches: Searches, capsys: pytest.CaptureFixture[str], fbsearch: Fbsearch, url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    console = SafeConsole(width=150)
    study, state = searches.run(num_workers=1, show=PlainLines(console, searches.config()))
    study.set_user_attr("dataset", study.user_attrs["dataset"] | {"class_names": list("0123456789")})
    front = status(study, url="")["front"]
    print_end(console, state)
    print_front(console, front, state.goals)
    console.print(watch_table(study))
    shown = capsys.readouterr().out
    assert f"Pareto front, {len(front)} trials that no other dominates" in shown and "knee" in shown
    assert re.search(r"best 9[0-9.]+%, [0-9,]+ FLOPs", shown)
    knee = next(item["trial"] for item in front if item["is_knee"])
    table = trial_table(study)
    assert table["value"].max() == front[0]["values"]["val_accuracy"]
    code, out, err = fbsearch("export", "made", "--pareto", "--storage", url)
    assert (code, err) == (
        0,
        "",
    ) and out == f"pareto.yaml: the {len(front)} configurations of the Pareto front of the " + ("study 'made'\n")
    export = load_export(tmp_path / "pareto.yaml")
    assert [(one.trial, one.goals) for one in export.configs] == [(item["trial"], item["values"]) for item in front]
    text = write_report(study).read_text(encoding="utf-8")
    assert (
        "<h2>Pareto front</h2>" in text
        and f"<td>{knee}</td>" in text
        and 'data-figure="front flops val_accuracy"' in text
    )
    assert "objectives val_accuracy and flops" in text


def test_dashboard_gets_a_note_on_the_front(searches: Searches, tmp_path: Path) -> None:
    study, _ = searches.run(num_workers=1)
    study.set_user_attr("dataset", study.user_attrs["dataset"] | {"class_names": list("0123456789")})
    said: list[str] = []
    annotate_all(searches.storage, ArtifactFolder(tmp_path), say=said.append, results=tmp_path)
    assert said == []
    note = optuna_dashboard.get_note(study)
    front = status(study, url="")["front"]
    assert f"{len(front)} trials are on the Pareto front" in note and "FLOPs an image" in note


def test_export_of_the_front_of_one_goal_says_that_there_is_none(
    searches: Searches, fbsearch: Fbsearch, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    searches.run(objectives=None, num_trials=2)
    code, _, err = fbsearch("export", "made", "--pareto", "--storage", url)
    assert code == 1 and "has one goal, val_accuracy, and so no Pareto front" in err
    assert fbsearch("export", "made", "--pareto", "--top", "2", "--storage", url)[0] == 2


# Settings


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"objectives": ["val_accuracy"]}, "search.objectives: tuple should have at least 2 items"),
        ({"objectives": ["val_accuracy", "speed"]}, "'val_loss'"),
        ({"objectives": ["val_accuracy", "flops", "flops"]}, "each can stand there once"),
        ({"objectives": ["flops", "val_accuracy"]}, "the first one names the best trial, and is one of val_accuracy,"),
        ({"objectives": OBJECTIVES, "metric": "macro_f1"}, "metric: goes without objectives"),
        ({"objectives": OBJECTIVES, "sampler": "cmaes"}, "sampler cmaes: has one objective; tpe, nsga2, gp, random"),
        (
            {"objectives": OBJECTIVES, "pruner": "median"},
            "pruner median: has one objective; successive_halving and none",
        ),
        ({"objectives": OBJECTIVES, "final_race": 3}, "final_race: compares one score"),
        ({"metric": "f1"}, "search.metric: input should be 'val_accuracy', 'macro_f1' or 'balanced_accuracy'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    search: dict[str, Any], message: str, tmp_path: Path, fbsearch: Fbsearch
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"search": search}))
    code, _, err = fbsearch("validate", str(file))
    assert code == 1 and message in err, err


def test_study_goes_on_with_its_own_goals_alone(searches: Searches) -> None:
    searches.run(num_trials=2)
    with pytest.raises(ConfigError, match=r"search.objectives: \['val_accuracy', 'flops'\] -> \['val_accuracy', 'pa"):
        create_study(searches.storage, searches.config(objectives=["val_accuracy", "parameters"]))
    with pytest.raises(ConfigError, match=r"search.objectives: \['val_accuracy', 'flops'\] -> None"):
        create_study(searches.storage, searches.config(objectives=None))
    searches.storage.set_study_user_attr(1, "config", {"search": {"objectives": ["val_accuracy", "beauty"]}})
    with pytest.raises(StorageError, match="its goals are not known"):
        goals_of(optuna.load_study(storage=searches.storage, study_name="made"))


def test_study_with_one_goal_does_not_change_it(searches: Searches) -> None:
    searches.run(objectives=None, num_trials=2)
    with pytest.raises(ConfigError, match=r"search.metric: val_accuracy -> balanced_accuracy"):
        create_study(searches.storage, searches.config(objectives=None, metric="balanced_accuracy"))


def test_mean_over_classes_of_one_class_is_refused() -> None:
    one = DatasetInfo(1, 1, 8, 80, 20, 0, ("all",))
    check_classes(StudyConfig(), one)
    with pytest.raises(ConfigError, match="macro_f1 need at least two classes, and the data have 1"):
        check_classes(StudyConfig(search=SearchConfig(metric="macro_f1")), one)


# What a worker measures


def test_means_over_classes_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(0, 4, (200,), generator=generator)  # class 4 has no image, though it is said
    logits_NK = torch.rand(200, 5, generator=generator) + 0.5 * torch.nn.functional.one_hot(labels_N, 5)
    totals = Totals.on(torch.device("cpu"), num_classes=5)
    padding_B = torch.full((30,), PADDING)
    for start in (0, 120):  # the last batch is filled up, as a CUDA graph's
        batch_B = torch.cat([labels_N[start : start + 120], padding_B])
        images_BK = torch.cat([logits_NK[start : start + 120], torch.zeros(30, 5)])
        totals.add(torch.zeros(()), images_BK, batch_B)
    found = mean_scores(totals, Split(torch.zeros(200, 1, 1, 1, dtype=torch.uint8), labels_N))
    said_N = logits_NK.argmax(dim=1)
    assert found.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels_N, said_N))
    f1 = sklearn.metrics.f1_score(labels_N, said_N, labels=range(4), average="macro")
    recall = sklearn.metrics.recall_score(labels_N, said_N, labels=range(4), average="macro")
    assert (found.macro_f1, found.balanced_accuracy) == (pytest.approx(f1), pytest.approx(recall))


def test_value_of_a_metric_is_that_of_the_kept_epoch() -> None:
    study = StudyConfig(search=SearchConfig(metric="macro_f1"))
    history = [
        replace(make_stats(epoch, accuracy), macro_f1=f1) for epoch, accuracy, f1 in ((1, 0.9, 0.5), (2, 0.8, 0.6))
    ]
    config = study.trial({"model.pattern": "julia"}, seed=0)
    assert final_value(history, config) == 0.6
    best = config.model_copy(update={"train": config.train.model_copy(update={"keep_best": True})})
    assert final_value(history, best) == 0.5, "weights are kept by accuracy"


@pytest.fixture
def trained(storage: RDBStorage) -> Iterator[tuple[optuna.Study, StudyConfig]]:
    config = StudyConfig.model_validate(
        {
            "data": {"limit": 100},
            "model": {"base_channels": 4, "pattern_resolution": 8},
            "train": {"epochs": 2, "keep_best": True},
            "space": {"train.learning_rate": {"low": 0.003, "high": 0.05, "log": True}},
            "search": {
                "objectives": ["macro_f1", "memory", "seconds_per_image"],
                "pruner": "none",
                "sampler": "random",
            },
        }
    )
    study = create_study(storage, config)
    executor = InProcessExecutor(config.data, device="cpu")
    Coordinator(study, config, executor, num_trials=2, show=lambda *_: None).run()
    yield study, config


def test_worker_measures_what_the_goals_are(trained: tuple[optuna.Study, StudyConfig]) -> None:
    study, _ = trained
    num_val = study.user_attrs["dataset"]["num_val"]
    for trial in study.get_trials():
        record = TrialRecord.of(trial)
        assert record.history is not None and record.curve is not None
        kept = max(record.history, key=lambda epoch: epoch["val_accuracy"])
        seconds = min(epoch["val_seconds"] for epoch in record.history) / num_val
        assert trial.values == [kept["macro_f1"], record.memory_mib, pytest.approx(seconds)]
        assert 0 < kept["macro_f1"] < 1 and 0 < kept["balanced_accuracy"] < 1 and (record.memory_mib or 0) > 0
        assert [values[0] for values in record.curve] == [epoch["macro_f1"] for epoch in record.history]
