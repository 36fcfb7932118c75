"""Tables of retrained configurations for people: their scores, the comparison with baselines, what to do next."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The summary for people, with what the score means."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("rank", "trial", "search", "seeds", "accuracy", "of", "parameters", "images/s", "s"):
        table.add_column(column, justify="left" if column == "of" else "right", no_wrap=True)
    for row in rows:
        spread = "" if row["accuracy_std"] is None else f" \N{PLUS-MINUS SIGN} {row['accuracy_std']:.2%}"
        cells = [row["rank"], row["trial"], f"{row['search_value']:.2%}", row["num_seeds"]]
        cells += [f"{row['accuracy_mean']:.2%}{spread}", row["scored_on"], f"{row['num_parameters']:,}"]
        cells += [f"{row['images_per_second_mean']:,.0f}", f"{row['seconds_mean']:.1f}"]
        table.add_row(*map(str, cells))
    console.print(table)
    if any(row["scored_on"] == "validation" for row in rows):
        console.print(
            "There is no test split: these are scores of the validation split, by which the search chose; "
            "on new images expect less.",
            highlight=False,
            soft_wrap=True,
        )


def print_next(console: Console, folder: Path) -> None:
    """Where the results are and what to do with them."""
    lines = [f"Results are in {folder}. Next:"]
    model = shlex.quote(str(next(iter(sorted(folder.glob("rank-*/seed-*/model.safetensors")))).parent))
    lines += [f"  fbsearch predict {model} IMAGE...", f"  fbsearch export-model {model} --format onnx"]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def print_comparison(console: Console, comparison: dict[str, Any]) -> None:
    """The comparison for people: a table, what each row is, and how the verdict came about."""
    console.print(f"\nOn {comparison['conditions']['num_images']:,} {comparison['scored_on']} images:", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    reference = comparison["rows"][0]["name"]
    table.add_column(no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column(f"vs {reference}", min_width=len("difference"))  # alone is broken where the terminal is narrow
    for column in ("parameters", "MFLOPs", "images/s", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    styles = {"better": "green", "worse": "red", "failed": "yellow"}
    for row in comparison["rows"]:
        verdict = "" if row["verdict"] == "reference" else row["verdict"]
        cells = ["", "", "", "", ""]
        if row["failure"] is None:
            spread = "" if row["accuracy_std"] is None else f" \N{PLUS-MINUS SIGN} {row['accuracy_std']:.2%}"
            cells = [f"{row['accuracy_mean']:.2%}{spread}", f"{row['num_parameters']:,}", f"{row['flops'] / 1e6:,.1f}"]
            cells += [f"{row['images_per_second_mean']:,.0f}", f"{row['seconds_mean']:,.1f}"]
        name = f"[bold]{row['name']}[/]" if row["kind"] == "winner" else row["name"]
        style = styles.get(verdict, "")
        table.add_row(name, cells[0], f"[{style}]{verdict}[/]" if style else verdict, *cells[1:])
    console.print(table)
    console.print()
    notes = Table.grid(padding=(0, 2, 0, 0))
    notes.add_column(no_wrap=True)
    notes.add_column(overflow="fold")
    for row in comparison["rows"]:
        notes.add_row(row["name"], f"failed: {row['failure']}" if row["failure"] else row["note"])
    console.print(notes, highlight=False, markup=False)
    console.print(f"\n{comparison['rule']}\n", highlight=False, markup=False)
