"""`fbsearch run --budget`: what is said before, the training at the end, and what is refused or interrupted."""

import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from made_studies import make_study
from optuna.storages import RDBStorage

from fbsearch.api.budget import Budget, choose_winner, make_budget
from fbsearch.cli.live import describe_time_left, make_view
from fbsearch.cli.options import read_duration
from fbsearch.cli.terminal import SafeConsole
from fbsearch.config.export_file import dump_export, load_export
from fbsearch.config.models import DataConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import ConfigError, SearchError
from fbsearch.search.state import SearchState
from fbsearch.search.worker_pool import WorkerPool
from fbsearch.study.export import export_best
from fbsearch.study.study import create_study
from fbsearch.winners.records import RESULT_NAME, SeedResult
from fbsearch.workers.local import InProcessExecutor

Fbsearch = Callable[..., tuple[int, str, str]]
SMALL = """
name: small
data: {limit: 100}
model: {fractal_levels: [1], base_channels: 4, stem: conv3, pattern_resolution: 8}
train: {epochs: EPOCHS, budget: null}
space:
  train.learning_rate: {low: 0.003, high: 0.05, log: true}
search: {pruner: none}
"""


def write_study(folder: Path, *, epochs: int = 2) -> None:
    (folder / "small.yaml").write_text(SMALL.replace("EPOCHS", str(epochs)))


def budget_of(config: StudyConfig, **values: Any) -> Budget:
    arguments = {"seconds": 100.0, "started": time.monotonic(), "output": Path("not-written"), "device": "cpu"}
    return make_budget(config, **(arguments | {"untrusted": False} | values))


