"""Replay a table: search it with several samplers and pruners, in seconds a study, and compare them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fbsearch.bench.common import machine
from fbsearch.bench.hypervolume import HypervolumeScale
from fbsearch.bench.replay_page import PAGE, count_workers, write_page
from fbsearch.bench.replay_records import REPLAY_NAME, ArmScore, Replay, Replays
from fbsearch.bench.replay_scores import Scale, interquartile_mean, score
from fbsearch.bench.replay_search import Arm, name_after_all, parse_arms, replay
from fbsearch.bench.table_file import Table, read_table
from fbsearch.errors import ConfigError
from fbsearch.files import file_name, write_whole
from fbsearch.winners.records import read_record, to_json
from fbsearch.winners.retrain import lock_folder


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """The flags of `fbsearch bench replay`. `output` None is reports/replay/<study>, with the objectives if any."""

    arms: Sequence[str]
    reference: str
    workers: Sequence[int] = (1, 4, 16)
    num_repeats: int = 50
    budget: float = 50.0
    output: Path | None = None
    objectives: tuple[str, ...] | None = None
    command: str = "fbsearch bench replay"


def bench_replay(path: Path, options: ReplayOptions, *, say: Callable[[str], None]) -> tuple[Replays, Path]:
    """Replay every arm with every number of workers; return the scores and their folder.

    The reference is replayed, too. After each arm replay.json is written, at the end the page and its figure; replays
    that are in replay.json already are not repeated, and those of other flags stay. Raises ConfigError for unusable
    files and flags, and where replay.json is of another table or budget; StorageError.
    """
    arms = parse_arms([options.reference, *options.arms], objectives=options.objectives)
    table = read_table(path)
    name = "-".join([table.study.name, *(options.objectives or ())])
    folder = options.output or Path("reports", "replay", file_name(name))
    with lock_folder(folder):
        PAGE.check(folder)
        found = _begin(table, folder, options)
        for num_workers in options.workers:
            for arm in arms:
                found = _add(found, table, arm, num_workers=num_workers, num_repeats=options.num_repeats, say=say)
                write_whole(folder / REPLAY_NAME, to_json(found))
        found = found.model_copy(update={"arms": _score(found)})
        write_whole(folder / REPLAY_NAME, to_json(found))
        write_page(found, folder)
    return found, folder


def _begin(table: Table, folder: Path, options: ReplayOptions) -> Replays:
    """Return the replays that are there, or none. ConfigError if they cannot stand beside those of this command."""
    if options.objectives is None:
        best = max(row.mean for row in table.rows.values())
        start = sum(row.mean for row in table.rows.values()) / len(table.rows)
        exhaustive = [best - name_after_all(table, repeat=repeat) for repeat in range(options.num_repeats)]
    else:
        scale, best, start = HypervolumeScale.of(table, options.objectives), 1.0, 0.0
        exhaustive = [best - scale.share_after_all(table, repeat=repeat) for repeat in range(options.num_repeats)]
    now = Replays(
        table=table.path.name,
        table_sha256=hashlib.sha256(table.path.read_bytes()).hexdigest(),
        command=options.command,
        machine=machine(num_threads=1),
        table_machine=table.header.machine,
        study=table.study.name,
        num_configs=len(table.rows),
        num_runs=sum(len(row.runs) for row in table.rows.values()),
        seconds_of_run=round(table.seconds_of_run, 4),
        best_accuracy=best,
        mean_accuracy=start,
        exhaustive_regret=round(float(interquartile_mean(np.array(exhaustive), axis=0)), 6),
        budget=options.budget,
        reference=options.reference,
        objectives=options.objectives,
    )
    path = folder / REPLAY_NAME
    way_out = f"delete it to replay anew, or name another folder with --output (now {folder})"
    before = read_record(path, Replays, way_out=way_out)
    if before is None:
        return now
    for name in ("table_sha256", "budget", "objectives"):
        was, wanted = getattr(before, name), getattr(now, name)
        if was != wanted:
            raise ConfigError(f"{path}: has replays of another {name} ({was} -> {wanted}); {way_out}")
    return now.model_copy(update={"replays": before.replays})


def _add(
    found: Replays, table: Table, arm: Arm, *, num_workers: int, num_repeats: int, say: Callable[[str], None]
) -> Replays:
    """Return the replays with those of an arm that are missing, and all scores."""
    there = {item.key for item in found.replays}
    seconds = found.budget * found.seconds_of_run / num_workers
    new = [
        replay(table, arm, num_workers=num_workers, repeat=repeat, seconds=seconds, objectives=found.objectives)
        for repeat in range(num_repeats)
        if (arm.name, num_workers, repeat) not in there
    ]
    replays = sorted((*found.replays, *new), key=lambda item: (item.num_workers, item.arm, item.repeat))
    took = sum(item.search_seconds for item in new)
    say(f"{arm.name}, {count_workers(num_workers)}: {len(new)} new replays, {took:.0f} s")
    return found.model_copy(update={"replays": tuple(replays)})


def _score(found: Replays) -> tuple[ArmScore, ...]:
    """Return the scores of all arms, those of fewer workers first, then the lower regret at the end."""
    groups: dict[tuple[int, str], list[Replay]] = {}
    for item in found.replays:
        groups.setdefault((item.num_workers, item.arm), []).append(item)
    scores = []
    for (num_workers, _), own in groups.items():
        scale = Scale(found.budget * found.seconds_of_run / num_workers, found.best_accuracy, found.mean_accuracy)
        if (reference := groups.get((num_workers, found.reference))) is not None:
            scores.append(score(own, reference, scale))
    return tuple(sorted(scores, key=lambda item: (item.workers, item.regret)))
