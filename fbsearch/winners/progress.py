"""What a person sees while runs go on. Must not know how they are trained or what becomes of them."""

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fbsearch.messages import EpochStats, Execution
from fbsearch.training.step import describe_execution
from fbsearch.winners.plan import Run
from fbsearch.winners.records import SeedResult


class View:
    """What a person sees while runs go on: a bar on a terminal, elsewhere about ten lines a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[stats]}"),
            TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._in_lines = True

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def started(self, run: Run, done: int, *, in_lines: bool = True) -> None:
        """A run begins, or goes on after `done` epochs; without `in_lines` a terminal's bar is all that shows it."""
        epochs = run.config.train.epochs
        self._in_lines = in_lines
        self._task = self._progress.add_task(run.name, total=epochs, completed=done, stats="")
        after = f", going on after epoch {done}" if done else ""
        if in_lines:
            self.say(f"{run.name}: {epochs} epochs{after}")

    def execution(self, execution: Execution) -> None:
        """How a run on a GPU computes its steps; only what is not as usual is said."""
        if execution.reason:
            self.say(describe_execution(execution))

    def epoch(self, run: Run, stats: EpochStats) -> None:
        """One more epoch is trained, its state on disk."""
        text = f"loss {stats.train_loss:.3f}, training {stats.train_accuracy:.2%}"
        text += "" if math.isnan(stats.val_accuracy) else f", validation {stats.val_accuracy:.2%}"
        assert self._task is not None
        self._progress.update(self._task, completed=stats.epoch, stats=text)
        if self._console.is_terminal or not self._in_lines:
            return
        epochs = run.config.train.epochs
        if stats.epoch % max(1, epochs // 10) == 0 or stats.epoch == epochs:
            self.say(f"{run.name}: epoch {stats.epoch}/{epochs}, {text}")

    def finished(self, run: Run, result: SeedResult, *, before: bool) -> None:
        """A run is finished; `before`: by an earlier command."""
        what = f"{run.name}: {result.scored_on} accuracy {result.accuracy:.2%}"
        more = f"; {result.fit}" if run.baseline is None else ""
        self.ended(what + (" (trained before)" if before else more))

    def ended(self, text: str) -> None:
        """A run is over, with or without a result."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self.say(text)

    def say(self, text: str) -> None:
        """Something to read while waiting, such as how many images are decoded."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
