"""Tables of retrained configurations: their scores, the comparison with baselines, the next commands."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fbsearch.errors import printable
from fbsearch.winners.records import Comparison, Competitor, Retraining

if TYPE_CHECKING:  # it loads pandas, which a search can do without
    from fbsearch.winners.error_analysis import ErrorAnalysis


def print_summary(console: Console, rows: Sequence[Retraining], *, notes: Sequence[str]) -> None:
    """Print a row for each configuration, a warning where the score is the validation split's, and the notes."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("rank", "trial", "search", "seeds", "accuracy", "of", "parameters", "images/s", "s"):
        table.add_column(column, justify="left" if column == "of" else "right", no_wrap=True)
    for row in rows:
        cells = [row.rank, row.trial, f"{row.search_value:.2%}", row.num_seeds, _format_accuracy(row), row.scored_on]
        cells += [f"{row.num_parameters:,}", f"{row.images_per_second_mean:,.0f}", f"{row.seconds_mean:.1f}"]
        table.add_row(*map(str, cells))
    console.print(table)
    if any(row.scored_on == "validation" for row in rows):
        console.print(
            "There is no test split: these are scores of the validation split, by which the search chose; "
            "on new images expect less.",
            highlight=False,
            soft_wrap=True,
        )
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def _format_accuracy(row: Retraining | Competitor) -> str:
    spread = "" if row.accuracy_std is None else f" \N{PLUS-MINUS SIGN} {row.accuracy_std:.2%}"
    return f"{row.accuracy_mean:.2%}{spread}"


def print_score(console: Console, row: Retraining) -> None:
    """Print the accuracy of a configuration's seeds."""
    what = f"{row.scored_on.capitalize()} accuracy: [bold green]{_format_accuracy(row)}[/bold green]"
    console.print(f"{what}, {row.num_seeds} seeds of rank {row.rank}, trial {row.trial}", highlight=False)


def print_errors(console: Console, errors: "ErrorAnalysis", *, name: str = "") -> None:
    """Print where a configuration's networks err, in four lines under its `name` if it has one."""
    low_high = errors.macro_f1_interval
    interval = "" if low_high is None else f" ({low_high[0]:.2%} to {low_high[1]:.2%})"
    calibration = errors.calibration
    by_chance = f"{calibration.verdict}; a perfectly calibrated network stays below {calibration.by_chance:.2%}"
    hardest = [f"{one['class']} {one['f1']:.1%}" for one in errors.hardest(3).to_dict("records")]
    confused = [
        f"{truth} as {said} ({round(images, 1):g} of {count})" for truth, said, images, count in errors.confusions(3)
    ]
    lines = [
        f"macro-F1            {errors.macro_f1:.2%}{interval}",
        f"calibration error   {calibration.error:.2%} ({by_chance})",
        f"lowest F1           {', '.join(hardest)}",
        f"confused most       {', '.join(confused) or 'nothing'}",
    ]
    title = f"Where {name} errs, of {errors.num_images:,} {errors.scored_on} images:" if name else "Where it errs:"
    text = "\n".join([title, *(f"  {printable(line)}" for line in lines)])
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_trained_folder(console: Console, folder: Path, *, more: Sequence[str] = ()) -> None:
    """Print where the results are and the commands that use them, then `more` commands."""
    model = shlex.quote(str(min(folder.glob("rank-*/seed-*/model.safetensors")).parent))
    lines = [f"Results are in {folder}. Next:", f"  fbsearch predict {model} IMAGE..."]
    lines += [f"  fbsearch export-model {model} --format onnx", *(f"  {line}" for line in more)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison as a table, with a note on each row and the rule of the verdicts."""
    console.print(f"\nOn {comparison.conditions.num_images:,} {comparison.scored_on} images:", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column(f"vs {comparison.rows[0].name}", min_width=len("difference"))
    for column in ("parameters", "MFLOPs", "images/s", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    styles = {"better": "green", "worse": "red", "failed": "yellow"}
    for row in comparison.rows:
        verdict = "" if row.verdict == "reference" else row.verdict
        cells = [""] * 5
        if row.failure is None:
            cells = [_format_accuracy(row), f"{row.num_parameters:,}", f"{(row.flops or 0) / 1e6:,.1f}"]
            cells += [f"{row.images_per_second_mean:,.0f}", f"{row.seconds_mean:,.1f}"]
        name = f"[bold]{row.name}[/]" if row.kind == "winner" else row.name
        style = styles.get(verdict, "")
        table.add_row(name, cells[0], f"[{style}]{verdict}[/]" if style else verdict, *cells[1:])
    console.print(table)
    console.print()
    notes = Table.grid(padding=(0, 2, 0, 0))
    notes.add_column(no_wrap=True)
    notes.add_column(overflow="fold")
    for row in comparison.rows:
        notes.add_row(row.name, f"failed: {row.failure}" if row.failure else row.note)
    console.print(notes, highlight=False, markup=False)
    console.print(f"\n{comparison.rule}\n", highlight=False, markup=False)
