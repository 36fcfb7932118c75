"""The report: its content for all kinds of studies, and the escaping of what a study contains."""

import base64
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from made_studies import DATASET, make_study, make_trial
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from PIL import Image

from fbsearch.cli.app import main
from fbsearch.config.export_file import load_export
from fbsearch.config.models import TrainConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import StorageError
from fbsearch.messages import ClassSample, Samples
from fbsearch.report.contact_sheet import make_contact_sheet
from fbsearch.report.page import write_report, write_static
from fbsearch.report.text import describe_winner
from fbsearch.report.trials_table import trials_frame
from fbsearch.study.export import trial_table
from fbsearch.study.study import create_study, store_samples, stored_samples
from fbsearch.study.trial_record import fail, put_back

SCRIPT = "<script>alert('x')</script>\"&"


class Page(html.parser.HTMLParser):
    """A report taken apart: its text outside scripts, its ids, the scripts' content, what is linked and shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.ids, self.links = "", set[str](), list[dict[str, Any]]()
        self.images: list[str] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self._open = ""
        self.feed(self.source)
        self.data = json.loads(self.scripts[0])
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        self._open = tag if tag in ("script", "style") else self._open
        if tag == "script":
            self.scripts.append("")
        if tag == "a":
            self.links.append(values)
        if tag == "img":
            self.images.append(values["src"])

    def handle_endtag(self, tag: str) -> None:
        self._open = "" if tag in ("script", "style") else self._open

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif not self._open:
            self.text += data


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FBSEARCH_STORAGE", raising=False)
    return tmp_path


# The frame.


def test_trials_frame_has_what_the_table_has_and_more(storage: RDBStorage) -> None:
    study = make_study(storage, 9)
    frame, table = trials_frame(study), trial_table(study)
    assert set(table.columns) < set(frame.columns)
    for column in ("trial", "state", "seconds", "epochs", "model.pattern"):
        assert list(frame[column]) == list(table[column])
    first = frame.iloc[0]
    assert [stats["epoch"] for stats in first["history"]] == list(range(1, 9))
    assert first["score"] == first["value"] == first["history"][-1]["val_accuracy"]
    assert first["model.fractal_levels"] in ("[1]", "[2]", "[1, 1]", "[1, 2]", "[2, 1]", "[2, 2]")
    assert (first["planned_epochs"], frame["planned_epochs"].dtype) == (8, int)
    assert sorted(frame["rank"].dropna()) == [1, 2, 3]
    assert math.isnan(frame["rank"].iloc[1])


def test_trials_frame_takes_curves_of_older_studies_from_optuna(storage: RDBStorage) -> None:
    study = make_study(storage, 0)
    trial = study.ask()
    trial.report(0.4, step=1)
    trial.report(0.6, step=2)
    study.tell(trial, 0.6)
    (history,) = trials_frame(study)["history"]
    assert history == [{"epoch": 1, "val_accuracy": 0.4}, {"epoch": 2, "val_accuracy": 0.6}]


# What stands in it.


@pytest.mark.slow
def test_report_says_what_was_found(storage: RDBStorage, folder: Path) -> None:
    study = make_study(storage, 60)
    path = write_report(study)
    assert path == Path("reports/digits.html")
    page = Page(path)
    best = study.best_trial
    for text in (
        f"{best.value:.2%}",
        "95% interval of a share of 287 validation images (Wilson)",
        "20 complete", "40 pruned", "0 failed", "320 epochs run",
        "33% of compute saved by pruning: 160 epochs not run, about 1 min 20 s",
        "Is rank 1 really the best?",
        "Compared are 60 finished trials after epoch 4 of 8, the last point that all of them reached.",
        "compute: 2x is worth ",
        "pattern: no evidence that it matters; against ",
        "2 at a time, busy ",
        "No trial has failed.",
        "No attention maps",
        "1,150 to train on, 287 to choose by, 360 set aside for the test",
        "sampler tpe, pruner successive_halving, metric val_accuracy, seed 0",
        "59f5e8bc7bb353525d30d9f3ad7a5d200b85d435",
    ):  # fmt: skip
        assert text in page.text, text
    assert len(page.images) == 5
    assert {f"rank{rank}" for rank in range(1, 11)} <= page.ids
    assert "rank11" not in page.ids
    assert {"history", "curves", "worth", "parallel", "timeline"} <= page.data["figures"].keys()
    assert list(page.data["templates"]) == ["light", "dark"]


@pytest.mark.slow
def test_report_shows_as_many_of_the_best_as_asked(storage: RDBStorage, folder: Path) -> None:
    page = Page(write_report(make_study(storage, 30), folder / "new" / "a.html", top=3))
    assert "rank3" in page.ids and "rank4" not in page.ids
    assert "The best 3" in page.text


def test_report_says_that_a_winner_without_blocks_and_masks_is_a_common_network(storage: RDBStorage) -> None:
    frame = trials_frame(make_study(storage, 9))
    (config,) = frame["config"][frame["rank"] == 1]
    common = config["model"] | {"fractal_levels": [1, 1], "pattern": "none"}
    said = "it is a common convolutional network: no block of level 2 or more, and no masks."
    assert said in describe_winner(config | {"model": common})
    assert describe_winner(config | {"model": common | {"pattern": "julia"}}) == ""
    assert describe_winner({}) == describe_winner({"model": {"unknown": 1}}) == ""


def test_report_links_lead_to_exports_that_can_be_loaded(storage: RDBStorage, folder: Path) -> None:
    study = make_study(storage, 9)
    links = [link for link in Page(write_report(study)).links if "download" in link]
    assert [link["download"] for link in links] == [f"digits-rank{rank}.yaml" for rank in (1, 2, 3)]
    head, content = links[0]["href"].split(",")
    assert head == "data:application/yaml;base64"
    (folder / "best.yaml").write_bytes(base64.b64decode(content))
    (config,) = load_export(folder / "best.yaml").configs
    assert (config.rank, config.trial) == (1, study.best_trial.number)


def test_report_names_failures_with_their_reasons(storage: RDBStorage) -> None:
    study = make_study(storage, 6)
    for number in range(2):
        trial = study.ask()
        trial.set_user_attr("traceback", f"Traceback {SCRIPT} {number}")
        fail(study, trial.number, kind="out_of_memory", message=f"no memory left {SCRIPT}")
    number = study.ask().number
    put_back(study, study.trials[number], kind="interrupted", message="stopped", attempt=1)
    page = Page(write_report(study))
    assert "2 failed" in page.text
    assert "1 interrupted, run again" in page.text
    assert f"out of memory no memory left {SCRIPT} traceback Traceback {SCRIPT} 0 2 6, 7" in page.text


def test_report_shows_the_attention_maps_that_analyze_has_drawn(storage: RDBStorage, folder: Path) -> None:
    (folder / "reports" / "digits" / "analysis").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "reports" / "digits" / "analysis" / "attention.png")
    page = Page(write_report(make_study(storage, 6)))
    assert len(page.images) == 6
    assert "No attention maps" not in page.text


def test_report_shows_the_images_that_are_stored(storage: RDBStorage) -> None:
    study = make_study(storage, 6)
    files = [io.BytesIO() for _ in range(2)]
    for file, kind in zip(files, ("PNG", "JPEG"), strict=True):
        Image.new("RGB", (24, 8), "red").save(file, format=kind)
    pictures = [base64.b64encode(file.getvalue()).decode() for file in files]
    classes = tuple(ClassSample(label, 100 + label, picture) for label, picture in zip((3, 9), pictures, strict=True))
    store_samples(study, Samples(smallest=3, num_smallest=103, classes=classes))
    page = Page(write_report(study))
    assert "images" in page.ids and "3, 103 9, 109" in page.text and "of 2 of the 10 classes" in page.text
    uris = [f"data:image/{kind};base64,{text}" for kind, text in zip(("png", "jpeg"), pictures, strict=True)]
    assert [uri for uri in page.images if uri in uris] == uris
    odd = {"label": 0, "count": 1, "picture": base64.b64encode(b"<svg>").decode()}
    for damaged in ({"classes": 3}, {"smallest": 0, "num_smallest": 1, "classes": [odd]}, 5):
        study.set_user_attr("samples", damaged)
        assert make_contact_sheet(stored_samples(study), DATASET["class_names"]) is None


def test_report_says_when_the_next_ranks_are_worse_than_noise(storage: RDBStorage) -> None:
    study = make_study(storage, 0)
    for value in (0.9, 0.5, 0.4):
        study.tell(study.ask(), value)
    assert "Rank 3 (40.00%) lies below rank 1's interval: the distance, 144 images" in Page(write_report(study)).text


# Bad input.


def test_report_escapes_names_everywhere(storage: RDBStorage) -> None:
    dataset = DATASET | {"class_names": [SCRIPT, "b"]}
    study = make_study(storage, 6, name=SCRIPT, dataset=dataset)
    config = study.user_attrs["config"]
    study.set_user_attr("config", config | {"data": config["data"] | {"name": "folder", "root": SCRIPT}})
    path = write_report(study)
    assert path.parent == Path("reports")
    page = Page(path)
    assert page.tags.count("script") == 3
    assert "alert('x')" not in "".join(page.scripts)
    assert page.text.count(SCRIPT) >= 4
    assert "<script>alert" not in page.source
    assert "content=\"default-src 'none'; script-src 'unsafe-inline'; " in page.source, "nor may a script connect"


def test_report_keeps_script_ends_out_of_its_data(storage: RDBStorage) -> None:
    page = Page(write_report(make_study(storage, 9)))
    data = page.scripts[0]
    assert not set("<>&") & set(data)
    assert "<b>trial" in page.data["figures"]["history"]["data"][0]["text"][0]


def test_report_without_a_trial_says_so(storage: RDBStorage) -> None:
    page = Page(write_report(make_study(storage, 0)))
    assert "No trial is complete yet" in page.text
    assert page.data["figures"] == {}


def test_report_without_a_complete_trial_says_so(storage: RDBStorage) -> None:
    study = make_study(storage, 0)
    trial = study.ask()
    trial.report(0.3, step=1)
    study.tell(trial, state=TrialState.PRUNED)
    study.ask()
    page = Page(write_report(study))
    assert "No trial is complete yet" in page.text
    assert "1 pruned" in page.text and "1 still running" in page.text
    assert "history" in page.data["figures"]


def test_report_of_one_trial_has_nothing_to_compare(storage: RDBStorage) -> None:
    page = Page(write_report(make_study(storage, 1)))
    assert "there is nothing to compare it with" in page.text
    assert "Too few trials" not in page.text


def test_report_of_failed_trials_alone(storage: RDBStorage) -> None:
    study = make_study(storage, 0)
    for _ in range(3):
        fail(study, study.ask().number, kind="non_finite_loss", message="the loss is nan")
    page = Page(write_report(study))
    assert "non finite loss the loss is nan 3 0, 1, 2" in page.text


def test_report_of_values_that_are_no_numbers(storage: RDBStorage) -> None:
    study = make_study(storage, 6)
    trial = study.ask()
    trial.report(math.nan, step=1)
    study.tell(trial, state=TrialState.PRUNED)
    page = Page(write_report(study))
    assert "nan" not in page.text.lower()
    assert "NaN" not in page.scripts[0]


def test_report_of_an_older_study_says_what_is_missing(storage: RDBStorage) -> None:
    """Nothing but what Optuna itself stores."""
    config = StudyConfig()
    study = create_study(storage, config)
    for number in range(4):
        trial = study.ask()
        trial.suggest_categorical("model.pattern", ["julia", "cantor"])
        trial.suggest_float("train.learning_rate", 0.001, 0.1, log=True)
        study.tell(trial, 0.5 + 0.1 * number)
    page = Page(write_report(study))
    assert "This study was written by an older version of fbsearch, which did not store: " in page.text
    for what in (
        "the size of the validation split",
        "the configurations",
        "parameters and FLOPs",
        "versions and commit",
    ):
        assert what in page.text
    assert "80.00%" in page.text
    assert "no interval" in page.text
    assert page.images == []


def test_report_of_a_configuration_of_another_version_shows_it_as_it_is(storage: RDBStorage) -> None:
    study = make_study(storage, 0)
    trial = study.ask()
    trial.set_user_attr("config", {"model": {"magic": 7}, "train": {}})
    study.tell(trial, 0.5)
    assert "magic: 7" in Page(write_report(study)).text


def test_report_of_several_objectives_that_are_not_named_is_refused(storage: RDBStorage) -> None:
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    with pytest.raises(StorageError, match="is damaged: its goals are not known"):
        write_report(study)


def test_report_that_cannot_be_written_says_so(storage: RDBStorage, folder: Path) -> None:
    (folder / "taken").mkdir()
    with pytest.raises(StorageError, match="taken: cannot be written"):
        write_report(make_study(storage, 1), folder / "taken")


# The command, pictures and size.


def test_report_command_writes_the_newest_study(
    storage: RDBStorage, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(storage, 3, name="older")
    make_study(storage, 3, name="newer")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(sys, "argv", ["fbsearch", "report", "--storage", url, "--open", "--top", "2"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    assert capsys.readouterr().out == "reports/newer.html: the report of the study 'newer'\n"
    assert opened == [(folder / "reports" / "newer.html").as_uri()]


def test_report_leaves_torch_out() -> None:
    code = "import sys, fbsearch.report.page; assert not {'torch', 'sklearn'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_static_without_kaleido_says_what_to_install(
    storage: RDBStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StorageError, match=re.escape("pip install 'fbsearch[static]'")):
        write_static(make_study(storage, 1), folder / "pictures")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here: apt-get install chromium")
def test_static_writes_every_figure_twice(storage: RDBStorage, folder: Path) -> None:
    pytest.importorskip("kaleido", reason="needs the extra `static`")
    paths = write_static(make_study(storage, 9), folder / "pictures")
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert {path.name for path in paths} == names
    assert {"history.png", "history.svg", "slice_model.pattern.svg", "cost_flops.png"} <= names
    with Image.open(folder / "pictures" / "history.png") as picture:
        assert picture.width == 1800
    assert "<svg" in (folder / "pictures" / "history.svg").read_text()[:200]


def test_report_of_a_thousand_trials_stays_small(storage: RDBStorage) -> None:
    # In memory: a database needs 30 ms to write each trial.
    study = optuna.create_study(study_name="digits", direction="maximize")
    for key, value in make_study(storage, 0, epochs=20).user_attrs.items():
        study.set_user_attr(key, value)
    config, rng = StudyConfig(train=TrainConfig(epochs=20)), np.random.default_rng(0)
    study.add_trials(make_trial(config, rng, number) for number in range(1000))
    path = write_report(study)
    assert path.stat().st_size < 8_000_000
    assert len(Page(path).data["figures"]["curves"]["data"]) == 5
