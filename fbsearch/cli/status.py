"""What a person sees of a search in a terminal: the live table, plain lines, the summary, the state of a study.

Reads what it is given; decides nothing.
"""

import datetime
import shlex
import time
from types import TracebackType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import (
    OVER_LIMITS,
    CannotStart,
    Epoch,
    Event,
    Failed,
    Finished,
    Notice,
    Ready,
    Started,
    WorkerDied,
    WorkerLost,
)
from fbsearch.search.state import RunningTrial, SearchState
from fbsearch.study.database import hide_password
from fbsearch.study.study import best_trials, is_failure, sampled_names, trial_config
from fbsearch.study.trial_record import (
    describe_untrained,
    describe_untrained_of,
    is_duplicate,
    is_finished,
    is_infeasible,
)

UPDATES_PER_SECOND = 2
# What `watch` shows: so many trials that have ended, and the pace of those that ended in this time before the newest.
NUM_LATEST = 8
PACE_WINDOW = datetime.timedelta(minutes=10)


def describe(config: TrialConfig, space: Any) -> str:
    """What was sampled for a trial, short: `fractal_levels [1, 2], base_channels 16, pattern julia, ...`."""
    return ", ".join(f"{name.partition('.')[2]} {format_value(config, name)}" for name in space)


def format_value(config: TrialConfig, name: str) -> str:
    """The value of a dotted name in a configuration, for people."""
    section, field = name.split(".")
    return _format(getattr(getattr(config, section), field))


