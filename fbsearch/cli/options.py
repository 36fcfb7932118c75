"""Options that several commands share, exit codes, and the parts of a search that options choose."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fbsearch.config.choices import DEFAULT_TRIALS
from fbsearch.config.durations import parse_duration
from fbsearch.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study

    from fbsearch.config.study_file import StudyConfig
    from fbsearch.workers.executor import Executor

EXIT_INTERRUPTED, EXIT_BUG = 130, 70


def _warn_of_password(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    """Warn of a password in an argument, which every user of the machine can read."""
    from fbsearch.study.database import hide_password

    source = context.get_parameter_source(parameter.name or "")
    if source is not None and source.name == "COMMANDLINE" and hide_password(value) != value:
        typer.echo("note: --storage shows its password in the process list; $FBSEARCH_STORAGE does not", err=True)
    return value


Storage = Annotated[
    str,
    typer.Option(
        callback=_warn_of_password,
        envvar="FBSEARCH_STORAGE",
        help="Database: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME.",
    ),
]
Untrusted = Annotated[
    bool, typer.Option("--untrusted", help="The file is somebody else's: its paths may not leave the current folder.")
]
StudyName = Annotated[str | None, typer.Argument(help="A study's name. Without one: the newest in the database.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file of another kind.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SearchDevice = Annotated[str, typer.Option(help="auto, cpu, cuda (all GPUs) or cuda:N.")]
Workers = Annotated[
    str, typer.Option(help="auto (one per GPU, else one per CPU core), a number, or 0: inside this process.")
]
WorkersPerGpu = Annotated[
    str,
    typer.Option(
        help="A number, or auto: from free memory and what the largest trial is measured to use. Workers of one GPU "
        "compute in turns, unless NVIDIA's MPS runs: small networks gain by more of them, large ones do not."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Workers on a Ray cluster: auto (this machine's), HOST:PORT, or local: one that is started here.",
    ),
]
GpusPerWorker = Annotated[
    float | None, typer.Option(min=0, help="With --ray: GPUs for each worker, such as 0.5; 0 is the CPU.")
]


def read_duration(text: str) -> float:
    """Return the seconds of a time such as `1h30m`. Raises BadParameter for other text, and for 0."""
    try:
        return parse_duration(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


BudgetSeconds = Annotated[
    float | None,
    typer.Option(
        parser=read_duration,
        metavar="TIME",
        help="Search, train the best configuration with several seeds and score it, within about this time: 90s, 30m, "
        "1h30m.",
    ),
]
FinalOutput = Annotated[
    Path | None,
    typer.Option(help="With --budget: folder; results go to OUTPUT/<study>/rank-1/seed-<S>. Without it: reports."),
]
NumTrials = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Finished trials the study has in the end, earlier ones counted: {DEFAULT_TRIALS} by default, with "
        "--budget as many as there is time for.",
    ),
]
TrialTimeout = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="End a worker that finishes no epoch for this many seconds, and try its trial again. Without it: 10 "
        "times the usual epoch, at least 60 seconds, and an hour while none is known. Not with --workers 0.",
    ),
]


def open_study(storage: str, name: str | None) -> "Study":
    """Open the study `name`, or the newest if it is None. Raises StorageError."""
    from fbsearch.study.database import open_storage, storage_errors
    from fbsearch.study.study import load_study

    with storage_errors(storage):
        return load_study(open_storage(storage), name)


def choose_executor(
    config: "StudyConfig",
    *,
    device: str,
    workers: str,
    per_gpu: str,
    ray: str | None,
    gpus_per_worker: float | None,
) -> "Executor":
    """Return the executor that the options choose, not started. Raises BadParameter for options that exclude others."""
    num_workers, num_per_gpu = parse_count(workers), parse_count(per_gpu, option="--workers-per-gpu", least=1)
    if ray is not None:
        if num_workers == 0:
            raise typer.BadParameter(
                "0 runs inside this process and cannot be combined with --ray", param_hint="--workers"
            )
        if num_per_gpu != 1:
            raise typer.BadParameter(
                "cannot be combined with --ray; use --gpus-per-worker", param_hint="--workers-per-gpu"
            )
        from fbsearch.workers.ray_cluster import make_ray_executor

        print(f"connecting to Ray ({ray}) ...", file=sys.stderr, flush=True)
        return make_ray_executor(
            config.data, address=ray, device=device, workers=num_workers, gpus_per_worker=gpus_per_worker
        )
    if gpus_per_worker is not None:
        raise typer.BadParameter("only with --ray", param_hint="--gpus-per-worker")
    if num_workers is not None and num_per_gpu != 1:
        raise typer.BadParameter(
            "sets the number of workers already; leave --workers at auto", param_hint="--workers-per-gpu"
        )
    from fbsearch.workers.gpu_sharing import measure_workers_per_gpu
    from fbsearch.workers.local import make_executor

    if num_per_gpu is None:
        num_per_gpu = measure_workers_per_gpu(config, device, say=lambda line: print(line, file=sys.stderr))
    return make_executor(config.data, device=device, workers=num_workers, workers_per_gpu=num_per_gpu)


def parse_count(text: str, *, option: str = "--workers", least: int = 0) -> int | None:
    """Return a number of at least `least`, or None for auto. Raises BadParameter for other text."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < least:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number of {least} or more", param_hint=option)
    return int(text)
