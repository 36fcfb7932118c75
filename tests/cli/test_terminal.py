"""What comes from files and databases cannot make a terminal do anything: control characters are shown as escapes."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from optuna.storages import RDBStorage
from PIL import Image
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fbsearch.cli.live import make_view
from fbsearch.cli.status import cut_text, make_table
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import printable, printable_lines
from fbsearch.messages import FailureKind, Notice
from fbsearch.search.state import SearchState
from fbsearch.search.worker_pool import WorkerPool
from fbsearch.study.study import create_study
from fbsearch.study.trial_record import fail
from fbsearch.winners.checkpoint import ModelCard, build_net, save_model
from fbsearch.workers.local import InProcessExecutor

Fbsearch = Callable[..., tuple[int, str, str]]
EVIL = "a\x1b]0;title\x07\x9b31m\u202eb"
# rich takes out \x07 itself.
SHOWN = r"a\x1b]0;title\x07\x9b31m\u202eb"
BAD = "\x1b\x07\x9b\u202e"


def is_harmless(text: str) -> bool:
    return not set(BAD) & set(text)


@pytest.mark.parametrize("text", ["plain", "caf\u00e9 \u200d\u732b", "1\u00a0000", ""])
def test_printable_leaves_what_people_write(text: str) -> None:
    assert printable(text) == text


def test_printable_escapes_controls_and_printable_lines_keeps_lines() -> None:
    assert printable(EVIL) == SHOWN and printable("a\nb\rc\td\udcff") == r"a\nb\rc\td\udcff"
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"


@pytest.mark.parametrize("terminal", [True, False])
def test_console_escapes_whatever_it_is_given(terminal: bool) -> None:
    console = SafeConsole(file=io.StringIO(), force_terminal=terminal, color_system="standard" if terminal else None)
    table = Table("x", EVIL)
    table.add_row(Text(EVIL), escape(EVIL))
    console.print(EVIL, Text(EVIL, style="red"), table, markup=False, highlight=False, soft_wrap=True)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert output.count(SHOWN.replace(r"\x07", "")) == 2 and ("\x1b[31m" in output) == terminal
    assert "\x07" not in output and "\x1b]" not in output and "\x9b" not in output


@pytest.mark.parametrize(("encoding", "cut", "spread"), [("ascii", "~", "+-"), ("utf-8", "…", "±")])
def test_console_cuts_text_with_what_the_terminal_can_show(encoding: str, cut: str, spread: str) -> None:
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding, errors="backslashreplace")
    console = SafeConsole(file=file, width=30, force_terminal=True, color_system=None)
    table = make_table("trial", "configuration")
    table.add_row("1", cut_text("x" * 60))
    console.print(table, "73% ± 2%")
    file.flush()
    lines = written.getvalue().decode(encoding).splitlines()
    assert lines[1].rstrip() == "1      " + 20 * "x" + cut and lines[2] == f"73% {spread} 2%"


def test_live_table_and_lines_escape_notices_and_names(storage: RDBStorage) -> None:
    config = StudyConfig(name=EVIL)
    create_study(storage, config)
    for terminal in (True, False):
        console = SafeConsole(file=io.StringIO(), force_terminal=terminal, width=200)
        pool = WorkerPool(InProcessExecutor(config.data, device="cpu"))
        state = SearchState(name=EVIL, num_trials=3, pool=pool, notice=EVIL)
        with make_view(console, config) as view:
            view(state, Notice(0, EVIL))
        output = console.file.getvalue()  # type: ignore[attr-defined]
        assert SHOWN.replace(r"\x07", "") in output and "\x1b]" not in output and "\x9b" not in output


@pytest.mark.slow
def test_status_watch_and_report_escape_names_and_failures(fbsearch: Fbsearch, url: str, storage: RDBStorage) -> None:
    study = create_study(storage, StudyConfig(name=EVIL))
    fail(study, study.ask().number, kind=FailureKind.ERROR, message=EVIL)
    for command in (["status"], ["watch", "--once"], ["report"], ["status", "none" + EVIL]):
        _, output, errors = fbsearch(*command, "--storage", url)
        assert is_harmless(output + errors) and r"\x1b" in output + errors, command


def test_errors_escape_what_a_file_holds(fbsearch: Fbsearch, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text('"a\\e[31m": 1\ndata: {name: "\\e[31m"}\n')
    code, _, errors = fbsearch("validate", "s.yaml")
    assert code == 1 and is_harmless(errors) and errors.count(r"\x1b[31m") == 2


def test_predict_escapes_classes_and_file_names(fbsearch: Fbsearch, tmp_path: Path) -> None:
    card = ModelCard(
        rank=1, trial=0, value=0.5, num_parameters=1, num_classes=2, in_channels=1, image_size=8, seed=0,
        data=DataConfig(), train=TrainConfig(precision="fp32"),
        model=ModelConfig(fractal_levels=(1,), base_channels=4, stem="conv3", pattern_resolution=8),
        study="digits", keep_validation=True, class_names=(EVIL, "b\nerror: b"), mean=(0.5,), std=(0.5,),
    )  # fmt: skip
    torch.manual_seed(0)
    save_model(tmp_path / "model", build_net(card), card)
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / f"{EVIL}.png")
    (tmp_path / "images" / f"{EVIL}2.png").touch()
    _, output, errors = fbsearch("predict", "model", "images", "--device", "cpu")
    assert output.count(SHOWN) == 2 and r"b\nerror: b" in output and len(output.splitlines()) == 1
    assert errors.startswith(f"error: images/{SHOWN}2.png: cannot be read") and is_harmless(output + errors)
