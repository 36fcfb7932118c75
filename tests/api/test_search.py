"""Search, study and training from Python, on a few of scikit-learn's digits as arrays."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest

import fbsearch
from fbsearch.api.folder import choose_for_folder
from fbsearch.api.sources import make_config
from fbsearch.config.models import DataConfig
from fbsearch.config.space import ChoiceSpace
from fbsearch.config.study_file import SHORT_RUN_TRAINING, SearchConfig, StudyConfig, load_study_file, render_study
from fbsearch.data.sources import read_dataset
from fbsearch.errors import ConfigError, DataError, FbsearchError, StorageError
from fbsearch.messages import Event, Finished, Ready, Started
from fbsearch.search.state import SearchState
from fbsearch.winners.intervals import wilson_interval

SMALL = StudyConfig(
    train=SHORT_RUN_TRAINING.model_copy(update={"epochs": 1}),
    space={"model.base_channels": ChoiceSpace(choices=(4, 8, 12, 16))},
    search=SearchConfig(sampler="random", pruner="none"),
)
Arrays = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> tuple[Arrays, Arrays]:
    """300 and 60 digits as scikit-learn has them: floats from 0 to 16, and integers."""
    whole = read_dataset(DataConfig(), with_test=True, notice=print)
    assert whole.test is not None
    pairs = [(part.images_NHWC[part.rows_M, :, :, 0] / 255 * 16, part.labels_M) for part in (whole.train, whole.test)]
    return (pairs[0][0][:300], pairs[0][1][:300]), (pairs[1][0][:60], pairs[1][1][:60])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return []


@pytest.fixture(scope="module")
def study(digits: tuple[Arrays, Arrays], folder: Path, events: list[Event]) -> fbsearch.Study:
    train, test = digits

    def note(state: SearchState, event: Event) -> None:
        assert state.num_trials == 2
        events.append(event)

    return fbsearch.search(
        train, test=test, trials=2, study=SMALL, workers=1, storage=folder / "study.db", callback=note, progress=False
    )


@pytest.fixture(scope="module")
def model(study: fbsearch.Study, folder: Path) -> fbsearch.Model:
    return study.train(seeds=2, epochs=2, output=folder, progress=False)


def test_search_gives_every_event_to_the_callback(study: fbsearch.Study, events: list[Event]) -> None:
    assert isinstance(events[0], Ready)
    kinds = [type(event) for event in events]
    assert (kinds.count(Started), kinds.count(Finished)) == (2, 2)


def test_study_has_its_best_trial_and_all_trials(study: fbsearch.Study) -> None:
    best = study.best
    assert best.value == study.optuna.best_value == study.trials["value"].max() == study.status["best"]["value"]
    assert best.interval == wilson_interval(best.value, 60)
    assert best.config.model.base_channels == best.params["model.base_channels"]
    assert list(study.trials["state"]) == ["complete"] * 2
    assert isinstance(study.optuna, optuna.Study)
    assert study.config.space == SMALL.space and study.config.data.value_range == (0, 16)
    assert f"{best.value:.2%}" in repr(study) and "2 complete" in repr(study)


def test_study_in_a_notebook_shows_best_curve_and_why_nothing_is_known_to_matter(study: fbsearch.Study) -> None:
    html = study._repr_html_()
    assert f"<b>{study.best.value:.2%}</b>" in html and "base channels" in html and study.name in html
    assert html.count("<circle") == 2 and "<script" not in html
    assert "2 finished trials are too few" in html


def test_study_writes_report_and_exports(study: fbsearch.Study, tmp_path: Path) -> None:
    assert study.name in study.report(tmp_path / "report.html").read_text(encoding="utf-8")
    best = fbsearch.load_export(study.export(tmp_path / "best.yaml", top=1))
    assert best.configs[0].value == study.best.value
    assert len(study.export(tmp_path / "trials.csv").read_text().splitlines()) == 3
    study.export(tmp_path / "trials.csv")  # over its own kind
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"is no export of fbsearch; --force writes over it") as caught:
        study.export(tmp_path / "mine.yaml")
    assert "--force is force=True" in caught.value.__notes__[0]
    study.export(tmp_path / "mine.yaml", force=True)
    with pytest.raises(ConfigError, match=r"ends in none of \.yaml"):
        study.export(tmp_path / "best.txt")
    one = fbsearch.load_export(study.export(tmp_path / "one.yaml", trial=study.best.number))
    assert one.configs == best.configs


def test_same_call_goes_on_with_the_study(
    study: fbsearch.Study, digits: tuple[Arrays, Arrays], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = digits
    more = fbsearch.search(train, test=test, trials=3, study=SMALL, workers=1, storage=folder / "study.db")
    assert more.name == study.name and len(more.trials) == 3
    output, errors = capsys.readouterr()
    assert output == "" and "[3/3] trial 2 complete" in errors
    again = fbsearch.open_study(study.name, storage=folder / "study.db")
    assert again.best == more.best and fbsearch.open_study(storage=folder / "study.db").name == study.name
    assert [path.name for path in folder.glob("*.npz")] == [f"{study.name}.npz"]


def test_trained_model_predicts_arrays_as_it_was_scored(model: fbsearch.Model, digits: tuple[Arrays, Arrays]) -> None:
    _, (images, labels) = digits
    assert model.training is not None and model.training.scored_on == "test"
    assert model.training.num_seeds == 2 and "over 2 seeds" in repr(model)
    assert model.score(images, labels) == model.training.results[0].accuracy
    assert model.classes_.dtype.kind == "i" and model.classes_.tolist() == list(range(10))
    assert (model.predict(images) == labels).mean() == model.training.results[0].accuracy


def test_trained_model_says_where_it_errs(model: fbsearch.Model, study: fbsearch.Study, folder: Path) -> None:
    assert model.training is not None and model.errors is not None and len(model.errors.seeds) == 2
    recall, support = model.errors.classes["recall"], model.errors.classes["support"]
    assert (recall * support).sum() / support.sum() == pytest.approx(model.training.accuracy_mean)
    alone = fbsearch.load_model(model.training.folders(folder / study.name)[0]).errors
    assert alone is not None and len(alone.seeds) == 1
    assert fbsearch.load_model(model.save(folder / "copy")).errors is None


def test_budget_trains_the_winner_of_a_search(
    study: fbsearch.Study, digits: tuple[Arrays, Arrays], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search has ended before: the whole budget is for the training, on however slow a machine."""
    assert fbsearch.open_study(study.name, storage=folder / "study.db").model is None
    train, test = digits
    options = {"test": test, "trials": 2, "study": SMALL, "workers": 0, "storage": folder / "study.db"}
    output = folder / "budget"
    found = fbsearch.search(train, budget="14s", output=output, **options)  # type: ignore[arg-type]
    assert found.model is not None and found.model.training is not None
    training = found.model.training
    assert (training.num_seeds, training.scored_on) == (3, "test") and training.trial == study.best.number
    assert all(path.is_dir() for path in training.folders(output / study.name))
    seconds = training.results[0].settings["train"]["budget"]["seconds"]
    assert 0.1 <= seconds < 14 / 3
    errors = capsys.readouterr().err
    assert errors.index("about 10 s of search, 3.5 s of training") < errors.index(f"3 networks for {seconds:g} s each")
    with pytest.raises(ConfigError, match="holds an earlier training of this study"):
        fbsearch.search(train, budget=14, output=output, progress=False, **options)  # type: ignore[arg-type]