def _format(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return str(list(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_seconds(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


class LiveTable:
    """The table that is drawn anew in place while a search runs."""

    def __init__(self, console: Console, config: StudyConfig) -> None:
        self._config = config
        self._state: SearchState | None = None
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=UPDATES_PER_SECOND, transient=True
        )

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, state: SearchState, event: Event | None) -> None:
        self._state = state
        if isinstance(event, (CannotStart, WorkerLost)) or (isinstance(event, WorkerDied) and event.trial is None):
            self._live.console.print(f"[red]worker {event.worker}[/red]: {escape(event.message)}", highlight=False)
        elif isinstance(event, Failed) and event.kind == OVER_LIMITS:
            return  # counted, and no fault
        elif isinstance(event, (Failed, WorkerDied)):
            self._live.console.print(f"[red]failed[/red] trial {event.trial}: {escape(event.message)}", highlight=False)

    def _render(self) -> RenderableType:
        state = self._state
        if state is None:
            return Text("starting workers ...", style="dim")
        left = state.seconds_left
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(state.name, style="bold"),
            ProgressBar(total=state.num_trials, completed=state.num_finished, width=30),
            f"{state.num_finished}/{state.num_trials}",
            _count_words(state),
            "" if left is None else f"{format_seconds(left)} left",
        )
        rows: list[RenderableType] = [head, self._best(state), self._workers(state)]
        if state.away:
            rows.append(Text(f"{state.away}: results are kept until the database is back", style="red"))
        if state.notice:
            rows.append(Text(state.notice, style="dim"))
        return Group(*rows)

    def _best(self, state: SearchState) -> Text:
        if state.best is None or state.best.value is None:
            return Text("no trial is complete yet", style="dim")
        what = describe(trial_config(state.best), self._config.space)
        return Text.assemble("best ", (f"{state.best.value:.2%}", "bold green"), f"  trial {state.best.number}: {what}")

    def _workers(self, state: SearchState) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("worker", "device", "trial", "epoch", "val acc", "configuration"):
            table.add_column(column, no_wrap=True, overflow="ellipsis", justify="left")
        for worker in range(state.num_workers):
            device = state.devices.get(worker, "")
            running = state.running.get(worker)
            if running is None:
                table.add_row(str(worker), device, Text("idle" if device else "starting", style="dim"))
                continue
            epoch = f"{len(running.history)}/{running.config.train.epochs}"
            accuracy = f"{running.history[-1].val_accuracy:.2%}" if running.history else ""
            what = describe(running.config, self._config.space)
            table.add_row(str(worker), device, str(running.trial.number), epoch, accuracy, what)
        return table


class PlainLines:
    """One line for each trial that ends, where the output is no terminal."""

    def __init__(self, console: Console, config: StudyConfig) -> None:
        self._console = console
        self._config = config
        self._running: dict[int, RunningTrial] = {}
        self._away = ""

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def __call__(self, state: SearchState, event: Event | None) -> None:
        if bool(state.away) != bool(self._away):
            is_back = f"{self._away}: over, the database is back"
            self._print(f"{state.away}: results are kept until the database is back" if state.away else is_back)
            self._away = state.away
        match event:
            case Ready(worker=worker, device=device, seconds=seconds):
                self._print(f"worker {worker} is ready on {device} after {seconds:.1f} s")
            case Notice(worker=worker, text=text):
                self._print(f"worker {worker}: {text}")
            case Started(trial=trial) if event.worker in state.running:
                self._running[trial] = state.running[event.worker]
            case Epoch(trial=trial, stats=stats) if event.worker not in state.running and trial in self._running:
                self._ended(state, trial, f"pruned   {stats.val_accuracy:.2%} after epoch {stats.epoch}")
            case Finished(trial=trial, value=value) if trial in self._running:
                self._ended(state, trial, f"complete {value:.2%} after epoch {len(self._running[trial].history)}")
            case Failed(trial=trial, kind=kind, message=message) if trial in self._running:
                self._ended(state, trial, f"{'infeasible' if kind == OVER_LIMITS else 'failed  '} {message}")
            case WorkerDied(trial=int(trial), message=message):
                self._print(f"trial {trial} failed: {message}")
            case WorkerDied(message=message) | CannotStart(message=message) | WorkerLost(message=message):
                self._print(f"worker {event.worker}: {message}")

    def _ended(self, state: SearchState, trial: int, how: str) -> None:
        running = self._running.pop(trial)
        best = "" if state.best is None else f"  (best {state.best.value:.2%})"
        done = f"[{state.num_finished}/{state.num_trials}]"
        self._print(f"{done} trial {trial} {how}: {describe(running.config, self._config.space)}{best}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _count_words(state: SearchState) -> str:
    counts = f"{state.num_complete} complete, {state.num_pruned} pruned, {state.num_failed} failed"
    return counts + describe_untrained(state.num_infeasible, state.num_duplicates)


def make_view(console: Console, config: StudyConfig) -> LiveTable | PlainLines:
    """The live table on a terminal, plain lines elsewhere."""
    return LiveTable(console, config) if console.is_terminal else PlainLines(console, config)


def print_best(console: Console, best: FrozenTrial) -> None:
    """The best trial and its configuration, as far as it was sampled."""
    config = trial_config(best)
    console.print(
        f"Best: [bold green]{best.value:.2%}[/bold green] validation accuracy, trial {best.number}", highlight=False
    )
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    for name in sampled_names(best):
        table.add_row(name, format_value(config, name))
    table.add_row("parameters", f"{best.user_attrs['num_parameters']:,}")
    table.add_row("FLOPs an image", f"{best.user_attrs['flops']:,}")
    console.print(table)


def print_end(console: Console, state: SearchState, *, storage: str | None) -> None:
    """What a search has found and what to do next; `storage` is named in the commands if it is not the default."""
    seconds = format_seconds(time.monotonic() - state.started)
    reasons = {
        "finished": f"{state.num_finished} trials finished",
        "interrupted": f"interrupted at {state.num_finished} of {state.num_trials} trials, running ones are put back",
        "timeout": f"time is up at {state.num_finished} of {state.num_trials} trials, running ones are put back",
        "grid_exhausted": f"every point of the grid is done, {state.num_finished} trials",
        "space_exhausted": f"the sampler finds nothing new, all {state.num_distinct} distinct configurations are done",
    }
    assert state.end is not None
    console.print(f"{reasons[state.end]} ({_count_words(state)}) in {seconds}", highlight=False)
    if state.best is not None:
        print_best(console, state.best)
    flag = f" --storage {hide_password(storage)}" if storage else ""
    console.print("Next:", highlight=False)
    if state.end in ("interrupted", "timeout"):
        console.print("  the same command goes on with this study")
    if state.best is not None:
        name = shlex.quote(state.name)
        console.print(f"  fbsearch export {name} --top 5 --output best.yaml{flag}", highlight=False, soft_wrap=True)
    console.print(f"  fbsearch dashboard{flag}", highlight=False, soft_wrap=True)


def print_status(console: Console, status: dict[str, Any], best: FrozenTrial | None) -> None:
    """The state of a study for people; `status` is what `--json` prints."""
    console.print(f"Study [bold]{escape(status['study'])}[/bold] in {escape(status['storage'])}", highlight=False)
    counts = ", ".join(
        f"{status[f'num_{kind}']} {kind}" for kind in ("complete", "pruned", "failed", "running", "waiting")
    )
    counts += describe_untrained(status["num_infeasible"], status["num_duplicates"])
    console.print(counts, highlight=False)
    if best is None:
        console.print("no trial is complete yet")
    else:
        print_best(console, best)


def watch_study(console: Console, study: optuna.Study, *, interval: float, once: bool) -> None:
    """Show a study from the database every `interval` seconds until KeyboardInterrupt; `once` prints it and returns.

    A table drawn anew in place on a terminal, elsewhere a line for each trial that ends. Only reads, and through
    Optuna's cache: of the trials those that have not ended, so that a look costs the same however many have.
    """
    if once:
        console.print(watch_table(study))
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
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
    """Counts, best, running and latest trials of a study, as the database has them now."""
    trials = study.get_trials(deepcopy=False)
    head = Table.grid(padding=(0, 2))
    head.add_row(Text(study.study_name, style="bold"), _progress(study, trials), _counts(trials), _pace(study, trials))
    best = next(iter(best_trials(study, 1)), None)
    if best is None:
        line = Text("no trial is complete yet", style="dim")
    else:
        line = Text.assemble(
            "best ", (f"{best.value:.2%}", "bold green"), f"  trial {best.number}: {_describe_stored(best)}"
        )
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    ended = [trial for trial in trials if trial.datetime_complete is not None]
    latest = sorted(ended, key=lambda trial: trial.datetime_complete or 0, reverse=True)[:NUM_LATEST]
    now = _columns("running", "epoch", "val acc", "device", "configuration")
    for trial in running:
        values = list(trial.intermediate_values.values())
        epochs = trial.user_attrs.get("config", {}).get("train", {}).get("epochs", "?")
        accuracy, device = f"{values[-1]:.2%}" if values else "", trial.user_attrs.get("device", "starting")
        now.add_row(str(trial.number), f"{len(values)}/{epochs}", accuracy, Text(device), Text(_describe_stored(trial)))
    then = _columns("ended", "how", "configuration")
    for trial in latest:
        then.add_row(str(trial.number), Text(_outcome(trial)), Text(_describe_stored(trial)))
    nothing = Text("no trial is running", style="dim")
    return Group(head, line, now if running else nothing, then if latest else Text())


def _columns(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def _counts(trials: list[FrozenTrial]) -> str:
    states = [trial.state for trial in trials if is_finished(trial) or not trial.state.is_finished()]
    return (
        f"{states.count(TrialState.COMPLETE)} complete, {states.count(TrialState.PRUNED)} pruned, "
        f"{sum(map(is_failure, trials))} failed, {states.count(TrialState.RUNNING)} running"
    ) + describe_untrained_of(trials)


def _progress(study: optuna.Study, trials: list[FrozenTrial]) -> str:
    total = study.user_attrs.get("num_trials")
    return str(sum(map(is_finished, trials))) + ("" if total is None else f"/{total}")


def _pace(study: optuna.Study, trials: list[FrozenTrial]) -> str:
    """Trials a minute of late and the time that is left, where something runs and both can be told."""
    ends = sorted(trial.datetime_complete for trial in trials if is_finished(trial) and trial.datetime_complete)
    ends = [end for end in ends if ends[-1] - end < PACE_WINDOW]
    if len(ends) < 2 or ends[-1] == ends[0] or not any(trial.state == TrialState.RUNNING for trial in trials):
        return ""
    seconds_each = (ends[-1] - ends[0]).total_seconds() / (len(ends) - 1)
    total = study.user_attrs.get("num_trials")
    left = 0 if total is None else total - sum(map(is_finished, trials))
    about = f", about {format_seconds(left * seconds_each)} left" if left > 0 else ""
    return f"{60 / seconds_each:.3g} trials a minute{about}"


def _outcome(trial: FrozenTrial) -> str:
    """How a trial ended: `complete 97.20%`, `pruned   81.00% after epoch 2`, `failed   ...`."""
    if is_duplicate(trial):
        return f"as trial {trial.user_attrs['duplicate_of']}"
    if is_infeasible(trial):
        return f"infeasible {trial.user_attrs['failure']['message']}"
    if trial.state == TrialState.COMPLETE:
        return f"complete {trial.value:.2%}"
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        epoch = max(trial.intermediate_values)
        return f"pruned   {trial.intermediate_values[epoch]:.2%} after epoch {epoch}"
    return f"{'failed' if is_failure(trial) else 'put back'}   {trial.user_attrs.get('failure', {}).get('message', '')}"


def _describe_stored(trial: FrozenTrial) -> str:
    """What was sampled for a trial, short, from what is stored, whichever version of fbsearch has stored it."""
    config = trial.user_attrs.get("config", {})
    parts = [name.partition(".") for name in sampled_names(trial)]
    return ", ".join(f"{field} {_format(config.get(section, {}).get(field))}" for section, _, field in parts if config)
