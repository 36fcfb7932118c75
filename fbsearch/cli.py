"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

import importlib.metadata
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fbsearch.errors import ConfigError, FbsearchError, StorageError

if TYPE_CHECKING:
    from optuna import Study

    from fbsearch.study_file import StudyConfig

DEFAULT_STORAGE = "sqlite:///studies/fbsearch.db"
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="fbsearch",
    help="Find the best FractalBrainNet for your images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyFile = Annotated[
    Path | None, typer.Argument(help="A study file (YAML). Without one: the default study, scikit-learn's digits.")
]
Storage = Annotated[
    str,
    typer.Option(
        envvar="FBSEARCH_STORAGE",
        help="Database: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
    ),
]
StudyName = Annotated[str | None, typer.Argument(help="A study's name. Without one: the newest in the database.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class ExportFormat(StrEnum):
    """What `export` writes: the best configurations as YAML, or all trials as a table."""

    YAML = "yaml"
    CSV = "csv"
    JSON = "json"


def main() -> None:
    """Run a command. What the user can mend is one message and exit 1; wrong usage is exit 2."""
    try:
        app()
    except FbsearchError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fbsearch {importlib.metadata.version('fbsearch')}")
        raise typer.Exit


@app.callback()
def _options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    study_file: StudyFile = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Finished trials the study has in the end, earlier ones counted.")
    ] = 100,
    workers: Annotated[
        str, typer.Option(help="auto (one per GPU, else one per CPU core), a number, or 0: inside this process.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all GPUs) or cuda:N.")] = "auto",
    storage: Storage = DEFAULT_STORAGE,
    timeout: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the study file's search.seed.")] = None,
    name: Annotated[str | None, typer.Option(help="Instead of the study file's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search until the study has --trials finished trials. The same command goes on where one stopped."""
    from rich.console import Console

    from fbsearch.console import make_view, print_end
    from fbsearch.executors import make_executor
    from fbsearch.search import Coordinator
    from fbsearch.storage import hold_study, open_storage, storage_errors
    from fbsearch.study import create_study, status

    config = _study_config(study_file, name=name, seed=seed)
    executor = make_executor(config.data, device=device, workers=_num_workers(workers))
    console = Console(stderr=as_json)
    database = open_storage(storage, create=True)
    with storage_errors(storage), hold_study(storage, config.name):
        study = create_study(database, config)
        with make_view(console, config) as view:
            state = Coordinator(study, config, executor, num_trials=trials, timeout=timeout, show=view).run()
        if as_json:
            print(json.dumps(status(study, url=storage) | {"end": state.end}))
        else:
            print_end(console, state, storage=None if storage == DEFAULT_STORAGE else storage)
    raise typer.Exit(EXIT_INTERRUPTED if state.end == "interrupted" else 0)


def _study_config(study_file: Path | None, *, name: str | None, seed: int | None) -> "StudyConfig":
    from fbsearch.study_file import StudyConfig, load_study

    config = StudyConfig() if study_file is None else load_study(study_file)
    search = config.search if seed is None else config.search.model_copy(update={"seed": seed})
    return config.model_copy(update={"search": search, "name": config.name if name is None else name})


def _num_workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither auto nor a number", param_hint="--workers")
    return int(text)


def _open_study(storage: str, name: str | None) -> "Study":
    from fbsearch.storage import open_storage, storage_errors
    from fbsearch.study import load_study

    with storage_errors(storage):
        return load_study(open_storage(storage), name)


@app.command()
def status(name: StudyName = None, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Show where a study stands and its best trial."""
    from rich.console import Console

    from fbsearch.console import print_status
    from fbsearch.storage import storage_errors
    from fbsearch.study import best_trials
    from fbsearch.study import status as study_status

    study = _open_study(storage, name)
    with storage_errors(storage):
        content = study_status(study, url=storage)
        best = next(iter(best_trials(study, 1)), None)
    if as_json:
        print(json.dumps(content))
    else:
        print_status(Console(), content, best)


@app.command()
def export(
    name: StudyName = None,
    top: Annotated[int, typer.Option(min=1, help="How many configurations (YAML only).")] = 5,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("best.yaml"),
    output_format: Annotated[
        ExportFormat, typer.Option("--format", help="yaml: the best configurations; csv or json: all trials.")
    ] = ExportFormat.YAML,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Write the best configurations to YAML, or all trials to CSV or JSON."""
    from fbsearch.storage import storage_errors
    from fbsearch.study import export_best, trial_table
    from fbsearch.study_file import dump_export, write_text

    study = _open_study(storage, name)
    with storage_errors(storage):
        if output_format is ExportFormat.YAML:
            best = export_best(study, top=top)
            text, what = dump_export(best), f"the best {len(best.configs)} configurations"
        else:
            table = trial_table(study)
            as_csv = output_format is ExportFormat.CSV
            text = table.to_csv(index=False) if as_csv else table.to_json(orient="records", date_format="iso", indent=1)
            what = f"{len(table)} trials"
    try:
        write_text(output, text)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {error.strerror}") from None
    print(f"{output}: {what} of the study {study.study_name!r}")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The study file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented study file with all defaults."""
    from fbsearch.study_file import StudyConfig, render_study, write_text

    if file.exists() and not force:
        raise ConfigError(f"{file}: is there already; --force writes over it")
    try:
        write_text(file, render_study(StudyConfig()))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    print(f"{file}: written; edit it, then `fbsearch validate {file}` and `fbsearch run {file}`")


@app.command()
def validate(study_file: Annotated[Path, typer.Argument(help="The study file to check.")]) -> None:
    """Check a study file, and build every corner of its space on torch's meta device."""
    from fbsearch.cost import measure_corners
    from fbsearch.data import peek_shape
    from fbsearch.study_file import load_study

    config = load_study(study_file)
    shape = peek_shape(config.data)
    costs = measure_corners(config, **shape)
    smallest, largest = (choose(cost.num_parameters for cost in costs) for choose in (min, max))
    print(
        f"{study_file}: fine; {len(costs)} corners of the space build on {shape['in_channels']} x "
        f"{shape['image_size']} x {shape['image_size']} images: {smallest:,} to {largest:,} parameters, up to "
        f"{max(cost.flops for cost in costs):,} FLOPs an image"
    )


@app.command()
def schema() -> None:
    """Print the JSON schema of a study file, for editors."""
    from fbsearch.study_file import StudyConfig

    print(json.dumps(StudyConfig.model_json_schema(), indent=2))


@app.command()
def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 8080,
) -> None:
    """Show the database in optuna-dashboard, on this machine only."""
    import optuna_dashboard

    from fbsearch.storage import open_storage

    opened = open_storage(storage)
    print(f"http://127.0.0.1:{port}/  (Ctrl-C ends it)", flush=True)
    try:
        optuna_dashboard.run_server(opened, host="127.0.0.1", port=port)
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}; name another") from None


@app.command()
def patterns(
    output: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("patterns.png"),
    size: Annotated[int, typer.Option(min=1, max=2048, help="Pixels of one pattern.")] = 256,
) -> None:
    """Draw the five fractal patterns side by side."""
    from fbsearch.analyze import draw_patterns

    draw_patterns(output, size=size)
    print(f"{output}: the five patterns at {size} x {size}")