def test_interrupted_search_goes_on(digits: tuple[Arrays, Arrays], tmp_path: Path) -> None:
    def interrupt(_state: SearchState, event: Event) -> None:
        if isinstance(event, Finished):
            signal.raise_signal(signal.SIGINT)

    options = {"study": SMALL, "name": "mine", "workers": 1, "storage": tmp_path / "study.db", "progress": False}
    with pytest.raises(KeyboardInterrupt, match=r"interrupted at 1/3; .*open_study\('mine'\)"):
        fbsearch.search(digits[0], trials=3, callback=interrupt, **options)  # type: ignore[arg-type]
    assert fbsearch.open_study("mine", storage=tmp_path / "study.db").status["num_complete"] == 1
    study = fbsearch.search(digits[0], trials=3, **options)  # type: ignore[arg-type]
    assert study.status["num_complete"] == 3


def test_error_in_a_callback_ends_the_search_in_order(
    digits: tuple[Arrays, Arrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the database, whose URL may hold a password, is not in the environment that workers inherit."""
    url = f"sqlite:///{tmp_path}/db"
    monkeypatch.setenv("FBSEARCH_STORAGE", url)
    found = []

    def fail(_state: SearchState, event: Event) -> None:
        found.append("FBSEARCH_STORAGE" in os.environ)
        if isinstance(event, Started):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fbsearch.search(digits[0], study=SMALL, name="mine", workers=1, callback=fail, progress=False)
    assert set(found) == {False} and os.environ["FBSEARCH_STORAGE"] == url
    assert fbsearch.open_study("mine").status["num_waiting"] == 1


def test_search_of_a_folder_trains_without_a_test_split(
    make_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(train={"cat": 6, "d\u00f6g": 6}, size=(20, 30))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FBSEARCH_STORAGE", raising=False)
    (tmp_path / "study.yaml").write_text(render_study(SMALL), encoding="utf-8")
    study = fbsearch.search(
        str(tree), trials=1, study="study.yaml", image_size=8, seed=5, workers=0, progress=False, callback=None
    )
    assert study.name == "tree" and study.config.data.image_size == 8 and study.config.search.seed == 5
    assert Path("studies/fbsearch.db").exists()
    model = study.train(seeds=1, progress=False)
    assert model.training is not None and model.training.scored_on == "validation"
    assert set(model.predict(tree)) <= {"cat", "d\u00f6g"} and len(model.predict(tree)) == 12
    assert fbsearch.load_model("reports/tree/rank-1/seed-5").predict(tree).tolist() == model.predict(tree).tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"data": "nowhere"}, ConfigError, "nowhere: there is no such folder.* known are digits, mnist"),
        ({"data": "nowhere.npz"}, DataError, "there is no file .*nowhere.npz"),
        ({"trials": 0}, ConfigError, "trials: 0 is too few"),
        ({"name": ""}, ConfigError, "name: has 0 characters"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"test": ([], [])}, ConfigError, "only beside arrays"),
        ({"study": SMALL}, ConfigError, "which the first argument names"),
        ({"data": (np.zeros((3, 8, 8)), [1, 2])}, DataError, r"images have the shape \(3, 8, 8\) and labels \(2,\)"),
        ({"data": (np.zeros((3, 8)), [1, 2, 3])}, DataError, "images: has the shape"),
        ({"data": (np.zeros((3, 8, 8)), [1, 2, 3])}, DataError, "class '1' has 1 training image"),
        ({"device": "tpu"}, FbsearchError, "--device tpu"),
        ({"budget": "soon"}, ConfigError, "'soon' is no time; write 90 or 90s"),
        ({"budget": 0}, ConfigError, "budget: 0 is no time"),
        ({"budget": 9, "timeout": 5}, ConfigError, "budget: cannot be combined with timeout"),
        ({"budget": 9, "ray": "auto"}, ConfigError, "budget: cannot be combined with ray"),
        ({"workers_per_gpu": 0}, ConfigError, "workers_per_gpu: 0 is neither auto nor"),
        ({"workers_per_gpu": "auto", "workers": 2}, ConfigError, "cannot be combined with workers"),
        ({"gpus_per_worker": 1.0}, ConfigError, "gpus_per_worker: only with ray"),
        ({"storage": "mysql://host/name"}, StorageError, "mysql"),
    ],
)
def test_search_refuses_what_it_cannot_use(
    arguments: dict[str, object], error: type[Exception], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=reason) as caught:
        fbsearch.search(**{"trials": 1, "progress": False} | arguments)  # type: ignore[arg-type]
    notes = getattr(caught.value, "__notes__", [])
    assert bool(notes) == ("--" in str(caught.value))
    assert not Path("studies/fbsearch.db").exists()


def test_data_of_every_kind_become_a_study(
    make_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("name: mine\ntrain: {epochs: 2}\n")

    lines: list[str] = []

    def made(data: object, **options: object) -> StudyConfig:
        empty = {"study": None, "test": None, "image_size": None, "name": None, "seed": None, "url": "sqlite:///a/b.db"}
        empty["say"] = lines.append
        return make_config(data, **empty | options)  # type: ignore[arg-type]

    assert made(None) == StudyConfig() == made("digits") == made(StudyConfig())
    assert made("my.yaml") == load_study_file(Path("my.yaml"))
    assert made("cifar10", study="my.yaml").data.name == made("cifar10").name == "cifar10"
    assert made("my.yaml", name="other", image_size=4, seed=3).model_dump(include={"name", "search", "data"})
    tree = make_tree(train={"cat": 4, "dog": 4}, size=(30, 30))
    chosen = made(str(tree))
    assert chosen == choose_for_folder(tree).config and chosen.data.image_size == 24
    assert any(line.startswith("images: 2 classes") for line in lines) and made(tree, image_size=8).data.image_size == 8
    arrays = (np.zeros((4, 8, 8), dtype=np.uint8), ["a", "a", "b", "b"])
    first = made(arrays)
    assert first.data.root == f"a/{first.name}.npz" and Path(first.data.root).exists()
    assert made(f"{first.data.root}").name == first.name
