"""The files that commands write: what they write over, standard output, and a command that is killed meanwhile."""

import csv
import io
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_studies import make_study
from optuna.storages import RDBStorage
from PIL import Image

from fbsearch.config.export_file import load_export
from fbsearch.config.study_file import StudyConfig, load_study_file, render_study

Fbsearch = Callable[..., tuple[int, str, str]]
MINE = "name: mine\n"


@pytest.fixture
def made(storage: RDBStorage, url: str, monkeypatch: pytest.MonkeyPatch, fbsearch: Fbsearch) -> str:
    """The URL of a database with two studies of 6 and 9 trials, which commands read without being told to."""
    make_study(storage, 6, name="older")
    make_study(storage, 9)
    storage.engine.dispose()
    monkeypatch.setenv("FBSEARCH_STORAGE", url)
    return url


def test_export_has_a_default_name_for_each_format(fbsearch: Fbsearch, made: str, tmp_path: Path) -> None:
    for arguments, name in (
        ((), "best.yaml"),
        (("--format", "csv"), "trials.csv"),
        (("--format", "json"), "trials.json"),
    ):
        for _ in range(2):  # the second time over the first
            code, output, errors = fbsearch("export", *arguments)
            assert (code, errors) == (0, "") and output.startswith(f"{name}: ")
    assert load_export(tmp_path / "best.yaml").study == "digits"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("export", "--output", "x"), "x"),
        (("export", "--format", "csv", "--output", "x"), "x"),
        (("export", "--format", "json", "--output", "x"), "x"),
        (("report",), "reports/digits.html"),
        (("patterns", "--size", "16", "--output", "x"), "x"),
        (("init", "x"), "x"),
    ],
    ids=" ".join,
)
def test_a_file_of_another_kind_is_kept_without_force(
    fbsearch: Fbsearch, made: str, tmp_path: Path, arguments: tuple[str, ...], name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(MINE)
    code, output, errors = fbsearch(*arguments)
    assert (code, output) == (1, "") and errors.startswith(f"error: {name}: is there already")
    assert "--force writes over it" in errors and path.read_text() == MINE
    for flags in (["--force"], [] if arguments[0] != "init" else ["--force"]):  # what is written is of its own kind
        assert fbsearch(*arguments, *flags)[0] == 0
        assert MINE.encode() not in path.read_bytes()


@pytest.mark.parametrize("command", ["export", "report", "init"])
def test_a_link_and_a_pipe_are_never_written_over(fbsearch: Fbsearch, made: str, tmp_path: Path, command: str) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    for target in ("link", "pipe"):
        place = [target] if command == "init" else ["--output", target]
        code, _, errors = fbsearch(command, *place, "--force")
        assert code == 1 and errors.startswith(f"error: {target}: is ") and "`-` (standard output)" in errors
    assert (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo()


def test_a_dash_is_standard_output_and_messages_go_elsewhere(fbsearch: Fbsearch, made: str, tmp_path: Path) -> None:
    assert fbsearch("init", "-")[1] == render_study(StudyConfig())
    code, output, errors = fbsearch("export", "--format", "csv", "--output", "-")
    assert (code, len(list(csv.DictReader(io.StringIO(output))))) == (0, 9) and errors.startswith("-: 9 trials")
    assert fbsearch("report", "--output", "-")[1].rstrip().endswith("</html>")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"fbsearch"}, "the database alone"
    assert fbsearch("report", "--output", "-", "--open")[0] == 2


# Killed.


def kill_at_random(run: Callable[[], object], *, within: float, times: int) -> Iterator[None]:
    """Run a function again and again in a copy of this process, which is killed at a random moment; yield after it."""
    moments = random.Random(0)
    for _ in range(times):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    run()
            finally:
                os._exit(1)
        time.sleep(moments.uniform(0, within))
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, "it has failed before"
        yield


@pytest.mark.slow
def test_export_that_is_killed_leaves_a_whole_file(fbsearch: Fbsearch, made: str, tmp_path: Path) -> None:
    path, texts = tmp_path / "all.csv", set()
    arguments = [("export", name, "--format", "csv", "--output", path) for name in ("older", "digits")]
    for one in arguments:
        assert fbsearch(*one)[0] == 0
        texts.add(path.read_bytes())
    assert len(texts) == 2
    for _ in kill_at_random(lambda: [fbsearch(*one) for one in arguments], within=0.5, times=8):
        assert path.read_bytes() in texts
    assert fbsearch(*arguments[0])[0] == 0


@pytest.mark.slow
def test_report_that_is_killed_leaves_a_whole_file(fbsearch: Fbsearch, made: str, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "older.html"
    path.parent.mkdir()
    path.write_text("fbsearch report</title> old")
    assert fbsearch("report", "digits")[0] == 0  # all is loaded
    for _ in kill_at_random(lambda: fbsearch("report", "older"), within=1.5, times=5):
        text = path.read_text()
        assert text == "fbsearch report</title> old" or (len(text) > 1e6 and text.rstrip().endswith("</html>"))


def test_init_that_is_killed_leaves_a_whole_file(fbsearch: Fbsearch, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    for _ in kill_at_random(lambda: fbsearch("init", path, "--force"), within=0.05, times=20):
        assert not path.exists() or load_study_file(path) == StudyConfig()
    assert fbsearch("init", path, "--force")[0] == 0 and load_study_file(path) == StudyConfig()


def test_patterns_says_that_it_is_its_own(fbsearch: Fbsearch, tmp_path: Path) -> None:
    assert fbsearch("patterns", "--size", "16")[0] == 0
    with Image.open(tmp_path / "patterns.png") as picture:
        assert picture.info["Software"] == "fbsearch"


def test_summary_refuses_a_drawing_and_json_on_one_stream(fbsearch: Fbsearch) -> None:
    code, output, errors = fbsearch("summary", "best.yaml", "--plot", "-", "--json")
    assert code == 1 and output == "" and "--plot - and --json both write to standard output" in errors