# Times.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h1m1s", 3661), ("90m", 5400)],
)
def test_duration_in_each_form(text: str, seconds: int) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5", "1.5h", "1h30", "30 m", "m", "5d", "m30", "1m1h", "9" * 30, "٣m"]
)
def test_duration_in_no_form_shows_the_forms(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write 90 or 90s, 30m, 2h, or 1h30m"):
        read_duration(text)


# What is refused before the search.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--budget", "soon"], "'soon' is no time"),
        (["--budget", "10m", "--ray", "local"], "--ray"),
        (["--budget", "10m", "--timeout", "5"], "--timeout"),
        (["--output", "x"], "only with --budget"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags_exit_2(fbsearch: Fbsearch, tmp_path: Path, arguments: list[str], named: str) -> None:
    code, output, errors = fbsearch("run", *arguments)
    assert (code, output) == (2, "") and named in errors and list(tmp_path.iterdir()) == []


def test_an_earlier_training_in_the_folder_is_kept(fbsearch: Fbsearch, tmp_path: Path) -> None:
    earlier = tmp_path / "reports" / "digits" / "rank-1" / "seed-4" / "training.pt"
    earlier.parent.mkdir(parents=True)
    (earlier.parent / ".lock").touch()
    assert budget_of(StudyConfig(), output=tmp_path / "reports").study == "digits", "a lock alone is no training"
    earlier.write_bytes(b"weights")
    code, output, errors = fbsearch("run", "--budget", "10m")
    assert (code, output) == (1, "") and not (tmp_path / "studies").exists()
    assert "reports/digits/rank-1: holds an earlier training" in errors and "--output names another folder" in errors
    assert earlier.read_bytes() == b"weights"
    assert budget_of(StudyConfig(), output=tmp_path / "other").export == tmp_path / "other" / "digits" / "best.yaml"


def test_a_file_of_another_kind_in_the_place_of_the_export_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "digits" / "best.yaml"
    mine.parent.mkdir()
    mine.write_text("mine: 1\n")
    with pytest.raises(ConfigError, match="is there already, and is no export"):
        budget_of(StudyConfig(), output=tmp_path)


# The winner.


def test_announcement_says_both_times_and_a_missing_test_split(make_tree: Callable[..., Path]) -> None:
    assert budget_of(StudyConfig(), seconds=600.0).announce() == "about 7 min 30 s of search, 2 min 30 s of training"
    tree = make_tree(train={"a": 4, "b": 4})
    config = StudyConfig(data=DataConfig(name="folder", root=str(tree)))
    assert "there is no test split, so the score will be the validation split's" in budget_of(config).announce()
    for name in ("a", "b"):
        (tree / "test" / name).mkdir(parents=True)
        (tree / "test" / name / "0.png").write_bytes((tree / "train" / name / "0000.png").read_bytes())
    assert "test split" not in budget_of(config).announce()


def test_winner_is_exported_and_gets_the_time_that_is_left(storage: RDBStorage, tmp_path: Path) -> None:
    study = make_study(storage, 9)
    budget = budget_of(StudyConfig(), output=tmp_path / "out", untrusted=True)
    winner = choose_winner(budget, study, start_up=10.0)
    exported = load_export(tmp_path / "out" / "digits" / "best.yaml")
    assert exported.configs == export_best(study, top=5).configs
    assert winner.command.startswith(f"fbsearch train {tmp_path}/out/digits/best.yaml --seeds 3 --device cpu --output ")
    assert "--untrusted" in winner.arguments and "--keep-validation" not in winner.arguments
    assert 0.5 * (100 - 12.5) < 3 * winner.seconds < 100 - 12.5 and winner.arguments[-1] == str(winner.seconds)
    slow = choose_winner(budget, study, start_up=40.0)
    assert 0 < slow.seconds < winner.seconds - 5
    with pytest.raises(SearchError, match=r"too few to load .* `fbsearch train .* trains them without a limit"):
        choose_winner(budget, study, start_up=90.0)


def test_winner_keeps_the_validation_images_that_it_needs(
    storage: RDBStorage, make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    study = make_study(storage, 9)
    config = StudyConfig(data=DataConfig(name="folder", root=str(make_tree(train={"a": 4, "b": 4}))))
    budget = budget_of(config, output=tmp_path / "out")
    assert "--keep-validation" in choose_winner(budget, study, start_up=None).arguments


def test_no_complete_trial_is_an_error_that_names_the_way_out(storage: RDBStorage) -> None:
    study = create_study(storage, StudyConfig())
    with pytest.raises(SearchError, match=r"no trial is complete .* larger --budget"):
        choose_winner(budget_of(StudyConfig()), study, start_up=1.0)


# The time left.


@pytest.mark.parametrize(
    ("num_trials", "seconds", "shown"),
    [(8, math.inf, r"about 0:00:[2-4]\d left"), (8, 5.0, r"0:00:0[3-5] left"), (None, math.inf, "$")],
)
def test_time_left_is_estimated_where_no_deadline_is_nearer(num_trials: int | None, seconds: float, shown: str) -> None:
    pool = WorkerPool(InProcessExecutor(DataConfig(), device="cpu"))
    now = time.monotonic()
    state = SearchState(name="digits", num_trials=num_trials, pool=pool, started=now - 10, deadline=now + seconds)
    assert describe_time_left(state) == ("" if math.isinf(seconds) else "0:00:05 left")
    state.num_pruned = 2
    assert re.match(shown, describe_time_left(state))
    console = SafeConsole(file=io.StringIO(), force_terminal=True, width=200)
    with make_view(console, StudyConfig()) as view:
        view(state, None)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("2/8" if num_trials else "2 trials") in output and ("left" in output) == (shown != "$")


# The whole, in real processes.


@pytest.mark.slow
def test_run_with_a_budget_that_is_too_small_keeps_the_study(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_study(tmp_path, epochs=100_000)
    code, output, errors = fbsearch("run", "small.yaml", "--budget", "2s", "--workers", "0")
    assert code == 1 and output.startswith("about 1.5 s of search, ") and "no trial is complete" in errors
    assert not (tmp_path / "reports").exists()
    assert json.loads(fbsearch("status", "--json")[1])["num_complete"] == 0


@pytest.mark.slow
def test_run_with_a_budget_ends_with_the_accuracy_of_three_seeds(fbsearch: Fbsearch, tmp_path: Path) -> None:
    write_study(tmp_path)
    command = ["run", "small.yaml", "--budget", "45s", "--workers", "0", "--device", "cpu", "--output", "out"]
    code, output, errors = fbsearch(*command, "--trials", "2", "--json")
    assert code == 0, errors
    content = json.loads(output)
    folder = tmp_path / "out" / "small"
    results = [SeedResult.model_validate_json(path.read_bytes()) for path in folder.glob(f"rank-1/*/{RESULT_NAME}")]
    assert (content["end"], content["num_complete"], content["folder"]) == ("finished", 2, "out/small")
    assert content["test_accuracy"]["seeds"] == len(results) == 3 and content["test_accuracy"]["std"] >= 0
    assert content["test_accuracy"]["mean"] == pytest.approx(sum(result.accuracy for result in results) / 3)
    assert {result.scored_on for result in results} == {"test"}
    assert content["errors"]["num_seeds"] == 3 and 0 <= content["errors"]["macro_f1"] <= 1
    assert {result.trial for result in results} == {content["best"]["trial"]}
    order = [errors.index(word) for word in ("of search, ", "[2/2] trial 1", "training 3 networks")]
    assert order == sorted(order)
    assert "holds an earlier training" in fbsearch(*command)[2]
    (words,) = re.findall(r"training 3 networks for [\d.]+ s each: fbsearch (.*)", errors)
    assert fbsearch(*shlex.split(words), "--json")[0] == 0, "the command that is printed finds its own training"


@pytest.mark.slow
@pytest.mark.parametrize("ignores_sigint", [False, True])
def test_run_stopped_in_the_training_names_the_command_that_goes_on(tmp_path: Path, ignores_sigint: bool) -> None:
    """Ctrl-C in a terminal, and SIGTERM where all ignore SIGINT, as in the background of a script."""
    write_study(tmp_path, epochs=60)
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    before = [sys.executable, "-c", ignore] if ignores_sigint else []
    words = ["run", "small.yaml", "--budget", "5m", "--trials", "1", "--workers", "0", "--device", "cpu"]
    with subprocess.Popen(
        [*before, sys.executable, "-m", "fbsearch", *words], cwd=tmp_path, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 400
        while not (found := list(tmp_path.glob("reports/small/rank-1/seed-0/training.pt"))):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        if ignores_sigint:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output and found[0].exists()
    (command,) = re.findall(r"interrupted; `fbsearch (.*)` goes on after the last whole epoch", output)
    assert command.startswith("train reports/small/best.yaml --seeds 3 ")
    export = load_export(tmp_path / "reports" / "small" / "best.yaml")
    assert dump_export(export) == (tmp_path / "reports" / "small" / "best.yaml").read_text()
