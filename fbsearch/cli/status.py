"""Texts and tables about a search in a terminal: its summary, the state of a study, the table of `watch`."""

import datetime
import math
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fbsearch.cli.terminal import ResizableLive
from fbsearch.config.goals import GOALS, format_goal
from fbsearch.config.models import TrialConfig
from fbsearch.config.space import field_value, format_value, split_name
from fbsearch.search.state import SearchState, format_progress
from fbsearch.study.catalogue import StudySummary
from fbsearch.study.database import hide_password
from fbsearch.study.race_result import RaceResult
from fbsearch.study.study import best_trials, goals_of, stored_num_trials
from fbsearch.study.trial_record import (
    TrialRecord,
    describe_untrained,
    describe_untrained_of,
    is_duplicate,
    is_failure,
    is_finished,
    is_infeasible,
    is_race_run,
    num_epochs,
    sampled_names,
    score_of,
    trial_config,
)

INFEASIBLE = "  infeasible: over search.limits, or larger than the memory; not trained, and not counted"
DUPLICATES = "  duplicates: equal to a finished trial, whose result they have; not trained, and not counted"
# `watch` shows this number of ended trials, and the pace of the trials that ended within this time of the newest.
NUM_LATEST = 8
PACE_WINDOW = datetime.timedelta(minutes=10)


def describe(config: TrialConfig, space: Any) -> str:
    """Return a trial's sampled values: `fractal_levels [1, 2], base_channels 16, pattern julia, ...`."""
    return ", ".join(f"{split_name(name)[1]} {format_value(field_value(config, name))}" for name in space)


# How fields are written where there is little room; others with their name, such as `drop_path mixed`.
SHORT_FIELDS = {
    "model.fractal_levels": "{}",
    "model.base_channels": "{}ch",
    "model.pattern": "{}",
    "model.activation": "{}",
    "train.optimizer": "{}",
    "train.learning_rate": "lr {}",
    "train.weight_decay": "wd {}",
    "train.batch_size": "batch {}",
    "train.label_smoothing": "smooth {}",
}


def describe_short(values: Mapping[str, Any]) -> str:
    """Return sampled values, by their dotted names, in few characters: `[1,1] 24ch cantor lr .018`."""
    parts = []
    for name, value in values.items():
        number = isinstance(value, float) and math.isfinite(value)
        text = f"{value:.2g}".replace("0.", ".", 1) if number and abs(value) < 1 else format_value(value)
        parts.append(SHORT_FIELDS.get(name, split_name(name)[1] + " {}").format(text.replace(", ", ",")))
    return " ".join(parts)


def sampled_values(config: TrialConfig, space: Iterable[str]) -> dict[str, Any]:
    """Return the values of a configuration by their dotted names."""
    return {name: field_value(config, name) for name in space}


