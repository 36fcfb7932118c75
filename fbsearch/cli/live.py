"""The view of a running search: a live table on a terminal, otherwise plain lines."""

import contextlib
import math
import time

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fbsearch.cli.status import (
    best_line,
    cut_text,
    describe,
    describe_counts,
    describe_short,
    format_seconds,
    make_table,
    sampled_values,
)
from fbsearch.cli.terminal import ResizableLive
from fbsearch.config.goals import GOALS
from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import (
    CannotStart,
    Epoch,
    Event,
    Failed,
    FailureKind,
    Finished,
    Notice,
    Ready,
    Started,
    WorkerDied,
    WorkerLost,
)
from fbsearch.search.state import SearchState
from fbsearch.study.running_trial import RunningTrial
from fbsearch.study.trial_record import trial_config

UPDATES_PER_SECOND = 2


def describe_data(event: Ready) -> str:
    """Return what the data are: `10 classes, 1,150 / 287 images to train / validate, 8 x 8 grey, ...`."""
    data, samples = event.dataset, event.samples
    side, colour = data.image_size, "colour" if data.in_channels == 3 else "grey"
    text = (
        f"data: {data.num_classes:,} classes, {data.num_train:,} / {data.num_val:,} images to train / validate, "
        f"{side} x {side} {colour}"
    )
    if samples is not None:
        text += f", smallest class {data.class_names[samples.smallest]!r}: {samples.num_smallest:,} to train"
    return text + (f", {data.num_broken:,} broken and left out" if data.num_broken else "")


def describe_time_left(state: SearchState) -> str:
    """Return `about 0:12:30 left`, or `0:03:10 left` where the time is up before the trials are done; else nothing."""
    known, estimate = state.deadline - time.monotonic(), state.estimated_seconds_left
    if math.isinf(min(known, estimate)):
        return ""
    return f"about {format_seconds(estimate)} left" if estimate < known else f"{format_seconds(max(0.0, known))} left"


class LiveTable(ResizableLive):
    """A table that is redrawn in place while a search runs."""

    def __init__(self, console: Console, config: StudyConfig) -> None:
        self._config = config
        self._state: SearchState | None = None
        self._has_data = False
        super().__init__(console=console, refresh_per_second=UPDATES_PER_SECOND, transient=True)

    def __call__(self, state: SearchState, event: Event | None) -> None:
        self._state = state
        if isinstance(event, Ready) and not self._has_data:
            self.console.print(describe_data(event), highlight=False, markup=False)
            self._has_data = True
        elif isinstance(event, (CannotStart, WorkerLost)) or (isinstance(event, WorkerDied) and event.trial is None):
            self.console.print(f"[red]worker {event.worker}[/red]: {escape(event.message)}", highlight=False)
        elif isinstance(event, Failed) and event.kind == FailureKind.OVER_LIMITS:
            return  # counted, and no fault
        elif isinstance(event, (Failed, WorkerDied)):
            self.console.print(f"[red]failed[/red] trial {event.trial}: {escape(event.message)}", highlight=False)

    def get_renderable(self) -> RenderableType:
        state = self._state
        if state is None:
            return Text("starting workers ...", style="dim")
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(state.name, style="bold"),
            self._bar(state),
            state.progress,
            describe_time_left(state),
        )
        counts = Text(describe_counts(state) + self._describe_device(state))
        rows: list[RenderableType] = [head, counts, self._best(state), self._workers(state)]
        if state.away:
            rows.append(Text(f"{state.away}: results are kept until the database is back", style="red"))
        if state.notice:
            rows.append(Text(state.notice, style="dim"))
        return Group(*rows)

    def _bar(self, state: SearchState) -> ProgressBar:
        """Return the share of the trials that is finished, or of the time without a limit of trials."""
        if state.num_trials is not None:
            return ProgressBar(total=state.num_trials, completed=state.num_finished, width=30)
        total = None if math.isinf(state.deadline) else state.deadline - state.started
        return ProgressBar(total=total, completed=time.monotonic() - state.started, width=30)

    def _best(self, state: SearchState) -> Text:
        return best_line(state.best, self._describe(trial_config(state.best)) if state.best else "", state.goals)

    def _describe_device(self, state: SearchState) -> str:
        """Return the device of all workers; nothing if they have different ones, which their rows name."""
        devices = {worker.device for worker in state.pool.workers.values() if worker.device}
        return f" on {devices.pop()}" if len(devices) == 1 else ""

    def _workers(self, state: SearchState) -> Table:
        """Return a row for each worker; the device is named where it is not the same for all."""
        workers = state.pool.workers
        differ = len({record.device for record in workers.values() if record.device}) > 1
        metric = state.goals[0]
        table = make_table("worker", *["device"] * differ, "trial", "epoch", GOALS[metric].short, "configuration")
        for worker, record in workers.items():
            first = [str(worker), *[record.device] * differ]
            running = record.running
            if running is None:
                table.add_row(*first, Text(record.state, style="dim"))
                continue
            epoch = f"{len(running.history)}/{running.config.train.epochs}"
            accuracy = f"{getattr(running.history[-1], metric):.2%}" if running.history else ""
            what = cut_text(self._describe(running.config))
            table.add_row(*first, str(running.trial.number), epoch, accuracy, what)
        return table

    def _describe(self, config: TrialConfig) -> str:
        return describe_short(sampled_values(config, self._config.space))


