"""The commands that search, show, export and check a study."""

import contextlib
import importlib.util
import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fbsearch.cli.help import LOOK, SEARCH, USE
from fbsearch.cli.options import (
    AsJson,
    BudgetSeconds,
    FinalOutput,
    Force,
    GpusPerWorker,
    NumTrials,
    RayAddress,
    SearchDevice,
    Storage,
    StudyName,
    TrialTimeout,
    Untrusted,
    Workers,
    WorkersPerGpu,
    choose_executor,
    open_study,
)
from fbsearch.config.choices import DEFAULT_STORAGE, DEFAULT_TRIALS, REPORTS
from fbsearch.errors import ConfigError, printable, printable_lines

if TYPE_CHECKING:
    from fbsearch.config.study_file import StudyConfig


app = typer.Typer(rich_markup_mode=None)

StudyFile = Annotated[
    Path | None, typer.Argument(help="A study file (YAML). Without one: the default study, scikit-learn's digits.")
]


class ExportFormat(StrEnum):
    """The formats of `export`: the best configurations as YAML, or a table of all trials."""

    YAML = "yaml"
    CSV = "csv"
    JSON = "json"


@app.command(rich_help_panel=SEARCH, epilog="Example: `fbsearch run my.yaml --trials 100 --workers 4`")
def run(
    study_file: StudyFile = None,
    trials: NumTrials = None,
    budget: BudgetSeconds = None,
    output: FinalOutput = None,
    workers: Workers = "auto",
    workers_per_gpu: WorkersPerGpu = "1",
    device: SearchDevice = "auto",
    ray: RayAddress = None,
    gpus_per_worker: GpusPerWorker = None,
    storage: Storage = DEFAULT_STORAGE,
    timeout: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    trial_timeout: TrialTimeout = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the study file's search.seed.")] = None,
    name: Annotated[str | None, typer.Option(help="Instead of the study file's name.")] = None,
    untrusted: Untrusted = False,
    as_json: AsJson = False,
) -> None:
    """Search until the study has --trials finished trials, or with --budget until a trained network is there in time.

    The same command goes on where a search stopped.
    """
    started = time.monotonic()
    _check_budget_flags(budget, output=output, ray=ray, timeout=timeout)
    from fbsearch.api.budget import make_budget
    from fbsearch.api.search import Limits
    from fbsearch.cli.search import Options, run_search
    from fbsearch.data.sources import check_source

    os.environ.pop("FBSEARCH_STORAGE", None)  # workers inherit the environment, and it may hold a password
    config = _load_config(study_file, name=name, seed=seed, untrusted=untrusted)
    check_source(config.data)  # here, where workers would take seconds and the study would be there already
    whole = None
    if budget is not None:
        place = output or REPORTS
        whole = make_budget(config, seconds=budget, started=started, output=place, device=device, untrusted=untrusted)
    executor = choose_executor(
        config, device=device, workers=workers, per_gpu=workers_per_gpu, ray=ray, gpus_per_worker=gpus_per_worker
    )
    num_trials = DEFAULT_TRIALS if trials is None and budget is None else trials
    limits = Limits(num_trials=num_trials, timeout=timeout, trial_timeout=trial_timeout)
    options = Options(limits=limits, storage=storage, as_json=as_json)
    raise typer.Exit(run_search(config, executor, options, budget=whole))


def _check_budget_flags(budget: float | None, *, output: Path | None, ray: str | None, timeout: float | None) -> None:
    """Raise BadParameter for flags that need --budget, or cannot be combined with it."""
    if budget is None:
        if output is not None:
            raise typer.BadParameter("only with --budget", param_hint="--output")
    elif ray is not None:
        reason = "cannot be combined with --budget, which trains on this machine; use --timeout, export and train"
        raise typer.BadParameter(reason, param_hint="--ray")
    elif timeout is not None:
        raise typer.BadParameter("cannot be combined with --budget, which is the time of all", param_hint="--timeout")


def _load_config(study_file: Path | None, *, name: str | None, seed: int | None, untrusted: bool) -> "StudyConfig":
    """Return the study file's configuration, or the default study's, with the name and the seed of the options."""
    from fbsearch.config.models import MAX_STUDY_SEED
    from fbsearch.config.study_file import MAX_NAME, StudyConfig, load_study_file

    if seed is not None and seed > MAX_STUDY_SEED:
        raise typer.BadParameter(f"0 to {MAX_STUDY_SEED}", param_hint="--seed")
    if name is not None and not 1 <= len(name) <= MAX_NAME:
        raise typer.BadParameter(f"1 to {MAX_NAME} characters", param_hint="--name")
    config = StudyConfig() if study_file is None else load_study_file(study_file)
    if untrusted and study_file is not None:
        from fbsearch.data.untrusted import check_paths

        check_paths(study_file, data=config.data, train=config.train)
    if config.train.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("train.tensorboard: needs TensorBoard: pip install 'fbsearch[tensorboard]'")
    search = config.search if seed is None else config.search.model_copy(update={"seed": seed})
    return config.model_copy(update={"search": search, "name": config.name if name is None else name})


