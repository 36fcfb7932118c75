"""Replays of a table for people: the scores in a terminal, and a Markdown page with them and a figure."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from fbsearch.bench.common import describe_machine, format_figure, make_table, print_report
from fbsearch.bench.pages import Page, markdown_table
from fbsearch.bench.replay_records import REPLAY_NAME, ArmScore, Replays
from fbsearch.bench.replay_search import ONE_EPOCH
from fbsearch.errors import printable
from fbsearch.pictures.regret_chart import Curve, draw_regrets

PAGE = Page("regret.svg", "<!-- written by: fbsearch bench replay -->", "page of replays")
COLUMNS = (
    "arm",
    "time to the reference's end",
    "95%",
    "regret at the end, points",
    "95%",
    "trials",
    "complete",
    "s a trial",
)


def write_page(found: Replays, folder: Path) -> None:
    """Write the page and its figure. Raises ConfigError as `PAGE.check` does, StorageError."""
    PAGE.write(folder, _page(found), draw_figure(found))


def draw_figure(found: Replays) -> str:
    """Return the SVG of all arms, a panel for each number of workers."""
    panels = {
        count_workers(num_workers): [Curve(arm.name, arm.curve) for arm in arms]
        for num_workers, arms in _by_workers(found).items()
    }
    what = "regret" if found.objectives is None else "hypervolume that is missing"
    caption = (
        f"Interquartile mean of the {what} over the repeats, judged by seeds that the search did not see; shaded: 95% "
        f"interval of the reference, {found.reference}"
    )
    axis = "regret, points" if found.objectives is None else "hypervolume that is missing, %"
    title = f"Replays of the table {found.study}{_for_objectives(found)}"
    return draw_regrets(panels, reference=found.reference, title=title, caption=caption, axis=axis)


def _for_objectives(found: Replays) -> str:
    return "" if found.objectives is None else f": {' and '.join(found.objectives)}"


def print_replays(console: Console, found: Replays, folder: Path) -> None:
    """Print the scores."""
    tables = [
        make_table(f"{count_workers(num_workers)}, {_seconds(found, num_workers)}", _columns(found), map(_cells, arms))
        for num_workers, arms in _by_workers(found).items()
    ]
    files = ", ".join(str(folder / name) for name in (PAGE.name, PAGE.figure_name, REPLAY_NAME))
    print_report(console, {"machine": found.machine}, *tables, *_remarks(found), f"{files}: written")


def count_workers(number: int) -> str:
    """Return `1 worker`, `4 workers`."""
    return f"{number} worker{'' if number == 1 else 's'}"


def _by_workers(found: Replays) -> dict[int, list[ArmScore]]:
    groups: dict[int, list[ArmScore]] = {}
    for arm in found.arms:
        groups.setdefault(arm.workers, []).append(arm)
    return groups


def _seconds(found: Replays, num_workers: int) -> str:
    return f"{format_figure(found.budget * found.seconds_of_run / num_workers)} virtual seconds"


def _cells(arm: ArmScore) -> list[str]:
    low, high = arm.interval
    return [
        arm.name,
        _ratio(arm.ratio),
        f"{_ratio(low)} to {_ratio(high)}",
        f"{100 * arm.regret:.2f}",
        f"{100 * arm.regret_interval[0]:.2f} to {100 * arm.regret_interval[1]:.2f}",
        f"{arm.num_trials:.0f}",
        f"{arm.num_complete:.0f}",
        format_figure(arm.search_seconds_per_trial) if arm.search_seconds_per_trial else "",
    ]


def _ratio(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def _columns(found: Replays) -> tuple[str, ...]:
    """Return the names of the columns; with several objectives a regret is a share of the hypervolume."""
    if found.objectives is None:
        return COLUMNS
    return tuple("hypervolume missing at the end, %" if name.startswith("regret") else name for name in COLUMNS)


def _remarks(found: Replays) -> Iterator[str]:
    score = "regret" if found.objectives is None else "hypervolume"
    yield (
        f"The reference is {found.reference}: the first columns are the time until an arm has the reference's final "
        f"{score}, as a multiple of the reference's own. `never`: not within the budget."
    )
    end = f"{100 * found.exhaustive_regret:.2f}"
    yield (
        f"Who trains every configuration once and names the best ends at {end} points: "
        "less is to be had by luck, or by more than one run of a configuration."
        if found.objectives is None
        else f"Who trains every configuration once and names the front misses {end}%, since each of its runs is noisy."
    )
    most = max((arm.repeats for arm in found.arms), default=0)
    for arm in found.arms:
        if arm.repeats < most:
            yield f"{arm.name} with {count_workers(arm.workers)}: {arm.repeats} instead of {most} repeats."
    exact = min((arm.exact for arm in found.arms), default=1.0)
    if exact < 1:
        yield f"Of the configurations drawn at least {exact:.0%} are in the table; the others count as their nearest."


def _page(found: Replays) -> Iterator[str]:
    """Yield the lines of the page."""
    yield from (f"# Replays of the table {printable(found.study)}{_for_objectives(found)}", "", PAGE.mark, "")
    what = "Regret" if found.objectives is None else "Hypervolume that is missing,"
    yield f"![{what} over virtual seconds]({PAGE.figure_name})"
    for num_workers, arms in _by_workers(found).items():
        yield from ("", f"## {count_workers(num_workers)}, {_seconds(found, num_workers)}", "")
        yield from markdown_table(_columns(found), map(_cells, arms))
    yield ""
    yield from (f"- {line}" for line in _remarks(found))
    yield from ("", "## Conditions", "")
    yield from _conditions(found)


def _describe_scale(found: Replays) -> str:
    if found.objectives is None:
        return (
            f"The best one has {found.best_accuracy:.2%} validation accuracy (mean of its seeds), a random one "
            f"{found.mean_accuracy:.2%}, which counts while a search has no complete trial."
        )
    return (
        f"The score is the hypervolume of a search's Pareto front of {', '.join(found.objectives)}, costs by their "
        "logarithm, as a share of the hypervolume of all configurations (means of their seeds). The front is chosen by "
        "what the search has seen. The reference point is the accuracy that three quarters of the configurations "
        "exceed, or the loss that they stay below, and the highest cost."
    )


def _conditions(found: Replays) -> Iterator[str]:
    repeats = max((arm.repeats for arm in found.arms), default=0)
    yield f"    {printable(found.command)}"
    yield ""
    length = format_figure(found.seconds_of_run, " s")
    yield (
        f"{found.num_configs:,} configurations in {found.num_runs:,} runs of {length} on average, recorded on "
        f"{describe_machine(found.table_machine)}. {_describe_scale(found)}"
    )
    yield ""
    yield (
        f"{repeats} repeats; in each every arm sees the same seed of a configuration, and what it names is judged by "
        f"the other seeds. All workers together have the time of {found.budget:g} whole runs. Seconds are those of the "
        "recorded runs; the sampler's own, in the last column, are not counted, nor is a worker's start. "
        f"{_describe_one_epoch(found)}All curves: `{REPLAY_NAME}`."
    )


def _describe_one_epoch(found: Replays) -> str:
    if found.objectives is not None:
        return "successive_halving keeps at a rung what is not dominated there, and a quarter. "
    return (
        f"{ONE_EPOCH} is a schedule, not a search of the coordinator: one epoch of random configurations for half of "
        "the time, then the best of them to their end from where they stopped. "
    )
