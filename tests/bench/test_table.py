"""`bench table` on digits, a fraction of a second a run: what is kept, how it goes on, and bad input."""

import itertools
import lzma
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_table import make_run, write_table

from fbsearch.bench.table_file import Table, config_key, read_table
from fbsearch.config.space import grid_points
from fbsearch.config.study_file import load_study_file

STUDY = """
name: tiny
data: {limit: 100}
train: {batch_size: 32, epochs: 2}
space:
  model.base_channels: {choices: [4, 8]}
  model.dynamics: {choices: [last, none]}
  model.pattern: {choices: [julia, cantor]}
"""
NUM_CONFIGS = 6  # without dynamics there are no patterns
TABLE = Path("studies", "tables", "tiny.jsonl.xz")
TABLES = Path(__file__).parents[2] / "studies" / "tables"
Fbsearch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def seeds_of(table: Table) -> list[list[int]]:
    return sorted([run.seed for run in row.runs] for row in table.rows.values())


@pytest.mark.slow
def test_table_has_every_epoch_of_every_configuration_once_a_seed(fbsearch: Fbsearch, study: Path) -> None:
    code, output, errors = fbsearch("bench", "table", "study.yaml", "--seeds", 2, "--device", "cpu")
    assert code == 0, errors
    assert str(TABLE) in output and f"{NUM_CONFIGS} configurations, {2 * NUM_CONFIGS} of" in errors
    table = read_table(TABLE)
    assert seeds_of(table) == [[0, 1]] * NUM_CONFIGS
    assert table.study.name == "tiny" and table.header.machine["num_threads"] == 1
    assert (table.dataset.num_train, table.dataset.num_val, table.dataset.image_size) == (80, 20, 8)
    for run in itertools.chain.from_iterable(row.runs for row in table.rows.values()):
        for figures in (run.val_accuracy, run.val_loss, run.train_accuracy, run.train_loss, run.seconds):
            assert len(figures) == 2
        assert run.value == run.val_accuracy[-1] and all(second > 0 for second in run.seconds)
        assert run.num_parameters > 0 and run.flops > 0
    # More is added, nothing is trained twice.
    first = lzma.decompress(TABLE.read_bytes())
    command = ("bench", "table", "study.yaml", "--seeds", 2, "--top", 2, "--more-seeds", 1, "--device", "cpu")
    code, _, errors = fbsearch(*command)
    assert code == 0, errors
    again = lzma.decompress(TABLE.read_bytes())
    assert again.startswith(first) and again.count(b"\n") == first.count(b"\n") + 2
    longer = read_table(TABLE)
    assert seeds_of(longer) == [[0, 1]] * (NUM_CONFIGS - 2) + [[0, 1, 2]] * 2
    best = sorted((row.mean for row in table.rows.values()), reverse=True)[:2]
    chosen = [key for key, row in longer.rows.items() if len(row.runs) == 3]
    assert sorted((table.rows[key].mean for key in chosen), reverse=True) == best
    assert fbsearch(*command)[0] == 0 and lzma.decompress(TABLE.read_bytes()) == again
    # Of other settings, or from another machine, nothing is added.
    study.write_text(STUDY.replace("32", "16"))
    code, _, errors = fbsearch(*command)
    assert code == 1 and "is a table of other settings" in errors and "train.batch_size: 32 -> 16" in errors
    study.write_text(STUDY.replace("limit: 100", "limit: 100, seed: 1"))
    assert fbsearch(*command)[0] == 1
    study.write_text(STUDY)
    code, _, errors = fbsearch(*command, "--threads", 2)
    assert code == 1 and "was measured on" in errors and "--output names another file" in errors
    assert lzma.decompress(TABLE.read_bytes()) == again


