"""`bench replay` on a made table: look-ups, virtual time, scores, pages, and what is said of bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_table import SPACE, final_accuracy, make_run, make_runs, write_table

from fbsearch.bench.hypervolume import HypervolumeScale
from fbsearch.bench.replay_records import Replay
from fbsearch.bench.replay_scores import NUM_TIMES, Scale, interquartile_mean, score
from fbsearch.bench.replay_search import ONE_EPOCH, PRUNERS, Arm, name_after_all, parse_arms, replay
from fbsearch.bench.table_executor import TableExecutor, choose_run, nearest_row, order_runs
from fbsearch.bench.table_file import Table, read_table
from fbsearch.errors import ConfigError
from fbsearch.messages import Epoch, FailureKind, Finished, Started, Stopped

Fbsearch = Callable[..., tuple[int, str, str]]
FOREVER = 1e4


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return read_table(write_table(tmp_path / "made.jsonl.xz"))


# The virtual clock


def test_executor_sends_a_run_as_it_was_recorded(table: Table) -> None:
    config = table.study.trial({"model.base_channels": 16, "train.learning_rate": 0.004}, seed=7)
    executor = TableExecutor(table, num_workers=2, draw=0)
    executor.start()
    assert len(executor.events(timeout=1)) == 2 and executor.clock() == 0
    executor.submit(1, 5, config)
    _, run = executor.runs[5]
    heard = []
    while len(heard) < 3:  # Started, and two epochs
        heard += [(executor.clock(), event) for event in executor.events(timeout=1)]
    assert executor.clock() == 4.0
    assert isinstance(heard[0][1], Started) and heard[0][1].num_parameters == 16000
    assert [event.stats.val_accuracy for _, event in heard if isinstance(event, Epoch)] == list(run.val_accuracy[:2])
    executor.stop_trial(1)
    (stopped,) = executor.events(timeout=1)
    assert isinstance(stopped, Stopped) and executor.clock() == 4.0, "a stopped trial costs what it has trained"
    assert executor.events(timeout=0.5) == [] and executor.clock() == 4.5
    executor.submit(1, 6, config)
    ended = [event for _ in range(5) for event in executor.events(timeout=1) if isinstance(event, Finished)]
    row, again = executor.runs[6]
    assert [run, again] == order_runs(row, draw=0)[:2], "a configuration that is run again has the next seed"
    assert ended == [Finished(1, 6, again.value)] and executor.clock() == 12.5
    executor.stop_trial(1)
    assert executor.events(timeout=1) == [], "it had ended already"


def test_executor_shows_all_arms_of_a_repeat_the_same_seeds(table: Table) -> None:
    rows = list(table.rows.values())
    drawn = [[choose_run(row, draw=draw).seed for row in rows] for draw in range(20)]
    assert drawn == [[choose_run(row, draw=draw).seed for row in rows] for draw in range(20)]
    assert len(set(map(tuple, drawn))) > 10 and {seed for seeds in drawn for seed in seeds} == {0, 1, 2}


def test_nearest_row_answers_what_is_not_in_the_table(tmp_path: Path) -> None:
    space = SPACE | {"train.learning_rate": {"low": 0.001, "high": 0.01, "log": True}}
    table = read_table(write_table(tmp_path / "t.jsonl.xz", space=space))
    for rate, near in {0.0011: 0.001, 0.0027: 0.002, 0.0029: 0.004, 0.01: 0.008}.items():
        config = table.study.trial({"model.base_channels": 16, "train.learning_rate": rate}, seed=0)
        assert nearest_row(table, config).runs[0].values == {"model.base_channels": 16, "train.learning_rate": near}
    found = replay(table, Arm("random", "none"), num_workers=1, repeat=0, seconds=50)
    assert found.exact == 0 and found.num_complete > 5


# Searches


def test_replay_on_a_grid_is_exact_and_ends_with_the_space(table: Table) -> None:
    found = replay(table, Arm("random", "none"), num_workers=1, repeat=3, seconds=FOREVER)
    assert (found.num_trials, found.num_complete, found.exact) == (8, 8, 1.0)
    when, accuracy = found.incumbents[-1]
    assert 0 < when <= 4 * 4 + 4 * 8 and found.incumbents[0][0] in (4, 8)
    best = next(row for row in table.rows.values() if row.runs[0].values == make_run(16, 0.004, 0).values)
    shown = choose_run(best, draw=3)
    assert accuracy == pytest.approx(np.mean([final_accuracy(16, 0.004, s) for s in range(3) if s != shown.seed]))


@pytest.mark.parametrize("name", ["random+none", "tpe+median", "gp+none", ONE_EPOCH])
def test_replay_of_the_same_repeat_is_the_same(table: Table, name: str) -> None:
    (arm,) = parse_arms([name])
    found = [replay(table, arm, num_workers=2, repeat=repeat, seconds=20) for repeat in (1, 1, 2, 3)]
    one, again, *others = [item.model_dump(exclude={"search_seconds", "repeat"}) for item in found]
    assert one == again and any(one != other for other in others)


def test_replay_ends_with_its_virtual_seconds_and_workers_share_them(table: Table) -> None:
    one, four = (replay(table, Arm("random", "none"), num_workers=n, repeat=0, seconds=16) for n in (1, 4))
    assert 2 <= one.num_complete <= 4 < four.num_complete
    assert all(when <= 16 for when, _ in (*one.incumbents, *four.incumbents))


@pytest.mark.parametrize("pruner", sorted(PRUNERS))
def test_replay_prunes_with_every_pruner_but_none(tmp_path: Path, pruner: str) -> None:
    rates = [round(0.0005 * n, 4) for n in range(1, 16)]
    space = {"model.base_channels": {"choices": [8, 16]}, "train.learning_rate": {"choices": rates}}
    runs = [make_run(channels, rate, 0) for channels in (8, 16) for rate in rates]
    table = read_table(write_table(tmp_path / "t.jsonl.xz", runs, space=space))
    found = replay(table, Arm("random", pruner), num_workers=1, repeat=0, seconds=FOREVER)
    assert found.num_trials == 30 and (found.num_complete == 30) == (pruner == "none")


@pytest.mark.parametrize("name", ["nsga2+none", "random+successive_halving"])
def test_replay_with_objectives_gives_the_hypervolume_of_the_front(tmp_path: Path, name: str) -> None:
    runs = [run.model_copy(update={"flops": 10 * run.num_parameters}) for run in make_runs()]
    table = read_table(write_table(tmp_path / "t.jsonl.xz", runs))
    goals = ("val_accuracy", "flops")
    (arm,) = parse_arms([name], objectives=goals)
    found = replay(table, arm, num_workers=2, repeat=0, seconds=FOREVER, objectives=goals)
    assert found.num_trials == 8 and (found.num_complete == 8) == (arm.pruner == "none")
    shares = [share for _, share in found.incumbents]
    # Both widths at the best rate are the table's front: the seeds shift all alike, the seed seen is not counted.
    assert shares[0] < shares[-1] == pytest.approx(1, abs=0.05)
    scale = HypervolumeScale.of(table, goals)
    first = [(row, row.runs[0]) for row in table.rows.values()]
    assert scale.share(first[:1]) < scale.share(first) == pytest.approx(shares[-1], abs=0.05)


def test_arms_with_objectives_are_those_that_have_several() -> None:
    goals = ("val_accuracy", "flops")
    for names, message in {"cmaes+none": "sampler", "tpe+median": "pruner", "one_epoch": "sampler"}.items():
        with pytest.raises(ConfigError, match=message):
            parse_arms([names], objectives=goals)
    with pytest.raises(ConfigError, match="--objectives"):
        parse_arms(["tpe+none"], objectives=("val_accuracy", "memory"))


def test_replay_of_a_run_that_failed_goes_on(tmp_path: Path) -> None:
    failed: dict[str, Any] = {"value": None, "failure_kind": FailureKind.NON_FINITE_LOSS, "failure": "not finite"}
    runs = make_runs()
    for number in range(3):
        runs[number] = runs[number].model_copy(update=failed)
    table = read_table(write_table(tmp_path / "t.jsonl.xz", runs))
    found = replay(table, Arm("random", "none"), num_workers=1, repeat=0, seconds=FOREVER)
    assert (found.num_trials, found.num_complete) == (8, 7)
    looked = replay(table, Arm(ONE_EPOCH), num_workers=1, repeat=0, seconds=FOREVER)
    assert (looked.num_trials, looked.num_complete) == (7, 7)


def test_name_after_all_is_where_an_endless_search_ends(table: Table) -> None:
    for repeat in range(3):
        found = replay(table, Arm("random", "none"), num_workers=1, repeat=repeat, seconds=FOREVER)
        assert found.incumbents[-1][1] == pytest.approx(name_after_all(table, repeat=repeat))


def test_one_epoch_trains_the_best_first_from_where_they_stopped(table: Table) -> None:
    found = replay(table, Arm(ONE_EPOCH), num_workers=1, repeat=0, seconds=26)
    assert found.num_trials == 8, "8 first epochs take 4 x 1 + 4 x 2 = 12 of 13 seconds"
    assert found.incumbents[0][0] == 12 + 3 * 2, "then the best, which is of 16 channels, takes its other three epochs"
    assert found.num_complete == 2 and len(found.incumbents) == 1


# Scores


def replay_of(arm: str, repeat: int, *incumbents: tuple[float, float]) -> Replay:
    return Replay(
        arm=arm, num_workers=1, repeat=repeat, incumbents=incumbents, num_trials=4, num_complete=2, exact=1,
        search_seconds=2,
    )  # fmt: skip


def test_interquartile_mean_leaves_out_a_quarter_on_each_side() -> None:
    values = np.array([[100.0, 1, 2, -100, 3, 4, 2, 0]])
    assert interquartile_mean(values, axis=1) == pytest.approx((1 + 2 + 2 + 3) / 4)
    assert interquartile_mean(np.array([5.0, 7.0]), axis=0) == 6


def test_score_is_the_time_to_the_end_of_the_reference() -> None:
    scale = Scale(seconds=128, best_accuracy=1.0, start_accuracy=0.5)
    reference = [replay_of("reference", n, (20, 0.6), (100, 0.8)) for n in range(8)]
    quick = score([replay_of("quick", n, (25, 0.8), (64, 0.9)) for n in range(8)], reference, scale)
    assert (quick.ratio, quick.interval) == (0.25, (0.25, 0.25))
    assert quick.regret == pytest.approx(0.1) and quick.regret_interval == pytest.approx((0.1, 0.1))
    assert (quick.name, quick.workers, quick.repeats, quick.search_seconds_per_trial) == ("quick", 1, 8, 0.5)
    assert len(quick.curve) == NUM_TIMES
    assert quick.curve[23] == pytest.approx((24, 0.5, 0.5, 0.5)), "nothing is complete yet"
    assert quick.curve[24] == pytest.approx((25, 0.2, 0.2, 0.2)) and quick.curve[-1][:2] == pytest.approx((128, 0.1))
    slow = score([replay_of("slow", n) for n in range(8)], reference, scale)
    assert (slow.ratio, slow.interval, slow.regret) == (None, (None, None), 0.5)
    same = score(reference, reference, scale)
    assert (same.ratio, same.interval) == (1, (1, 1))
    # A lucky half is no proof.
    mixed = [replay_of("mixed", n, (50, 0.8 if n % 2 else 0.7)) for n in range(8)]
    unsure = score(mixed, reference, scale)
    assert unsure.ratio is None and unsure.interval == (0.5, None)
    fewer = score(reference[:3], reference, scale)
    assert fewer.repeats == 3 and fewer.ratio == 1


# The command


def test_replay_command_compares_arms_and_writes_page_and_figure(
    fbsearch: Fbsearch, table: Table, tmp_path: Path
) -> None:
    command = ("bench", "replay", "made.jsonl.xz", "--workers", "1,2", "--repeats", 4, "--budget", 6)
    code, output, errors = fbsearch(*command, "--arms", "random+none,one_epoch", "--json")
    assert code == 0, errors
    found = json.loads(output)
    folder = tmp_path / "reports" / "replay" / "made"
    assert found == json.loads((folder / "replay.json").read_text())
    names = {(arm["name"], arm["workers"]) for arm in found["arms"]}
    assert names == {(n, w) for n in ("tpe+successive_halving", "random+none", "one_epoch") for w in (1, 2)}
    for arm in found["arms"]:
        assert arm["repeats"] == 4 and len(arm["interval"]) == 2
        if arm["name"] == "tpe+successive_halving":
            assert (arm["ratio"], arm["interval"]) == (1, [1, 1])
    assert found["best_accuracy"] == pytest.approx(final_accuracy(16, 0.004, 1))
    page = (folder / "README.md").read_text()
    assert "![Regret over virtual seconds](regret.svg)" in page and "one_epoch is a schedule" in page
    assert "fbsearch bench replay made.jsonl.xz --workers 1,2 --repeats 4" in page and "a processor" in page
    assert len(re.findall(r"^\| random\+none \| ", page, flags=re.MULTILINE)) == 2
    svg = (folder / "regret.svg").read_text()
    assert svg.startswith("<svg") and all(f">{text}<" in svg for text in ("1 worker", "2 workers", "one_epoch"))
    assert found["exhaustive_regret"] == pytest.approx(0, abs=0.01) and "Who trains every configuration once" in page
    # Other arms join those that are there.
    code, shown, errors = fbsearch(*command, "--arms", "random+median")
    assert code == 0 and "tpe+successive_halving, 1 worker: 0 new replays" in errors
    assert "random+median" in shown and "one_epoch" in shown and "never" in shown
    there = json.loads((folder / "replay.json").read_text())
    assert [item for item in there["replays"] if item["arm"] != "random+median"] == found["replays"]
    # With objectives they have a folder of their own.
    code, _, errors = fbsearch(
        *command[:3], "--workers", 2, "--repeats", 2, "--objectives", "val_accuracy,parameters", "--arms", "nsga2+none",
        "--reference", "tpe+none",
    )  # fmt: skip
    assert code == 0, errors
    fronts = tmp_path / "reports" / "replay" / "made-val_accuracy-parameters"
    assert "hypervolume missing at the end, %" in (fronts / "README.md").read_text()
    assert json.loads((fronts / "replay.json").read_text())["objectives"] == ["val_accuracy", "parameters"]
    # Nothing stands beside replays of another table or budget.
    code, _, errors = fbsearch(*command[:-1], 7)
    assert code == 1 and "has replays of another budget (6.0 -> 7.0); delete it to replay anew" in errors
    write_table(table.path, make_runs()[:-1])
    code, _, errors = fbsearch(*command)
    assert code == 1 and "has replays of another table_sha256" in errors
    (folder / "README.md").write_text("mine")
    code, _, errors = fbsearch(*command)
    assert code == 1 and "is no page of replays; --output names another folder" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--arms", "tpe"), 1, "--arms tpe: pruner : unknown; allowed: none, median, successive_halving"),
        (("--arms", "bohb+none"), 1, "--arms bohb+none: sampler bohb: unknown; allowed: tpe, random, nsga2, cmaes, gp"),
        (("--reference", "tpe+x"), 1, "--arms tpe+x: pruner x: unknown"),
        (("--workers", "1.5"), 2, "is not whole numbers joined by commas"),
        (("--workers", "0"), 2, "is not numbers above 0 joined by commas"),
    ],
)
def test_replay_bad_flags_say_what_there_is(
    fbsearch: Fbsearch, table: Table, tmp_path: Path, arguments: tuple[str, str], code: int, message: str
) -> None:
    found, _, errors = fbsearch("bench", "replay", "made.jsonl.xz", *arguments)
    assert found == code and message in errors.replace("\n", " ")
    assert not (tmp_path / "reports").exists()
