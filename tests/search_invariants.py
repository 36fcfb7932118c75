"""What must be true of a study in an SQLite file, at any moment of any search, and after it."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulated_search import Command

from fbsearch.messages import Epoch, Event, Failed, FailureKind, Finished, WorkerDied
from fbsearch.search.state import SearchState

ENDED = ("COMPLETE", "PRUNED", "FAIL")
NOT_COUNTED_ATTEMPTS = (FailureKind.NODE_LOST, FailureKind.INTERRUPTED)


@dataclass(kw_only=True)
class Row:
    """One trial as it lies in the file."""

    number: int
    state: str
    value: float | None = None
    curve: dict[int, float] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        return self.attributes["failure"]["kind"] if "failure" in self.attributes else None

    @property
    def is_duplicate(self) -> bool:
        return self.state in ("COMPLETE", "PRUNED") and "duplicate_of" in self.attributes

    @property
    def is_counted(self) -> bool:
        return self.state in ("COMPLETE", "PRUNED") and self.kind is None and not self.is_duplicate

    @property
    def origin(self) -> int:
        return self.attributes.get("retry_of", self.number)

    @property
    def attempt(self) -> int:
        return self.attributes.get("attempt", 1)

    @property
    def is_infeasible(self) -> bool:
        return self.state == "PRUNED" and self.kind is not None


def read_rows(database: sqlite3.Connection, study: str) -> list[Row]:
    """Read a study's trials, in the order of their numbers."""
    where = "t JOIN trials USING (trial_id) JOIN studies USING (study_id) WHERE study_name = ?"
    query = "SELECT trial_id, number, state FROM trials JOIN studies USING (study_id) WHERE study_name = ?"
    rows = {key: Row(number=number, state=state) for key, number, state in database.execute(query, (study,))}
    for key, value in database.execute(f"SELECT trial_id, value FROM trial_values {where}", (study,)):
        rows[key].value = value
    for key, name, text in database.execute(
        f"SELECT trial_id, key, value_json FROM trial_user_attributes {where}", (study,)
    ):
        rows[key].attributes[name] = json.loads(text)
    query = f"SELECT trial_id, step, intermediate_value FROM trial_intermediate_values {where}"
    for key, step, value in database.execute(query, (study,)):
        rows[key].curve[step] = value
    return sorted(rows.values(), key=lambda row: row.number)


def find_problems(rows: Sequence[Row], received: Mapping[int, Sequence[Event]], *, is_settled: bool) -> Iterator[str]:
    """Yield what is wrong; `received` is what coordinators heard of each trial, all of it handled if `is_settled`."""
    if [row.number for row in rows] != list(range(len(rows))):
        yield f"the trials have the numbers {[row.number for row in rows]}"
    for row in rows:
        yield from (f"trial {row.number}, {row.state}: {text}" for text in _trial_problems(row, rows, received))
        if is_settled and row.state == "RUNNING":
            yield from (
                f"trial {row.number}: {event} was told" for event in received.get(row.number, ()) if is_end(event)
            )
    yield from _chain_problems(rows, is_settled=is_settled)


def is_end(event: Event) -> bool:
    """Return True for the last event of a trial, other than the answer to a request to stop it."""
    return isinstance(event, Finished | Failed | WorkerDied)


def _trial_problems(row: Row, rows: Sequence[Row], received: Mapping[int, Sequence[Event]]) -> Iterator[str]:
    events = received.get(row.number, ())
    told = {event.stats.epoch: event.stats.val_accuracy for event in events if isinstance(event, Epoch)}
    end = next(filter(is_end, events), None)
    if row.is_duplicate:
        same = rows[row.attributes["duplicate_of"]]
        if same.state != row.state and not (same.state == "FAIL" and row.state == "PRUNED"):
            yield f"repeats trial {same.number}, which is {same.state}"
        return
    if sorted(row.curve) != list(range(1, len(row.curve) + 1)) or not row.curve.items() <= told.items():
        yield f"the curve is {row.curve}, the worker has told {told}"
    if row.is_counted:
        history = {stats["epoch"]: stats["val_accuracy"] for stats in row.attributes["history"]}
        if history != row.curve or not row.curve:
            yield f"the history is {history}, the curve {row.curve}"
    if row.state == "COMPLETE" and not (isinstance(end, Finished) and end.value == row.value and row.curve == told):
        yield f"has the value {row.value} and the curve {row.curve}, the worker has told {told} and {end}"
    if row.state == "PRUNED" and row.is_counted and len(row.curve) >= row.attributes["config"]["train"]["epochs"]:
        yield "is pruned after its last epoch"
    if row.state == "FAIL" and row.kind is None:
        yield "has failed without a reason"
    kinds = {getattr(end, "kind", None), FailureKind.INTERRUPTED}
    kinds |= {FailureKind.HUNG, FailureKind.WORKER_DIED} if isinstance(end, WorkerDied) or not events else set()
    if row.kind is not None and row.state != "RUNNING" and row.kind not in kinds:
        yield f"has failed as {row.kind}, the worker has told {end}"


