"""Progress of trainings on the terminal."""

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fbsearch.messages import EpochStats, Execution
from fbsearch.training.step import describe_execution
from fbsearch.winners.plan import Run
from fbsearch.winners.records import SeedResult


class View:
    """Show the progress of runs: a bar on a terminal, elsewhere about ten lines for each run."""

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
        """Show that a run starts, or goes on after `done` epochs. Without `in_lines`, nothing but the bar shows it."""
        epochs = run.config.train.epochs
        self._in_lines = in_lines
        self._task = self._progress.add_task(run.name, total=epochs, completed=done, stats="")
        after = f", going on after epoch {done}" if done else ""
        if in_lines:
            budget = run.config.train.budget
            self.say(f"{run.name}: {epochs} epochs{after}" if budget is None else f"{run.name}: {budget}{after}")

    def execution(self, execution: Execution) -> None:
        """Print why the steps of a run on a GPU are not computed as a CUDA graph."""
        if execution.reason:
            self.say(describe_execution(execution))

    def epoch(self, run: Run, stats: EpochStats) -> None:
        """Show one more epoch."""
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
        """Print the result of a run; `before` says that an earlier command has finished it."""
        what = f"{run.name}: {result.scored_on} accuracy {result.accuracy:.2%}"
        more = f"; {result.fit}" if run.baseline is None else ""
        self.ended(what + (" (trained before)" if before else more))

    def ended(self, text: str) -> None:
        """Remove the bar of a run and print `text`."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self.say(text)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