@pytest.mark.slow
def test_table_that_is_killed_goes_on_after_its_last_whole_run(fbsearch: Fbsearch, study: Path, tmp_path: Path) -> None:
    journal = tmp_path / TABLE.with_name("tiny.jsonl")

    def num_lines() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    command = [sys.executable, "-P", "-m", "fbsearch", "bench", "table", "study.yaml", "--seeds", "500"]
    with subprocess.Popen([*command, "--device", "cpu"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while num_lines() < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    kept = journal.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    with journal.open("ab") as file:
        file.write(b'{"values": {"model.base')  # as a kill within a write leaves it
    assert not (tmp_path / TABLE).exists()
    code, _, errors = fbsearch("bench", "table", "study.yaml", "--seeds", 1, "--device", "cpu")
    assert code == 0, errors
    assert lzma.decompress(TABLE.read_bytes()).startswith(kept) and not journal.exists()
    assert all(0 in seeds and len(set(seeds)) == len(seeds) for seeds in seeds_of(read_table(TABLE)))


@pytest.mark.slow
def test_table_of_a_sample_grows_and_keeps_what_it_has(fbsearch: Fbsearch, study: Path) -> None:
    study.write_text(
        STUDY.replace("{choices: [4, 8]}", "{choices: [4]}") + "  train.learning_rate: {low: 0.1, high: 1}"
    )
    runs = []
    for count in (2, 3):
        command = ("bench", "table", "study.yaml", "--configurations", count, "--seeds", 1, "--device", "cpu")
        code, _, errors = fbsearch(*command)
        assert code == 0, errors
        runs.append([row.runs for row in read_table(TABLE).rows.values()])
    assert len(runs[1]) == 3 and runs[1][:2] == runs[0]


# Bad input


@pytest.mark.parametrize(
    ("arguments", "space", "message"),
    [
        ((), "train.learning_rate: {low: 0.1, high: 1}", "or say with --configurations how many to draw"),
        (("--configurations", 3), "model.base_channels: {choices: [4, 8]}", "3: the space has 2 different ones"),
        (("--output", "t.json"), "model.base_channels: {choices: [4]}", "t.json: a table is compressed JSON lines"),
    ],
)
def test_table_that_cannot_be_made_says_why(
    fbsearch: Fbsearch, study: Path, arguments: tuple[object, ...], space: str, message: str
) -> None:
    study.write_text(STUDY.partition("space:")[0] + f"space:\n  {space}\n")
    code, _, errors = fbsearch("bench", "table", "study.yaml", "--device", "cpu", *arguments)
    assert code == 1 and message in errors
    assert not TABLE.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no table of `fbsearch bench table` (line 1: "),
        (b'{"format": "fbsearch-race/1"}\n', "(line 1: format: Input should be 'fbsearch-table/1'"),
        (b"\xfd7zXZ\x00rubbish", "cannot be read ("),
    ],
)
def test_read_table_of_another_file_says_so(fbsearch: Fbsearch, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.jsonl.xz").write_bytes(content)
    code, _, errors = fbsearch("bench", "replay", "t.jsonl.xz")
    assert code == 1 and "t.jsonl.xz: " in errors and message in errors


def test_read_table_names_the_damaged_line(fbsearch: Fbsearch, tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.jsonl.xz")
    lines = lzma.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(lzma.compress(b"".join([*lines[:3], b'{"seed": 1}\n', *lines[4:]])))
    code, _, errors = fbsearch("bench", "replay", path)
    assert code == 1 and "is no table of `fbsearch bench table` (line 4: values: Field required)" in errors
    path.write_bytes(lzma.compress(lines[0]))
    code, _, errors = fbsearch("bench", "replay", path)
    assert code == 1 and "has no run yet" in errors
    assert fbsearch("bench", "replay", "absent.jsonl.xz")[0] == 1


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.jsonl.xz")), ids=lambda path: path.name)
def test_committed_tables_are_small_and_of_their_study(path: Path) -> None:
    assert path.stat().st_size < 2 * 2**20
    table = read_table(path)
    study = load_study_file(path.with_name(path.name.removesuffix(".jsonl.xz") + ".yaml"))
    assert table.study == study
    points = grid_points(study.space)
    keys = {config_key(study.trial(point, seed=0), image_size=table.dataset.image_size) for point in points}
    assert set(table.rows) == keys, "every look-up is exact"
    assert all(len(run.val_accuracy) == study.train.epochs for row in table.rows.values() for run in row.runs)


@pytest.mark.parametrize("path", sorted(TABLES.glob("*.yaml")), ids=lambda path: path.name)
def test_committed_studies_of_tables_are_grids(path: Path) -> None:
    study = load_study_file(path)
    assert path.stem == study.name and 300 <= len(grid_points(study.space)) <= 600
    for _ in study.corners():
        pass


def test_read_table_orders_the_runs_of_a_configuration_by_seed(tmp_path: Path) -> None:
    table = read_table(write_table(tmp_path / "t.jsonl.xz", [make_run(8, 0.001, seed) for seed in (2, 0, 1)]))
    (row,) = table.rows.values()
    assert [run.seed for run in row.runs] == [0, 1, 2]
    assert row.judge(row.runs[0]) == pytest.approx((row.runs[1].value + row.runs[2].value) / 2)  # type: ignore[operator]
    assert row.mean == pytest.approx(0.56) and table.seconds_of_run == 4
