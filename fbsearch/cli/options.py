"""What several commands share: options, their defaults, exit codes, opening a study."""

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fbsearch.config.study_file import StudyConfig
    from fbsearch.workers.executor import Executor

from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from optuna import Study

DEFAULT_STORAGE = "sqlite:///studies/fbsearch.db"
EXIT_INTERRUPTED = 130


def _warn_of_password(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    """A password in an argument can be read by everybody on the machine."""
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
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def open_study(storage: str, name: str | None) -> "Study":
    """The study of that name, or the newest. StorageError says in words what is wrong."""
    from fbsearch.study.database import open_storage, storage_errors
    from fbsearch.study.study import load_study

    with storage_errors(storage):
        return load_study(open_storage(storage), name)


def choose_executor(
    config: "StudyConfig",
    *,
    device: str,
    workers: str,
    workers_per_gpu: str,
    ray: str | None,
    gpus_per_worker: float | None,
) -> "Executor":
    """The executor that the flags ask for, not started. Wrong usage where two of them cannot go together."""
    num_workers, per_gpu = parse_count(workers), parse_count(workers_per_gpu, option="--workers-per-gpu", least=1)
    if ray is not None:
        if num_workers == 0:
            raise typer.BadParameter("0 is inside this process, which is not with --ray", param_hint="--workers")
        if workers_per_gpu != "1":
            raise typer.BadParameter("with --ray, --gpus-per-worker says it", param_hint="--workers-per-gpu")
        from fbsearch.workers.ray_cluster import make_ray_executor

        print(f"connecting to Ray ({ray}) ...", file=sys.stderr, flush=True)
        return make_ray_executor(
            config.data, address=ray, device=device, workers=num_workers, gpus_per_worker=gpus_per_worker
        )
    if gpus_per_worker is not None:
        raise typer.BadParameter("only with --ray", param_hint="--gpus-per-worker")
    if num_workers is not None and workers_per_gpu != "1":
        raise typer.BadParameter("says how many there are; leave --workers at auto", param_hint="--workers-per-gpu")
    from fbsearch.workers.local import make_executor

    if per_gpu is None:
        per_gpu = _measure_workers_per_gpu(config, device)
    return make_executor(config.data, device=device, workers=num_workers, workers_per_gpu=per_gpu)


def parse_count(text: str, *, option: str = "--workers", least: int = 0) -> int | None:
    """A number of at least `least`, or None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < least:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number of {least} or more", param_hint=option)
    return int(text)


def _measure_workers_per_gpu(config: "StudyConfig", device: str) -> int:
    """What `--workers-per-gpu auto` comes to; 1 where there is no GPU to share."""
    from fbsearch.workers.executor import devices_for, num_cpus
    from fbsearch.workers.gpu_sharing import choose_workers_per_gpu, measure_use

    devices = devices_for(device, None)
    if devices[0] == "cpu":
        return 1
    use = measure_use(config, devices[0])
    number = choose_workers_per_gpu(use, num_cores=num_cpus(), num_gpus=len(devices))
    print(
        f"{number} workers on each GPU: the largest trial takes {use.worker_mib:,.0f} of {use.free_mib:,.0f} MiB "
        f"free, {num_cpus()} CPU cores",
        file=sys.stderr,
    )
    return number
