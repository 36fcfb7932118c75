"""A race for people: the table in a terminal, and a Markdown page with the table and a figure."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from fbsearch.bench.common import describe_machine, format_figure, make_table, print_report
from fbsearch.bench.pages import Page, markdown_table
from fbsearch.bench.race_records import RACE_NAME, Race, Score, Standing
from fbsearch.errors import printable
from fbsearch.pictures.race_chart import Line, draw_race

PAGE = Page("race.svg", "<!-- written by: fbsearch bench race -->", "page of a race")


def write_page(race: Race, folder: Path) -> None:
    """Write the page and its figure. Raises ConfigError as `PAGE.check` does, StorageError."""
    PAGE.write(folder, _page(race), draw_figure(race))


def draw_figure(race: Race) -> str:
    """Return the SVG of a race: of each entrant the way of training that counts at the longest budget."""
    lines = []
    for row in race.table:
        scored = [score for score in row.scores if score.mean is not None]
        if not scored or not row.scores[-1].counts:
            continue
        own = [run for run in race.runs if (run.entrant, run.trained) == (row.entrant, row.trained) and run.curve]
        lines.append(
            Line(
                f"{row.entrant} ({row.trained})",
                [(score.budget_seconds, score.mean, score.std) for score in scored if score.mean is not None],
                {
                    budget: [run.curve for run in own if run.budget_seconds == budget]
                    for budget in {run.budget_seconds for run in own}
                },
            )
        )
    title = f"What a second of training buys: {race.study}"
    caption = f"Validation accuracy; bars: one deviation over seeds. {describe_machine(race.machine)}"
    return draw_race(lines, title=title, caption=caption)


def print_race(console: Console, race: Race, folder: Path) -> None:
    """Print the table of a race and what is to be said of it."""
    title = f"{race.study}: validation accuracy after so many seconds of training"
    table = make_table(title, _columns(race), (_cells(race, row) for row in race.table), num_names=2)
    files = ", ".join(str(folder / name) for name in (PAGE.name, PAGE.figure_name, RACE_NAME))
    print_report(console, {"machine": race.machine}, table, *_remarks(race), *_failures(race), f"{files}: written")


def _columns(race: Race) -> list[str]:
    return ["network", "trained with", "parameters", "FLOPs an image", *(f"{budget:g} s" for budget in race.budgets)]


def _cells(race: Race, row: Standing, *, best: str = "*") -> list[str]:
    costs = [format(row.num_parameters, ",") if row.num_parameters else "", format_figure(row.flops)]
    return [row.entrant, row.trained, *costs, *(_cell(race, row, budget, best=best) for budget in race.budgets)]


def _cell(race: Race, row: Standing, budget: float, *, best: str) -> str:
    """Return mean, deviation and number of runs; what does not count is in parentheses, the best of all is marked."""
    score = row.score(budget)
    if score is None:
        return ""
    if score.mean is None:
        return "failed"
    text = f"{score.mean:.1%}" + ("" if score.std is None else f" ± {100 * score.std:.1f}") + _count(score, race)
    if not score.counts:
        return f"({text})"
    return f"{best}{text}{best}" if row == race.winner(budget) else text


def _count(score: Score, race: Race) -> str:
    """Return the number of runs where it is not that of all seeds."""
    num_seeds = len({run.seed for run in race.runs})
    return "" if score.num_runs == num_seeds else f", n = {score.num_runs}"


def _remarks(race: Race) -> Iterator[str]:
    """Yield what is to be said of the winners and of networks that are not fractal."""
    winners = {budget: race.winner(budget) for budget in race.budgets}
    names = [f"{row.entrant} ({row.trained}) at {budget:g} s" for budget, row in winners.items() if row]
    if names:
        yield f"The best: {', '.join(names)}."
    for row in race.table:
        if row.remark:
            yield f"{row.entrant} is {row.remark}."
    if any(not score.counts for row in race.table for score in row.scores):
        yield "In parentheses: another way to train the same network was better after these seconds, and counts."


def _failures(race: Race) -> Iterator[str]:
    for run in race.runs:
        if run.failure is not None:
            yield f"failed: {printable(f'{run.name}: {run.failure}')}"


def _page(race: Race) -> Iterator[str]:
    """Yield the lines of the page."""
    yield from (f"# What a second of training buys: {printable(race.study)}", "", PAGE.mark, "")
    yield f"![Validation accuracy over seconds of training]({PAGE.figure_name})"
    yield ""
    yield from markdown_table(_columns(race), [_cells(race, row, best="**") for row in race.table])
    yield ""
    yield from (f"- {line}" for line in (*_remarks(race), *_failures(race)))
    yield from ("", "## Conditions", "")
    yield from _conditions(race)
    yield from ("", "## Networks", "")
    yield from (f"- {name}: {printable(note)}" for name, note in {row.entrant: row.note for row in race.table}.items())


def _conditions(race: Race) -> Iterator[str]:
    seeds, num_runs = len({run.seed for run in race.runs}), len(race.runs)
    data, change = race.dataset, ", ".join(f"{name} {value}" for name, value in race.augment.items() if value) or "none"
    is_processor = race.machine["device"] == "cpu" and race.machine["num_threads"] == 1
    shares = [run.curve[-1][0] / run.budget_seconds for run in race.runs if run.curve]
    taken = f" The runs took {min(shares):.0%} to {max(shares):.0%} of theirs." if shares else ""
    yield f"    {printable(race.command)}"
    yield ""
    yield (
        f"{describe_machine(race.machine)}; {race.precision}. {num_runs} runs; mean ± deviation in points over n = "
        f"{seeds} seed{'s' if seeds > 1 else ''}."
    )
    yield ""
    yield (
        f"{data['num_train']:,} images to train, {data['num_val']:,} to validate, {data['num_classes']} classes, "
        f"{data['in_channels']} x {data['image_size']} x {data['image_size']}; augmentation: {change}. "
        "The test split is not loaded."
    )
    yield ""
    yield (
        f"Seconds are those of the {'processor' if is_processor else 'clock'}, without validation.{taken} Each figure "
        "is of runs whose whole schedule was made for these seconds. All entrants have the same trainer and "
        "data; the networks named by --networks have the study file's augmentation and other settings and the "
        "one-cycle schedule, the ranks of an export their own. The better of several ways to train a network was "
        f"chosen by these figures. All curves: `{RACE_NAME}`."
    )
