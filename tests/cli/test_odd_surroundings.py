"""Commands in odd surroundings: damaged studies, terminals that are not UTF-8, no home folder, and bugs of our own."""

import errno
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_studies import DATASET, make_study
from optuna.storages import RDBStorage

from fbsearch.cli import study_commands
from fbsearch.cli.app import command_line, main
from fbsearch.data.image_cache import cache_folder
from fbsearch.errors import ConfigError
from fbsearch.report.dashboard import open_dashboard
from fbsearch.study.dashboard_storage import FeasibleBest

Fbsearch = Callable[..., tuple[int, str, str]]


def damage(storage: RDBStorage, study: str, key: str, value: str) -> None:
    """Write junk over an attribute of a study."""
    path = storage.engine.url.database
    assert path is not None
    with sqlite3.connect(path) as database:
        found = database.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = ? AND study_id = "
            "(SELECT study_id FROM studies WHERE study_name = ?)",
            (value, key, study),
        )
        assert found.rowcount == 1
    database.close()


@pytest.mark.parametrize("junk", ["{", "5", "null", '{"num_val": "x"}'])
@pytest.mark.parametrize("key", ["config", "dataset"])
def test_a_damaged_study_hides_no_other(
    fbsearch: Fbsearch, url: str, storage: RDBStorage, key: str, junk: str, tmp_path: Path
) -> None:
    make_study(storage, 3, name="good")
    make_study(storage, 3, name="bad")
    damage(storage, "bad", key, junk)
    assert fbsearch("status", "good", "--storage", url)[0] == 0
    for command in (["status", "bad"], ["export", "bad"], ["export", "bad", "--format", "csv"]):
        code, _, errors = fbsearch(*command, "--storage", url)
        assert code in (0, 1) and "bug" not in errors and "corrupt" not in errors, errors
    said: list[str] = []
    options = {"host": "127.0.0.1", "token": None, "read_only": False, "say": said.append}
    open_dashboard(storage, url, artifacts=tmp_path / "files", **options)  # type: ignore[arg-type]
    names = {study.study_name for study in FeasibleBest(storage).get_all_studies()}
    assert "good" in names and not any("'good'" in line for line in said)


def test_seed_that_no_generator_takes_is_wrong_usage(fbsearch: Fbsearch, tmp_path: Path) -> None:
    code, _, errors = fbsearch("run", "--seed", 2**32)
    assert code == 2 and "--seed" in errors and "0 to 2147483647" in errors
    (tmp_path / "study.yaml").write_text(f"search: {{seed: {2**32}}}\ndata: {{seed: {2**31}}}\n")
    code, _, errors = fbsearch("run", "study.yaml")
    assert code == 1 and "study.yaml: search.seed: " in errors and "study.yaml: data.seed: " in errors
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_report_of_classes_that_are_not_utf8_and_of_a_long_name(
    fbsearch: Fbsearch, url: str, storage: RDBStorage, tmp_path: Path
) -> None:
    names = [os.fsdecode(b"caf\xe9 <b>"), *"123456789"]
    make_study(storage, 3, name="写" * 150, dataset=DATASET | {"class_names": names})
    code, output, errors = fbsearch("report", "--storage", url)
    assert (code, errors) == (0, "") and output.startswith("reports/写")
    (page,) = (tmp_path / "reports").glob("*.html")
    assert r"caf\udce9 &lt;b&gt;" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_watch_where_the_terminal_is_not_utf8(url: str, storage: RDBStorage, tmp_path: Path) -> None:
    make_study(storage, 6, name="Äpfel 写真 and a name that makes the table too wide for any terminal there is")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "60"}

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        arguments = [sys.executable, "-m", "fbsearch", *command, "--storage", url]
        return subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
        )

    shown = run("watch", "--once")
    assert (shown.returncode, shown.stderr) == (0, "") and r"\xc4pfel" in shown.stdout
    shown = run("report")
    assert (
        shown.returncode == 1 and "no file can be named after it in the encoding ascii; set PYTHONUTF8" in shown.stderr
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that does not exist")
def test_no_home_folder_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "FBSEARCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(54321)
            cache_folder()
        except ConfigError as error:
            os._exit(0 if "~/.cache/fbsearch: there is no home folder; set $HOME" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError("none left")])
def test_machine_without_room_is_no_bug(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(study_commands, "open_study", fail)
    monkeypatch.setattr("sys.argv", ["fbsearch", "status"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1 and f"error: {type(error).__name__}: {error}" in capsys.readouterr().err


def test_bug_report_leaves_out_the_dashboards_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fbsearch", "dashboard", "--token", "geheim", "--port", "1", "--token=geheim"])
    assert command_line() == "fbsearch dashboard --token *** --port 1 --token=***"


def test_bug_is_said_to_be_one_and_its_traceback_is_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(study_commands, "open_study", lambda *_: 1 / 0)  # a bug that stays one
    arguments = ["fbsearch", "status", "--storage", "postgresql://me:geheim@host/x"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as caught:
        main()
    errors = capsys.readouterr().err
    (path,) = tmp_path.glob("fbsearch-bug-*.txt")
    assert caught.value.code == 70
    assert (
        f"error: this is a bug in fbsearch (ZeroDivisionError), please report it with the content of {path}" in errors
    )
    text = path.read_text()
    assert "ZeroDivisionError: division by zero" in text and "me:***@host/x" in text and "geheim" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr("sys.argv", ["fbsearch", "--debug", *arguments[1:]])
    with pytest.raises(ZeroDivisionError):
        main()
