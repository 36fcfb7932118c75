"""`watch` on a real database: what it shows, how little it reads, and that Ctrl-C ends it cleanly."""

import io
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from rich.console import Console

from fbsearch.cli.app import main
from fbsearch.cli.live import LiveTable
from fbsearch.cli.status import cut_text, describe_short, make_table, watch_study, watch_table
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import EpochStats
from fbsearch.search.state import SearchState
from fbsearch.search.worker_pool import PoolWorker, WorkerPool
from fbsearch.study.database import open_storage
from fbsearch.study.running_trial import RunningTrial
from fbsearch.study.sampling import sample
from fbsearch.study.study import create_study, load_study
from fbsearch.study.trial_record import fail
from fbsearch.workers.local import ProcessExecutor

NAME = "[bold]<script>[/bold]"


def start(study: optuna.Study, *accuracies: float) -> optuna.Trial:
    """A running trial that has reported these."""
    config, trial = StudyConfig(name=study.study_name), study.ask()
    stored = config.trial(sample(trial, config), seed=trial.number)
    trial.set_user_attr("config", stored.model_dump(mode="json"))
    trial.set_user_attr("device", "cpu x86_64")
    for epoch, accuracy in enumerate(accuracies, start=1):
        trial.report(accuracy, epoch)
    return trial


@pytest.fixture
def study(storage: Any) -> optuna.Study:
    """One trial complete, one pruned, one failed, one running, one just asked for."""
    made = create_study(storage, StudyConfig(name=NAME))
    made.tell(start(made, 0.5, 0.9), 0.9)
    made.tell(start(made, 0.3), state=TrialState.PRUNED)
    start(made)
    fail(made, 2, kind="error", message="no [red]memory")
    start(made, 0.4, 0.61)
    made.ask()
    return made


def shown(study: optuna.Study) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(watch_table(study))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_watch_shows_counts_best_running_and_latest_trials(study: optuna.Study) -> None:
    lines = [" ".join(line.split()) for line in shown(study).splitlines()]
    assert lines[0].startswith(f"{NAME} 2 trials ") and lines[1].startswith("1 complete, 1 pruned, 1 failed, 2 running")
    assert lines[2].startswith("best 90.00% trial 0: [")
    running = lines[4:6]
    assert running[0].startswith("3 2/6 61.00% cpu x86_64 [") and " lr .0" in running[0]
    assert running[1].startswith("4 0/? starting")
    assert [line.split(" [1")[0].split(" [2")[0] for line in lines[7:10]] == [
        "2 failed no [red]memory", "1 pruned 30.00% after epoch 1", "0 complete 90.00%",
    ]  # fmt: skip


def test_watch_knows_how_many_there_will_be_where_it_is_stored(study: optuna.Study) -> None:
    study.set_user_attr("num_trials", 100)
    text = shown(study)
    assert " 2/100 " in text and "trials a minute, about " in text


def test_watch_an_empty_study_and_one_of_another_version(storage: Any) -> None:
    empty = create_study(storage, StudyConfig())
    assert "no trial is complete yet" in shown(empty) and "no trial is running" in shown(empty)
    trial = empty.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("config", {"model": {}, "gone": 1})
    empty.tell(trial, 0.5)
    assert "best 50.00%" in shown(empty)