class PlainLines(contextlib.AbstractContextManager["PlainLines"]):
    """One line for each trial that ends, for output that is not a terminal."""

    def __init__(self, console: Console, config: StudyConfig) -> None:
        self._console = console
        self._config = config
        self._running: dict[int, RunningTrial] = {}
        self._away = ""
        self._has_estimate = self._has_data = False

    def __exit__(self, *_error: object) -> None:
        pass

    def __call__(self, state: SearchState, event: Event | None) -> None:
        if bool(state.away) != bool(self._away):
            is_back = f"{self._away}: over, the database is back"
            self._print(f"{state.away}: results are kept until the database is back" if state.away else is_back)
            self._away = state.away
        if isinstance(event, Epoch) and not self._has_estimate and (left := describe_time_left(state)):
            self._print(left)
            self._has_estimate = True
        match event:
            case Ready(worker=worker, device=device, seconds=seconds):
                if not self._has_data:
                    self._print(describe_data(event))
                    self._has_data = True
                self._print(f"worker {worker} is ready on {device} after {seconds:.1f} s")
            case Notice(worker=worker, text=text):
                self._print(f"worker {worker}: {text}")
            case Started(trial=trial) if event.worker in state.running:
                self._running[trial] = state.running[event.worker]
            case Epoch(trial=trial, stats=stats) if event.worker not in state.running and trial in self._running:
                score = getattr(stats, state.goals[0])
                self._ended(state, trial, f"pruned   {score:.2%} after epoch {stats.epoch}")
            case Finished(trial=trial, value=value) if trial in self._running:
                running = self._running[trial]
                how = f"complete {value:.2%} after epoch {len(running.history)}"
                again = f"race     {value:.2%} as trial {running.race_of}"
                self._ended(state, trial, how if running.race_of is None else again)
            case Failed(trial=trial, kind=kind, message=message) if trial in self._running:
                ended = "infeasible" if kind == FailureKind.OVER_LIMITS else "failed  "
                self._ended(state, trial, f"{ended} {message}")
            case WorkerDied(trial=int(trial), message=message):
                self._print(f"trial {trial} failed: {message}")
            case WorkerDied(message=message) | CannotStart(message=message) | WorkerLost(message=message):
                self._print(f"worker {event.worker}: {message}")

    def _ended(self, state: SearchState, trial: int, how: str) -> None:
        running = self._running.pop(trial)
        best = "" if state.best is None else f"  (best {state.best.values[0]:.2%})"
        self._print(f"[{state.progress}] trial {trial} {how}: {describe(running.config, self._config.space)}{best}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_view(console: Console, config: StudyConfig) -> LiveTable | PlainLines:
    """Return the live table on a terminal, otherwise plain lines."""
    return LiveTable(console, config) if console.is_terminal else PlainLines(console, config)
