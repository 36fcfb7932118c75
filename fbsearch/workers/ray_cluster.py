"""Connect to a Ray cluster, or start one on this machine, and decide how many workers it gets."""

import atexit
import importlib.util
import logging
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

from fbsearch.config.models import DataConfig
from fbsearch.errors import DeviceError
from fbsearch.workers.executor import num_cpus
from fbsearch.workers.ray import CPUS_PER_WORKER, RayExecutor, describe_needs

# Only events of a few hundred bytes are sent, and those bypass the object store.
OBJECT_STORE_BYTES = 80 * 2**20
KNOCK_SECONDS = 5
CONNECT_SECONDS = 60
QUIET: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.CRITICAL}
WAY_OUT = (
    "The address is that of the head node, as `ray start --head` prints it, and this machine must be a node of the "
    "cluster (`ray start --address HOST:PORT`). A cluster with tokens needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here"
)


def make_ray_executor(
    data: DataConfig, *, address: str, device: str, workers: int | None, gpus_per_worker: float | None
) -> RayExecutor:
    """Connect to the cluster at `address`, or start one on this machine (`local`), and plan its workers.

    `workers` None: as many as the cluster has room for now. `gpus_per_worker` None: one where the device is `cuda`, or
    where it is `auto` and the cluster has GPUs. DeviceError if the cluster cannot be reached or has no room.
    """
    if importlib.util.find_spec("ray") is None:
        raise DeviceError("--ray: Ray is not installed: pip install 'fbsearch[ray]'")
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"--device {device}: Ray chooses the GPU of each worker; write auto, cpu or cuda")
    # Read when Ray is imported. Messages of the nodes would be printed into the table and into --json.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # Below `uv run` Ray would send the current folder, images included, to the nodes, and run uv for each worker there.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if address == "local":
        _start_local(workers)
    else:
        _connect(address)
    import ray

    num_workers, num_gpus = plan(ray.cluster_resources(), device=device, workers=workers, gpus=gpus_per_worker)
    return RayExecutor(data, num_workers=num_workers, num_gpus=num_gpus)


def _start_local(workers: int | None) -> None:
    """Start a cluster that only this process can use: not the network, not another user of this machine."""
    assert "ray" not in sys.modules, "Ray reads these variables when it is imported, and would listen to the network"
    # Ray listens on all interfaces, even when told `_node_ip_address="127.0.0.1"`, unless clusters are switched off.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Ray would write a token of its own into the home directory, readable for everybody.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray's sockets and logs, in a folder that only this user may enter.
    folder = tempfile.mkdtemp(prefix="fbsearch-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    import ray

    size = {"num_cpus": workers or num_cpus(), "object_store_memory": OBJECT_STORE_BYTES}
    ray.init("local", job_config=_job_config(), _temp_dir=folder, **size, **QUIET)


def _job_config() -> Any:
    """Return a configuration whose workers find no modules in the current folder; Ray would put it in front."""
    from ray.job_config import JobConfig

    class NoPaths(list[str]):
        def extend(self, paths: Iterable[str]) -> None:
            pass

    config = JobConfig()
    config._py_driver_sys_path = NoPaths()
    return config


def _connect(address: str) -> None:
    """Connect to a running cluster: `auto` (this machine's) or HOST:PORT. DeviceError after a bounded wait."""
    if "://" in address:
        raise DeviceError(f"--ray {address}: write local, auto or HOST:PORT, without ://. {WAY_OUT}")
    if address != "auto":
        _knock(address)
    # Ray's core waits for minutes, prints, and may end the process: another process tries first.
    code = f"import ray, sys; ray.init(sys.argv[1], **{QUIET!r})"
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-c", code, address],
            capture_output=True,
            text=True,
            check=False,
            timeout=CONNECT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"--ray {address}: no answer within {CONNECT_SECONDS} seconds. {WAY_OUT}") from None
    if tried.returncode != 0:
        reason = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        raise DeviceError(f"--ray {address}: cannot connect ({reason}). {WAY_OUT}")
    import ray

    ray.init(address, job_config=_job_config(), **QUIET)


def _knock(address: str) -> None:
    """DeviceError unless something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except ValueError:
        raise DeviceError(f"--ray {address}: write local, auto or HOST:PORT. {WAY_OUT}") from None
    except OSError as error:
        raise DeviceError(f"--ray {address}: nothing answers there ({error.strerror or error}). {WAY_OUT}") from None


def plan(resources: dict[str, float], *, device: str, workers: int | None, gpus: float | None) -> tuple[int, float]:
    """Return the number of workers, and the share of a GPU for each, on a cluster. DeviceError if none fits."""
    if gpus is None:
        gpus = 1 if device == "cuda" or (device == "auto" and resources.get("GPU", 0) > 0) else 0
    if (device == "cpu" and gpus) or (device == "cuda" and not gpus):
        raise DeviceError(f"--gpus-per-worker {gpus:g} contradicts --device {device}")
    if gpus > 1 and gpus != int(gpus):
        raise DeviceError(f"--gpus-per-worker {gpus:g}: Ray shares one GPU in parts, or gives out whole ones")
    if workers is None:
        workers = int(resources.get("CPU", 0)) // CPUS_PER_WORKER
        if gpus:
            workers = min(workers, math.floor(resources.get("GPU", 0) / gpus + 1e-9))
    if workers == 0:
        needs = describe_needs(gpus)
        raise DeviceError(f"--ray: the cluster has no room for a worker ({needs}) now; --workers N waits for it")
    return workers, gpus