@app.command(rich_help_panel=LOOK, epilog="Example: `fbsearch status digits`")
def status(name: StudyName = None, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Show the state of a study and its best trial."""
    from fbsearch.study.database import storage_errors
    from fbsearch.study.queries import best_trial
    from fbsearch.study.race_result import read_race
    from fbsearch.study.study import status as study_status

    study = open_study(storage, name)
    with storage_errors(storage):
        content = study_status(study, url=storage)
        best, race = (None, None) if as_json else (best_trial(study), read_race(study))
    if as_json:
        print(json.dumps(content))
        return
    from fbsearch.cli.status import print_status
    from fbsearch.cli.terminal import SafeConsole

    print_status(SafeConsole(), content, best, race)


@app.command(rich_help_panel=USE, epilog="Example: `fbsearch export digits --top 5 --output best.yaml`")
def export(
    name: StudyName = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many configurations (YAML only), 5 by default.")] = None,
    trial: Annotated[
        int | None, typer.Option(min=0, help="The configuration of this trial instead of the best (YAML only).")
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="All of the Pareto front, of a search with several objectives (YAML only).")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file to write, - is standard output; without it: best.yaml, pareto.yaml, trial-N.yaml, "
            "trials.csv or trials.json."
        ),
    ] = None,
    output_format: Annotated[
        ExportFormat, typer.Option("--format", help="yaml: the best configurations; csv or json: all trials.")
    ] = ExportFormat.YAML,
    force: Force = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Write the best configurations, one trial's or the Pareto front to YAML, or all trials to CSV or JSON."""
    from fbsearch.config.export_file import EXPORT, describe_common, dump_export
    from fbsearch.files import message_stream, write_output
    from fbsearch.study.database import storage_errors
    from fbsearch.study.export import CSV_TABLE, JSON_TABLE, export_best, export_front, export_trial, trial_table

    as_yaml, as_csv = (output_format is kind for kind in (ExportFormat.YAML, ExportFormat.CSV))
    if trial is not None and (top is not None or not as_yaml):
        raise typer.BadParameter("cannot be used with --top, nor with --format csv or json", param_hint="--trial")
    if pareto and (top is not None or trial is not None or not as_yaml):
        reason = "cannot be used with --top or --trial, nor with --format csv or json"
        raise typer.BadParameter(reason, param_hint="--pareto")
    yaml_name = "pareto.yaml" if pareto else "best.yaml" if trial is None else f"trial-{trial}.yaml"
    path = output or Path(yaml_name if as_yaml else f"trials.{output_format}")
    study = open_study(storage, name)
    notes: list[str] = []
    with storage_errors(storage):
        if pareto:
            best = export_front(study)
            text, what = dump_export(best), f"the {len(best.configs)} configurations of the Pareto front"
            notes = describe_common(best.configs)
        elif as_yaml:
            best = export_best(study, top=top or 5) if trial is None else export_trial(study, trial)
            number = f"the best {len(best.configs)} configurations"
            text, what = dump_export(best), number if trial is None else f"trial {trial}, rank {best.configs[0].rank},"
            notes = describe_common(best.configs)
        else:
            table = trial_table(study)
            text = table.to_csv(index=False) if as_csv else table.to_json(orient="records", date_format="iso", indent=1)
            what = f"{len(table)} trials"
    write_output(path, text, kind=EXPORT if as_yaml else CSV_TABLE if as_csv else JSON_TABLE, force=force, way_out="")
    print(f"{path}: {what} of the study {study.study_name!r}", *notes, sep="\n", file=message_stream(path))


@app.command(rich_help_panel=LOOK, epilog="Example: `fbsearch report digits --open`")
def report(
    name: StudyName = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the best to show with their configurations.")] = 10,
    output: Annotated[
        Path | None, typer.Option(help="The file to write, - is standard output; without it: reports/<study>.html.")
    ] = None,
    force: Force = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    static: Annotated[
        Path | None, typer.Option(help="Also write every figure as PNG and SVG into this folder (needs kaleido).")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Write a study's report: one HTML file with figures, tables and the best configurations."""
    import webbrowser

    from fbsearch.files import STDOUT, message_stream
    from fbsearch.report.page import write_report, write_static
    from fbsearch.study.database import storage_errors

    if open_it and output == STDOUT:
        raise typer.BadParameter("needs a file, not standard output", param_hint="--open")

    def warn(line: str) -> None:
        print(f"warning: {printable(line)}", file=sys.stderr)

    study = open_study(storage, name)
    with storage_errors(storage):
        path = write_report(study, output, top=top, force=force, say=warn)
        messages = message_stream(path)
        print(f"{path}: the report of the study {study.study_name!r}", file=messages)
        if static is not None:
            print(f"{static}: {len(write_static(study, static, top=top))} pictures", file=messages)
    if open_it:
        webbrowser.open(path.absolute().as_uri())


@app.command(rich_help_panel=SEARCH, epilog="Example: `fbsearch init my.yaml --images data/images`")
def init(
    file: Annotated[Path, typer.Argument(help="The study file to write; - is standard output.")],
    images: Annotated[
        Path | None, typer.Option(help="Look at this folder of images, train/<class>/*, and choose what suits it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented study file: all defaults, or with --images what suits a folder of images."""
    from fbsearch.config.study_file import StudyConfig, render_study
    from fbsearch.files import STDOUT, write_output

    found = None
    if images is not None:
        from fbsearch.api.folder import choose_for_folder

        found = choose_for_folder(images)
    text = render_study(StudyConfig() if found is None else found.config)
    write_output(file, text, kind=None, force=force, way_out="")
    for line in () if found is None else found.notes:
        print(line, file=sys.stderr)
    if file != STDOUT:
        print(f"{file}: written; edit it, then `fbsearch validate {file}` and `fbsearch run {file}`")


@app.command(rich_help_panel=SEARCH, epilog="Example: `fbsearch validate my.yaml`")
def validate(
    study_file: Annotated[Path, typer.Argument(help="The study file to check.")], untrusted: Untrusted = False
) -> None:
    """Check a study file, build every corner of its space on torch's meta device, and read the images it names."""
    from fbsearch.config.study_file import load_study_file

    config = load_study_file(study_file)
    if untrusted:
        from fbsearch.data.untrusted import check_paths

        check_paths(study_file, data=config.data, train=config.train)
    from fbsearch.data.sources import peek_shape
    from fbsearch.data.summary import summarise
    from fbsearch.training.requirements import describe_corners

    first, *others = describe_corners(config, peek_shape(config.data))
    images = summarise(config.data, notice=lambda text: print(text, file=sys.stderr))
    print("\n".join([f"{study_file}: fine; {first}", *others, f"data: {images}"]))


@app.command(rich_help_panel=SEARCH, epilog="Example: `fbsearch schema > schema.json`")
def schema() -> None:
    """Print the JSON schema of a study file, for editors."""
    from fbsearch.config.study_file import StudyConfig

    print(json.dumps(StudyConfig.model_json_schema(), indent=2))


@app.command(rich_help_panel=LOOK, epilog="Example: `fbsearch dashboard --read-only`")
def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    host: Annotated[str, typer.Option(help="The address to listen on; any but this machine's own needs --token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8080,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let nothing be changed, and change nothing.")] = False,
    token: Annotated[
        str | None, typer.Option(envvar="FBSEARCH_TOKEN", help="Ask for this password, with any user name.")
    ] = None,
    artifacts: Annotated[
        Path | None, typer.Option(help="Folder of the trials' files. Without it: beside the database, FILE.artifacts.")
    ] = None,
) -> None:
    """Show the database in optuna-dashboard, with notes, figures and files of each study."""
    from fbsearch.report.http_guard import is_loopback
    from fbsearch.report.http_server import listen
    from fbsearch.study.database import open_storage

    if not token and (token is not None or not is_loopback(host)):
        raise typer.BadParameter(f"a token that is not empty is needed to listen on {host}", param_hint="--token")
    database = open_storage(storage)
    try:
        server = listen(host=host, port=port)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}; name another") from None
    from fbsearch.report.dashboard import open_dashboard  # slow: a used port is reported first

    server.set_app(
        open_dashboard(
            database,
            storage,
            artifacts=artifacts,
            host=host,
            token=token,
            read_only=read_only,
            say=lambda line: print(printable_lines(line)),
        )
    )
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}/  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended")
    finally:
        server.server_close()


@app.command(rich_help_panel=LOOK, epilog="Example: `fbsearch watch digits --interval 10`")
def watch(
    name: StudyName = None,
    storage: Storage = DEFAULT_STORAGE,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and exit.")] = False,
) -> None:
    """Show a running study's table, read from the database: from another terminal, or another machine."""
    from fbsearch.cli.status import watch_study
    from fbsearch.cli.terminal import SafeConsole
    from fbsearch.study.database import storage_errors

    study = open_study(storage, name)
    with storage_errors(storage), contextlib.suppress(KeyboardInterrupt):
        watch_study(SafeConsole(), study, interval=interval, once=once)