def test_watch_reads_the_same_however_many_trials_have_ended_and_writes_nothing(study: optuna.Study, url: str) -> None:
    opened = open_storage(url)
    watched = load_study(opened, NAME)
    statements: list[str] = []
    rows: list[int] = []

    @sqlalchemy.event.listens_for(opened.engine, "before_cursor_execute")
    def on_statement(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    def look() -> int:
        statements.clear()
        shown(watched)
        assert all(statement.lstrip().startswith(("SELECT", "PRAGMA")) for statement in statements), statements
        rows.append(len(statements))
        return len(statements)

    look()
    few = look()
    for _ in range(40):
        study.tell(start(study, 0.5), 0.5)
    look()
    assert look() == few <= 24
    opened.engine.dispose()


def test_watch_once_prints_and_ends(
    study: optuna.Study, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fbsearch", "watch", "--once", "--storage", url])
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0 and "best 90.00%" in capsys.readouterr().out


def test_watch_on_a_terminal_draws_the_table_anew(study: optuna.Study) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=150, legacy_windows=False)

    def press_ctrl_c() -> None:
        while screen.getvalue().count("61.00%") < 3:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        watch_study(console, study, interval=0.2, once=False)
    text = screen.getvalue()
    assert text.count("61.00%") >= 3 and text.endswith("\x1b[?25h"), "the cursor is shown again"


def test_watch_without_a_terminal_says_what_ends_until_ctrl_c(study: optuna.Study, url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fbsearch", "watch", "--interval", "0.2", "--storage", url]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:

        def wait_for(words: str) -> None:
            deadline = time.monotonic() + 180
            while words not in (tmp_path / "log").read_text():
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)

        try:
            wait_for("1 complete, 1 pruned, 1 failed, 2 running")
            study.tell(3, 0.95)
            wait_for("[3 trials] trial 3 complete 95.00%: fractal_levels [")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 0
        finally:
            process.kill()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{NAME}: ")


@pytest.mark.parametrize("width", [60, 80, 100])
def test_narrow_terminal_cuts_the_configuration_and_nothing_else(width: int) -> None:
    table = make_table("worker", "device", "trial", "epoch", "val acc", "configuration")
    cells = ("10", "cpu x86_64", "1234", "12/15", "62.35%")
    table.add_row(*cells, cut_text("[1,2] 16ch dragon_curve lr .043 drop_path mixed activation hardswish stem conv3"))
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    header, row = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert header.split() == ["worker", "device", "trial", "epoch", "val", "acc", "configuration"]
    assert all(cell in row for cell in cells) and row.rstrip().endswith("…")


def test_configuration_is_written_short() -> None:
    values = {
        "model.fractal_levels": (1, 1),
        "model.base_channels": 24,
        "model.pattern": "cantor",
        "train.learning_rate": 0.0183,
        "model.drop_path": "mixed",
        "train.early_stopping": None,
        "model.width_growth": 1.5,
        "train.weight_decay": 0.0,
    }
    said = "[1,1] 24ch cantor lr .018 drop_path mixed early_stopping null width_growth 1.5 wd 0"
    assert describe_short(values) == said


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("devices", [("cpu x86_64", "cpu x86_64"), ("cuda:0 NVIDIA H100", "cuda:1 NVIDIA H200")])
def test_live_table_keeps_trial_epoch_and_accuracy(width: int, devices: tuple[str, str], study: optuna.Study) -> None:
    config = StudyConfig(name="my-images")
    pool = WorkerPool(ProcessExecutor(config.data, devices=list(devices)))
    for number, device in enumerate(devices):
        trial = study.ask()
        running = RunningTrial(trial, config.trial(sample(trial, config), seed=0), number)
        running.history = [EpochStats(1, 1, 0.5, 1, 0.97432, 0.01, 1, 1, 1, 1, 1)]
        pool.workers[number] = PoolWorker(state="busy", device=device, running=running)
    state = SearchState(name="my-images", num_trials=100, pool=pool, num_complete=12, num_pruned=18, num_infeasible=9)
    console = Console(file=io.StringIO(), width=width)
    table = LiveTable(console, config)
    table(state, None)
    console.print(table.get_renderable())
    head, counts, *_, header, first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "my-images" in head and "30/100" in head and counts.startswith("12 complete, 18 pruned, 0 failed, 9 infeas")
    assert header.split()[-5:-1] == ["trial", "epoch", "val", "acc"]
    for row, number, device in zip((first, second), ("5", "6"), devices, strict=True):
        assert f" {number} " in row and "1/6" in row and "97.43%" in row and "[" in row
        assert (device in row) == (devices[0] != devices[1])
    assert (devices[0] in counts) == (devices[0] == devices[1])
