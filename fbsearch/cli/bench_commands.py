"""The commands under `fbsearch bench`, which measure how fast it is on this machine."""

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fbsearch.cli.help import GroupedCommands
from fbsearch.cli.options import EXIT_INTERRUPTED, AsJson, Device

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Measure how fast it is on this machine, and against other implementations.",
    cls=GroupedCommands,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _print_progress(line: str) -> None:
    from rich.console import Console

    Console(stderr=True, style="dim", highlight=False, markup=False).print(line)


@contextlib.contextmanager
def _resumable(left: str) -> Iterator[None]:
    """After Ctrl-C say that the same command goes on with the `left` ones."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with the {left} that are left", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _print(report: dict[str, Any], show: "Callable[[Console, dict[str, Any]], None]", *, as_json: bool) -> None:
    """Print a benchmark's report as one JSON object, or as `show` prints it."""
    from fbsearch.bench.common import make_console

    if as_json:
        print(json.dumps(report))
    else:
        show(make_console(), report)


@app.command("model", epilog="Example: `fbsearch bench model --sizes small --precision fp32`")
def bench_model(
    sizes: Annotated[
        str, typer.Option(help="Of small, medium, large, xlarge and digits (the default study's); joined by commas.")
    ] = "small,medium,digits",
    precision: Annotated[str, typer.Option(help="Of fp32 and bf16; joined by commas.")] = "fp32,bf16",
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images a step, instead of each net's own.")] = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Samples of each figure; medians are shown.")] = 7,
    with_compile: Annotated[bool, typer.Option("--compile", help="Also through torch.compile (minutes).")] = False,
    reference_form: Annotated[
        bool,
        typer.Option(
            "--reference-form",
            help="Ours with pooled attention and channel dropout as in the public reference, for equal work.",
        ),
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="A Python file that offers create_fractal_brain_net(model_size, num_classes, fractal_pattern), to "
            "measure in turns with ours. The file is EXECUTED: name only what you trust. Can be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the network: speed of training steps and inference, FLOPs, memory, against the machine's peak."""
    from fbsearch.bench import model as bench

    report = bench.bench_model(
        sizes=sizes.split(","),
        precisions=precision.split(","),
        batch_size=batch_size,
        device=device,
        num_threads=threads,
        repeats=repeats,
        compiled=with_compile,
        reference_form=reference_form,
        against=against or [],
        say=_print_progress,
    )
    _print(report, bench.print_model_bench, as_json=as_json)


@app.command("trial", epilog="Example: `fbsearch bench trial studies/digits.yaml --trials 20`")
def bench_trial(
    study_file: Annotated[Path, typer.Argument(help="The study file to search.")] = Path("studies/digits.yaml"),
    trials: Annotated[int, typer.Option(min=1, help="Finished trials of each run.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Runs, each in a new database; medians are shown.")] = 1,
    workers: Annotated[str, typer.Option(help="auto, or a number of worker processes.")] = "auto",
    device: Device = "auto",
    against_plain: Annotated[
        bool,
        typer.Option(
            "--against-plain",
            help="Trials per hour against a plain script (eager loop, DataLoader, study.optimize), in turns.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure where a trial's seconds go: run a study as a user would, and look at its processes and its database."""
    if against_plain:
        from fbsearch.bench.plain import bench_against_plain, print_plain_bench

        report = bench_against_plain(
            study_file, num_trials=trials, repeats=repeats, workers=workers, device=device, say=_print_progress
        )
        _print(report, print_plain_bench, as_json=as_json)
        return
    from fbsearch.bench import trial as bench

    report = bench.bench_trial(study_file, num_trials=trials, repeats=repeats, workers=workers, device=device)
    _print(report, bench.print_trial_bench, as_json=as_json)


@app.command("race", epilog="Example: `fbsearch bench race my.yaml --seconds 15,60`")
def bench_race(
    study_file: Annotated[Path, typer.Argument(help="Gives data, augmentation and the settings of the training.")],
    networks: Annotated[
        str,
        typer.Option(
            help="Of cnn, resnet8, fractalnet, resnet18, and the documented small, medium, large, xlarge; joined by "
            "commas. Empty: none."
        ),
    ] = "cnn,resnet8,resnet18,fractalnet,small",
    configs: Annotated[
        Path | None, typer.Option(help="All configurations of this export take part, with their own training.")
    ] = None,
    optimizers: Annotated[
        str,
        typer.Option(
            help="For the networks: adamw, muon, ...; joined by commas. Each is tried, the better mean counts."
        ),
    ] = "adamw",
    rates: Annotated[
        str, typer.Option(help="For the networks: highest learning rates, joined by commas. Each is tried likewise.")
    ] = "0.004",
    seconds: Annotated[
        str,
        typer.Option(
            help="Seconds of training: of the processor with one thread on a CPU, else of the clock; joined by commas."
        ),
    ] = "15,60,240",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each figure.")] = 3,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Folder for race.json, race.svg and README.md; else reports/race/<study>.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a second of training buys: networks and configurations trained on your data for the same seconds.

    Only validation images are scored. Ctrl-C keeps the finished runs, and the same command goes on after them.
    """
    from fbsearch.bench.race import RaceOptions, bench_race
    from fbsearch.bench.race_page import print_race

    options = RaceOptions(
        networks=_split(networks),
        optimizers=_split(optimizers),
        rates=_parse_numbers(rates, option="--rates"),
        configs=configs,
        seconds=_parse_numbers(seconds, option="--seconds"),
        num_seeds=seeds,
        device=device,
        num_threads=threads,
        output=output,
        command=shlex.join(["fbsearch", *sys.argv[1:]]),
    )
    with _resumable("runs"):
        race, folder = bench_race(study_file, options, say=_print_progress)
    _print(race.model_dump(mode="json"), lambda console, _: print_race(console, race, folder), as_json=as_json)


@app.command("table", epilog="Example: `fbsearch bench table my.yaml --configurations 50`")
def bench_table(
    study_file: Annotated[Path, typer.Argument(help="Gives the space, and how its configurations are trained.")],
    configurations: Annotated[
        int | None, typer.Option(min=1, help="So many configurations, drawn at random; else every point of the space.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each configuration.")] = 3,
    top: Annotated[int, typer.Option(min=0, help="The best of them get --more-seeds.")] = 60,
    more_seeds: Annotated[int, typer.Option(min=0, help="Further runs of the --top best.")] = 0,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch on the CPU.")] = 1,
    output: Annotated[Path | None, typer.Option(help="The file, .jsonl.xz; else studies/tables/<study>.")] = None,
) -> None:
    """Record a table: configurations of a space, trained without pruning, with every epoch of every run.

    `fbsearch bench replay` searches it in seconds. Ctrl-C keeps the finished runs, and the same command goes on.
    """
    from fbsearch.bench.table import TableOptions, bench_table

    options = TableOptions(
        num_configs=configurations,
        num_seeds=seeds,
        top=top,
        more_seeds=more_seeds,
        device=device,
        num_threads=threads,
        output=output,
        command=shlex.join(["fbsearch", *sys.argv[1:]]),
    )
    with _resumable("runs"):
        path = bench_table(study_file, options, say=_print_progress)
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


@app.command("replay", epilog="Example: `fbsearch bench replay studies/tables/digits.jsonl.xz`")
def bench_replay(
    table: Annotated[Path, typer.Argument(help="A table of `fbsearch bench table`.")],
    arms: Annotated[
        str,
        typer.Option(
            help="What to compare: SAMPLER+PRUNER, of tpe, random, nsga2, cmaes, gp and none, percentile_75, "
            "median, successive_halving, hyperband; or one_epoch: one of many configurations, then the best; joined by "
            "commas."
        ),
    ] = "random+none,one_epoch,tpe+none,tpe+percentile_75,tpe+median,tpe+hyperband,gp+none",
    reference: Annotated[str, typer.Option(help="The arm to which the others' time is compared.")] = (
        "tpe+successive_halving"
    ),
    workers: Annotated[str, typer.Option(help="Numbers of workers, joined by commas.")] = "1,4,16",
    repeats: Annotated[int, typer.Option(min=1, help="Replays of each arm, each with another seed.")] = 50,
    budget: Annotated[
        float, typer.Option(min=1, help="Whole runs of mean length, in whose time the workers share.")
    ] = 50,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="Search for two or three of val_accuracy, val_loss, parameters, flops, joined by commas, and score "
            "the Pareto front's hypervolume. Arms are of tpe, random, nsga2, gp and none, successive_halving."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for replay.json, regret.svg and README.md; else reports/replay/<study>.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a recorded table with several samplers and pruners: real coordinator, virtual clock, no training.

    Ctrl-C keeps the finished arms, and the same command goes on after them.
    """
    from fbsearch.bench.replay import ReplayOptions, bench_replay
    from fbsearch.bench.replay_page import print_replays

    counts = _parse_numbers(workers, option="--workers")
    if not all(count == int(count) for count in counts):
        raise typer.BadParameter(f"{workers!r} is not whole numbers joined by commas", param_hint="--workers")
    options = ReplayOptions(
        arms=_split(arms),
        reference=reference,
        workers=[int(count) for count in counts],
        num_repeats=repeats,
        budget=budget,
        output=output,
        objectives=None if objectives is None else tuple(_split(objectives)),
        command=shlex.join(["fbsearch", *sys.argv[1:]]),
    )
    with _resumable("arms"):
        found, folder = bench_replay(table, options, say=_print_progress)
    _print(found.model_dump(mode="json"), lambda console, _: print_replays(console, found, folder), as_json=as_json)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse_numbers(text: str, *, option: str) -> list[float]:
    """Return numbers above 0, each once, in order. Raises BadParameter for other text."""
    try:
        numbers = sorted({float(part) for part in _split(text)})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise typer.BadParameter(f"{text!r} is not numbers above 0 joined by commas", param_hint=option)
    return numbers


@app.command("plain-search", hidden=True)
def plain_search(
    study_file: Path,
    trials: Annotated[int, typer.Option(min=1)],
    storage: Annotated[str, typer.Option()],
    device: Device = "auto",
) -> None:
    """Internal: search with the plain script of `bench trial --against-plain` and print the seconds."""
    from fbsearch.bench.plain_search import search_plainly

    print(search_plainly(study_file, num_trials=trials, storage=storage, device=device))


@app.command("search", epilog="Example: `fbsearch bench search`")
def bench_search(
    sizes: Annotated[
        str, typer.Option(help="How many finished trials a study has when a trial is timed; joined by commas.")
    ] = "0,1000,10000",
    storage: Annotated[
        str | None,
        typer.Option(envvar="FBSEARCH_STORAGE", help="The database to measure; without it: a new SQLite file."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the coordinator and its database with simulated workers, which train nothing (minutes)."""
    from fbsearch.bench import search as bench
    from fbsearch.study.database import storage_errors

    if not all(size.strip().isdecimal() for size in sizes.split(",")):
        raise typer.BadParameter(f"{sizes!r} is not numbers joined by commas", param_hint="--sizes")
    with storage_errors(storage or ""):
        report = bench.bench_search(
            storage=storage, sizes=[int(size) for size in sizes.split(",")], say=_print_progress
        )
    _print(report, bench.print_search_bench, as_json=as_json)
