"""The live table and `watch` in a real terminal, a pane of tmux, that is made narrower and wider while they run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_studies import make_study
from optuna.storages import RDBStorage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here: apt-get install tmux"),
]
WIDE, NARROW, HEIGHT = 120, 60, 40
# 39 and 49 are the colours that a terminal has without any.
COLOUR = re.compile(r"\x1b\[(\d+;)*[349][0-8][;m]")
LIVE = """
import sys, time
from fbsearch.cli.live import make_view
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.study_file import StudyConfig
from fbsearch.search.state import SearchState
from fbsearch.search.worker_pool import PoolWorker, WorkerPool
from fbsearch.study.study import load_study
from fbsearch.study.database import open_storage
from fbsearch.study.running_trial import RunningTrial
from fbsearch.study.trial_record import trial_config
from fbsearch.workers.local import ProcessExecutor

study, config = load_study(open_storage(sys.argv[1]), "digits"), StudyConfig()
pool = WorkerPool(ProcessExecutor(config.data, devices=["cpu"] * 3))
for number in range(3):
    trial = study.trials[number]
    pool.workers[number] = PoolWorker(
        state="busy", device="cpu x86_64", running=RunningTrial(trial, trial_config(trial), number)
    )
state = SearchState(name="digits", num_trials=100, pool=pool, num_complete=12, best=study.trials[0])
with make_view(SafeConsole(), config) as view:
    while True:
        view(state, None)
        time.sleep(0.2)
"""


class Pane:
    """A command in a pane of a tmux server of its own."""

    def __init__(
        self, folder: Path, *words: object, width: int = WIDE, cwd: Path | None = None, **environment: str
    ) -> None:
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        command = "echo the line above; exec " + shlex.join(map(str, words))
        names = ("PATH", "HOME", "FBSEARCH_CACHE", "PYTHONPATH")
        kept = {name: os.environ[name] for name in names if name in os.environ} | {"LANG": "C.UTF-8"}
        size = ["-x", width, "-y", HEIGHT]
        variables = [f"{name}={value}" for name, value in (kept | environment).items()]
        clean = ["env", "-i", "TERM=screen-256color", *variables, "sh", "-c", command]
        self._do("new-session", "-d", "-c", cwd or Path.cwd(), *size, *clean)

    def _do(self, *words: object) -> str:
        return subprocess.run(
            [*self._tmux, *map(str, words)], check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def resize(self, width: int) -> None:
        self._do("resize-window", "-x", width, "-y", HEIGHT)

    def read(self, *, colours: bool = False, with_history: bool = False) -> str:
        """Return what the pane shows; with its history also what has left it at its top."""
        return self._do("capture-pane", "-p", *["-S", "-"] * with_history, *["-e"] * colours)

    def wait(self, is_there: Callable[[str], bool]) -> str:
        """Return what the pane shows when `is_there` says yes to it."""
        deadline = time.monotonic() + 240
        while not is_there(shown := self.read()):
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        return shown

    def close(self) -> None:
        self._do("kill-server")


@pytest.fixture
def open_pane(tmp_path: Path) -> Iterator[Callable[..., Pane]]:
    panes: list[Pane] = []

    def start(*words: object, **options: Any) -> Pane:
        panes.append(Pane(tmp_path, *words, **options))
        return panes[-1]

    yield start
    for pane in panes:
        pane.close()


def is_drawn(shown: str, wide: str) -> bool:
    """Whether the pane holds each line of the table once, as before it was resized."""
    return all(shown.count(word) == wide.count(word) for word in ("configuration", "digits", "best"))


def table(shown: str) -> list[str]:
    """The lines below the first, in which the time that is left counts down."""
    return [line for line in shown.splitlines() if line not in ("", "the line above")][1:]


def widest(shown: str) -> int:
    return max(map(len, shown.splitlines()))


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}], ids=["plain", "bare"])
@pytest.mark.parametrize("command", ["live", "watch"])
def test_table_leaves_nothing_behind_in_a_pane_that_is_resized(
    open_pane: Callable[..., Pane], storage: RDBStorage, url: str, command: str, environment: dict[str, str]
) -> None:
    make_study(storage, 9)
    watch = ["-m", "fbsearch", "watch", "digits", "--storage", url, "--interval", "0.3"]
    pane = open_pane(sys.executable, *(["-c", LIVE, url] if command == "live" else watch), **environment)

    wide = pane.wait(lambda shown: "configuration" in shown and "%" in shown)
    header = next(line for line in wide.splitlines() if "configuration" in line)
    for width in (NARROW, WIDE):
        pane.resize(width)
        # Nothing but a table in the new width: what the resize has broken is in the history.
        shown = pane.wait(lambda text: text.startswith("digits") and is_drawn(text, wide))
        assert "the line above" in pane.read(with_history=True)
        assert widest(shown) <= width and "Traceback" not in shown
        assert all(word in shown for word in header.split())
    pane.wait(lambda text: table(text) == table(wide))
    if environment:
        assert wide.isascii() and COLOUR.search(pane.read(colours=True)) is None
    else:
        assert COLOUR.search(pane.read(colours=True))


STUDY = """
name: digits
train: {epochs: 6}
space:
  model.base_channels: {choices: [4, 8]}
  model.pattern: {choices: [cantor, dragon_curve]}
  train.learning_rate: {low: 0.001, high: 0.1, log: true}
"""


def test_whole_run_can_be_read_in_80_columns(open_pane: Callable[..., Pane], tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(STUDY)
    run = shlex.join([sys.executable, "-m", "fbsearch", "run", "small.yaml", "--trials", "6"])
    storage = "sqlite:///study.db"
    pane = open_pane(
        "sh", "-c", f"{run}; echo it ended with $?; exec cat", width=80, cwd=tmp_path, FBSEARCH_STORAGE=storage
    )

    live = pane.wait(lambda shown: re.search(r"\d/6 +\d+\.\d\d% ", shown) is not None)
    header = next(line for line in live.splitlines() if "configuration" in line)
    assert header.split() == ["worker", "trial", "epoch", "val", "acc", "configuration"]
    assert re.search(r"^\d +\d +\d/6 +\d+\.\d\d% +[48]ch (cantor|dragon_curve) lr \.\d+$", live, re.MULTILINE)

    pane.wait(lambda shown: "it ended with" in shown)
    lines = [line.rstrip() for line in pane.read(with_history=True).splitlines() if line.strip()]
    assert lines[0] == "the line above" and lines[-1] == "it ended with 0"
    assert sum("configuration" in line for line in lines) == 0, "the live table is gone"
    assert any(re.match(r"6 trials finished \(\d complete, \d pruned, 0 failed\) in ", line) for line in lines)
    assert any(re.match(r"Best: \d+\.\d\d% validation accuracy, trial \d$", line) for line in lines)
    following = lines[lines.index("Next:") + 1 : -1]
    for command in (
        "report digits",
        "export digits --top 5 --output best.yaml",
        "train best.yaml --seeds 3",
        "dashboard",
    ):
        assert f"  fbsearch {command}" in [line.partition(" --storage")[0] for line in following], following