def format_seconds(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def describe_counts(state: SearchState) -> str:
    """Return how many trials a search has in each state."""
    counts = f"{state.num_complete} complete, {state.num_pruned} pruned, {state.num_failed} failed"
    return counts + describe_untrained(state.num_infeasible, state.num_duplicates)


def print_best(console: Console, best: FrozenTrial, race: RaceResult | None, goals: Sequence[str]) -> None:
    """Print the best trial, how a race has chosen it, and its sampled values."""
    config = trial_config(best)
    value = f"[bold green]{format_goal(goals[0], best.values[0])}[/bold green] {GOALS[goals[0]].label}"
    console.print(f"Best: {value}, trial {best.number}", highlight=False)
    if race is not None:
        console.print(f"  {race.describe(best.number)}", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    for name in sampled_names(best):
        table.add_row(name, format_value(field_value(config, name)))
    record = TrialRecord.of(best)
    table.add_row("parameters", f"{record.num_parameters:,}")
    table.add_row("FLOPs an image", f"{record.flops:,}")
    for name, value in zip(goals[1:], best.values[1:], strict=True):
        if name not in ("parameters", "flops"):
            table.add_row(GOALS[name].label, format_goal(name, value))
    console.print(table)


def print_front(console: Console, front: Sequence[Mapping[str, Any]] | None, goals: Sequence[str]) -> None:
    """Print the Pareto front, which is a list of `status`; nothing without one, or with one trial."""
    if not front or len(front) < 2:
        return
    table = make_table("trial", *(GOALS[goal].label for goal in goals), "")
    for item in front:
        values = (format_goal(goal, item["values"][goal]) for goal in goals)
        mark = "best" if item is front[0] else "knee" if item["is_knee"] else ""
        table.add_row(str(item["trial"]), *values, "best, knee" if item["is_knee"] and mark == "best" else mark)
    console.print(f"Pareto front, {len(front)} trials that no other dominates:", highlight=False)
    console.print(Padding(table, (0, 0, 0, 2)))


def print_untrained(console: Console, *, num_infeasible: int, num_duplicates: int) -> None:
    """Print what infeasible trials and duplicates are, if there are any."""
    if num_infeasible:
        console.print(INFEASIBLE, highlight=False, markup=False, soft_wrap=True)
    if num_duplicates:
        console.print(DUPLICATES, highlight=False, markup=False, soft_wrap=True)


def print_end(console: Console, state: SearchState) -> None:
    """Print the result of a search."""
    seconds = format_seconds(time.monotonic() - state.started)
    reached = f"{state.num_finished}" if state.num_trials is None else f"{state.num_finished} of {state.num_trials}"
    reasons = {
        "finished": f"{state.num_finished} trials finished",
        "interrupted": f"interrupted at {reached} trials, running ones are put back",
        "timeout": f"time is up at {reached} trials, running ones are put back",
        "grid_exhausted": f"every point of the grid is done, {state.num_finished} trials",
        "space_exhausted": f"the sampler finds nothing new, all {state.num_distinct} distinct configurations are done",
    }
    assert state.end is not None
    reason, took = reasons[state.end], f" in {seconds}"
    if _had_all(state):
        reason, took = f"already finished, nothing to do: {state.num_finished} trials", ""
    console.print(f"{reason} ({describe_counts(state)}){took}", highlight=False, soft_wrap=True)
    print_untrained(console, num_infeasible=state.num_infeasible, num_duplicates=state.num_duplicates)
    if state.best is not None:
        print_best(console, state.best, state.race, state.goals)
    if state.race_absence:
        console.print(state.race_absence, highlight=False, soft_wrap=True)


def _had_all(state: SearchState) -> bool:
    return state.end == "finished" and state.num_finished == state.num_finished_before


def print_next(console: Console, state: SearchState, *, storage: str | None) -> None:
    """Print the commands that follow a search, with `--storage` unless `storage` is None (the default)."""
    flag = f" --storage {hide_password(storage)}" if storage else ""
    console.print("Next:", highlight=False)
    if state.end in ("interrupted", "timeout"):
        console.print("  the same command goes on with this study")
    if _had_all(state):
        console.print("  the same command with a larger --trials goes on with this study")
    if state.best is not None:
        name = shlex.quote(state.name)
        for line in (
            f"  fbsearch report {name}{flag}",
            f"  fbsearch export {name} --top 5 --output best.yaml{flag}",
            "  fbsearch train best.yaml --seeds 3",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"  fbsearch dashboard{flag}", markup=False, highlight=False, soft_wrap=True)


def print_status(
    console: Console, status: dict[str, Any], best: FrozenTrial | None, race: RaceResult | None = None
) -> None:
    """Print the state of a study; `status` is the object that `--json` prints."""
    console.print(f"Study [bold]{escape(status['study'])}[/bold] in {escape(status['storage'])}", highlight=False)
    counts = ", ".join(
        f"{status[f'num_{kind}']} {kind}" for kind in ("complete", "pruned", "failed", "running", "waiting")
    )
    counts += describe_untrained(status["num_infeasible"], status["num_duplicates"])
    console.print(counts, highlight=False)
    print_untrained(console, num_infeasible=status["num_infeasible"], num_duplicates=status["num_duplicates"])
    if best is None:
        console.print("no trial is complete yet")
    else:
        goals = tuple(status["best"]["values"])
        print_best(console, best, race, goals)
        print_front(console, status["front"], goals)


def study_table(studies: Sequence[StudySummary]) -> Table:
    """Return a row for each study; in a narrow terminal names are folded, and the data sets cut."""
    states = ["searching" if one.is_searched else "stopped" * (one.num_running > 0) for one in studies]
    table = make_table("study", "best", "complete", "pruned", "failed", *["state"] * any(states), "last", "data")
    names = table.columns[0]
    names.no_wrap, names.overflow = False, "fold"
    names.min_width = min(16, max((len(one.name) for one in studies), default=0))
    for one, state in zip(studies, states, strict=True):
        best = "" if one.best is None else format_goal(one.metric, one.best)
        best += "" if one.metric == "val_accuracy" else f" {GOALS[one.metric].short}"
        counts = (f"{number:,}" for number in (one.num_complete, one.num_pruned, one.num_failed))
        last = "" if one.last is None else f"{one.last:%Y-%m-%d}"
        table.add_row(Text(one.name), best, *counts, *[state] * any(states), last, cut_text(one.data))
    return table


def watch_study(console: Console, study: optuna.Study, *, interval: float, once: bool) -> None:
    """Show a study from the database every `interval` seconds until KeyboardInterrupt; `once` prints it and returns.

    A terminal gets a table that is redrawn in place, other output a line for each trial that ends. Optuna's cache
    reads only trials that have not ended, so that the cost does not grow with the number of ended trials.
    """
    if once:
        console.print(watch_table(study))
    elif console.is_terminal:
        with ResizableLive(console=console, auto_refresh=False) as live:
            while True:
                live.update(watch_table(study), refresh=True)
                time.sleep(interval)
    else:
        _watch_lines(console, study, interval=interval)


def _watch_lines(console: Console, study: optuna.Study, *, interval: float) -> None:
    seen: set[int] | None = None
    while True:
        trials = study.get_trials(deepcopy=False)
        ended = {trial.number for trial in trials if trial.state.is_finished()}
        if seen is None:
            console.print(f"{study.study_name}: {_counts(trials)}", markup=False, highlight=False, soft_wrap=True)
        for number in sorted(ended - (ended if seen is None else seen)):
            trial = trials[number]
            what = f"trial {number} {_outcome(trial)}: {_describe_stored(trial)}"
            console.print(f"[{_progress(study, trials)}] {what}", markup=False, highlight=False, soft_wrap=True)
        seen = ended
        time.sleep(interval)


def watch_table(study: optuna.Study) -> RenderableType:
    """Return the counts and the best, running and latest trials of a study, read from the database now."""
    trials = study.get_trials(deepcopy=False)
    head = Table.grid(padding=(0, 2))
    head.add_row(Text(study.study_name, style="bold"), _progress(study, trials), _pace(study, trials))
    best, goals = next(iter(best_trials(study, 1)), None), goals_of(study)
    line = best_line(best, _describe_stored_short(best) if best else "", goals)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    ended = [trial for trial in trials if trial.datetime_complete is not None]
    latest = sorted(ended, key=lambda trial: trial.datetime_complete or 0, reverse=True)[:NUM_LATEST]
    now = make_table("running", "epoch", GOALS[goals[0]].short, "device", "configuration")
    for trial in running:
        record, score = TrialRecord.of(trial), score_of(trial)
        epochs = (record.config or {}).get("train", {}).get("epochs", "?")
        value, device = "" if score is None else f"{score:.2%}", record.device or "starting"
        what = cut_text(_describe_stored_short(trial))
        now.add_row(str(trial.number), f"{num_epochs(trial)}/{epochs}", value, Text(device), what)
    then = make_table("ended", "how", "configuration")
    for trial in latest:
        then.add_row(str(trial.number), Text(_outcome(trial)), cut_text(_describe_stored_short(trial)))
    nothing = Text("no trial is running", style="dim")
    return Group(head, Text(_counts(trials)), line, now if running else nothing, then if latest else Text())


def best_line(best: FrozenTrial | None, values: str, goals: Sequence[str]) -> Text:
    """Return a line about the best trial and its sampled values."""
    if best is None:
        return Text("no trial is complete yet", style="dim")
    others = zip(goals[1:], best.values[1:], strict=True)
    more = "".join(f", {format_goal(goal, value)} {GOALS[goal].short}" for goal, value in others)
    value = format_goal(goals[0], best.values[0])
    return Text.assemble("best ", (value, "bold green"), f"{more}  trial {best.number}: {values}")


def make_table(*names: str) -> Table:
    """Return a table without lines. Where the terminal is narrow, only the last column is cut: see `cut_text`."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names[:-1]:
        table.add_column(name, no_wrap=True)
    table.add_column(names[-1])  # rich shrinks the columns that may be wrapped
    return table


def cut_text(text: str) -> Text:
    """Return text of the last column, which is cut and never wrapped."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _counts(trials: list[FrozenTrial]) -> str:
    states = [trial.state for trial in trials if is_finished(trial) or not trial.state.is_finished()]
    return (
        f"{states.count(TrialState.COMPLETE)} complete, {states.count(TrialState.PRUNED)} pruned, "
        f"{sum(map(is_failure, trials))} failed, {states.count(TrialState.RUNNING)} running"
    ) + describe_untrained_of(trials)


def _progress(study: optuna.Study, trials: list[FrozenTrial]) -> str:
    return format_progress(sum(map(is_finished, trials)), stored_num_trials(study))


def _pace(study: optuna.Study, trials: list[FrozenTrial]) -> str:
    """Return the recent trials per minute and the time left; empty if nothing runs or too few trials have ended."""
    ends = sorted(trial.datetime_complete for trial in trials if is_finished(trial) and trial.datetime_complete)
    ends = [end for end in ends if ends[-1] - end < PACE_WINDOW]
    if len(ends) < 2 or ends[-1] == ends[0] or not any(trial.state == TrialState.RUNNING for trial in trials):
        return ""
    seconds_each = (ends[-1] - ends[0]).total_seconds() / (len(ends) - 1)
    total = stored_num_trials(study)
    left = 0 if total is None else total - sum(map(is_finished, trials))
    about = f", about {format_seconds(left * seconds_each)} left" if left > 0 else ""
    return f"{60 / seconds_each:.3g} trials a minute{about}"


def _outcome(trial: FrozenTrial) -> str:
    """Return how a trial ended: `complete 97.20%`, `pruned   81.00% after epoch 2`, `failed   ...`."""
    record = TrialRecord.of(trial)
    message = record.failure.message if record.failure else ""
    if is_duplicate(trial):
        return f"as trial {record.duplicate_of}"
    if is_race_run(trial):
        return f"race     {record.race_accuracy:.2%} as trial {record.race_of}"
    if is_infeasible(trial):
        return f"infeasible {message}"
    if trial.state == TrialState.COMPLETE:
        return f"complete {trial.values[0]:.2%}"
    if trial.state == TrialState.PRUNED and (score := score_of(trial)) is not None:
        return f"pruned   {score:.2%} after epoch {num_epochs(trial)}"
    return f"{'failed' if is_failure(trial) else 'put back'}   {message}"


def _describe_stored(trial: FrozenTrial) -> str:
    """Return the sampled values of a stored trial, which another version of fbsearch may have stored."""
    values = _stored_values(trial).items()
    return ", ".join(f"{split_name(name)[1]} {format_value(value)}" for name, value in values)


def _describe_stored_short(trial: FrozenTrial) -> str:
    """Return the same in few characters."""
    return describe_short(_stored_values(trial))


def _stored_values(trial: FrozenTrial) -> dict[str, Any]:
    config = TrialRecord.of(trial).config
    return {} if not config else {name: _stored_value(config, name) for name in sampled_names(trial)}


def _stored_value(config: dict[str, Any], name: str) -> Any:
    *sections, field = name.split(".")
    for section in sections:
        config = config.get(section, {})
    return config.get(field)
