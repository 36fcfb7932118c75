"""What the flags of `fbsearch run` say about workers: how many, where, and through which executor."""

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fbsearch.config.study_file import StudyConfig
    from fbsearch.workers.local import Executor


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
        from fbsearch.workers.ray import make_ray_executor

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
    from fbsearch.workers.gpu_sharing import choose_workers_per_gpu, measure_use
    from fbsearch.workers.local import devices_for, num_cpus

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