def _chain_problems(rows: Sequence[Row], *, is_settled: bool) -> Iterator[str]:
    followers = Counter(row.attributes["follows"] for row in rows if "follows" in row.attributes)
    yield from (
        f"trial {number} is tried again {count} times at once" for number, count in followers.items() if count > 1
    )
    counted = Counter(row.origin for row in rows if row.is_counted)
    yield from (f"trial {number} counts {count} times" for number, count in counted.items() if count > 1)
    for row in rows:
        if row.state in ENDED and not row.is_duplicate and followers[row.number] != must_be_tried_again(row):
            yield f"trial {row.number} ({row.kind}, attempt {row.attempt}) is tried again {followers[row.number]} times"
        if "follows" in row.attributes:
            yield from _follower_problems(row, rows[row.attributes["follows"]], is_settled=is_settled)


def must_be_tried_again(row: Row) -> bool:
    """The table of failures in docs/failures.md, in other words than `search/failures.py` has for it."""
    match row.kind:
        case "interrupted" | "node_lost":
            return True
        case "worker_died" | "hung" | "error":
            return row.attempt < 3
        case "out_of_memory":
            return not row.attributes.get("alone", False)
    return False


def _follower_problems(row: Row, before: Row, *, is_settled: bool) -> Iterator[str]:
    """Yield what is wrong with a trial that tries another one again.

    An attempt counts if it failed, and then it has its reason, even where the coordinator was killed between the two
    writes of a failure: the successor into the queue, and the end. An attempt that was interrupted with its
    coordinator, or whose node was lost, does not count.
    """
    if before.state != "FAIL" and (is_settled or before.state != "RUNNING"):
        yield f"trial {row.number} follows trial {before.number}, which is {before.state}"
    if row.origin != before.origin:
        yield f"trial {row.number} comes from {row.origin}, trial {before.number} before it from {before.origin}"
    if before.state == "FAIL":
        attempt = before.attempt + (before.kind not in NOT_COUNTED_ATTEMPTS)
        if row.attempt != attempt:
            yield f"trial {row.number} is attempt {row.attempt}, not {attempt}"
        if "follows_failure" in row.attributes and row.attributes["follows_failure"] != before.attributes["failure"]:
            yield f"trial {row.number} follows {row.attributes['follows_failure']}, trial {before.number} {before.kind}"
        if before.attributes.get("alone", False) and not row.attributes.get("alone", False):
            yield f"trial {row.number} is not alone, as trial {before.number} was"
    configs = [{**side.attributes["config"], "seed": 0} for side in (row, before) if "config" in side.attributes]
    if len(configs) == 2 and configs[0] != configs[1]:
        yield f"trial {row.number} is not the configuration of trial {before.number}"


def best_row(rows: Sequence[Row]) -> Row | None:
    """The best by its curve: the highest last value, then fewer parameters, then the lower number."""
    complete = [row for row in rows if row.state == "COMPLETE" and row.is_counted]
    by = lambda row: (-row.curve[max(row.curve)], row.attributes["num_parameters"], row.number)  # noqa: E731
    return min(complete, key=by, default=None)


def check_settled(
    command: Command, rows: Sequence[Row], received: Mapping[int, Sequence[Event]], *, num_before: int
) -> None:
    """Check a coordinator that waits and has handled all that it heard. `num_before`: counted when it began."""
    assert command.coordinator is not None
    state, num_trials = command.coordinator.state, command.num_trials
    running = [row for row in rows if row.state == "RUNNING"]
    counted = [row for row in rows if row.is_counted]
    assert {row.number for row in running} == {trial.trial.number for trial in state.running.values()}
    for row in running:
        told = [event.stats.epoch for event in received.get(row.number, ()) if isinstance(event, Epoch)]
        assert list(row.curve) == told, f"trial {row.number}: {row.curve} is stored, {told} was told"
    assert num_before > num_trials or len(counted) + len(running) <= num_trials
    assert (state.num_complete, state.num_pruned, state.num_failed, state.num_infeasible, state.num_duplicates) == (
        sum(row.state == "COMPLETE" for row in counted),
        sum(row.state == "PRUNED" for row in counted),
        sum(row.state == "FAIL" and row.kind != "interrupted" for row in rows),
        sum(row.is_infeasible for row in rows),
        sum(row.is_duplicate for row in rows),
    )
    best = best_row(rows)
    assert (state.best and state.best.number) == (best and best.number)
    _check_workers(command, state)
    if len(counted) + len(running) < num_trials and state.pool.find_idle() is not None:
        assert command.coordinator._proposals.exhausted, "a worker is idle though there is work"


def _check_workers(command: Command, state: SearchState) -> None:
    """Check that each trial has the worker that the coordinator thinks, and its device to itself where it needs it."""
    pool = state.pool.workers
    for number, worker in pool.items():
        others = [other.state for n, other in pool.items() if other.device == worker.device and n != number]
        is_shared = "busy" in others or "stopping" in others
        if worker.state == "busy":
            assert worker.running is not None
            assert command.workers.workers[number].given == worker.running.trial.number
            assert not (worker.is_alone and is_shared), f"worker {number} is to be alone on {worker.device}"
        if worker.state == "waiting":
            assert is_shared, f"worker {number} waits for nothing"
