"""Choose the number of workers that share a GPU, from its free memory, the use of one worker, and the CPU cores.

The measurement (`probe.py`) runs in a process of its own, so that the coordinator loads no torch and holds no GPU.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import DeviceError
from fbsearch.workers.executor import devices_for, num_cpus

# The share of the free memory that workers get: allocators leave holes, and only one trial is measured.
USED_SHARE = 0.8
# More workers mostly wait for each other, even with small networks.
MAX_WORKERS_PER_GPU = 8


@dataclass(frozen=True)
class Use:
    """Memory of a device in MiB: free before the data are loaded, and held by a worker with the heaviest trial."""

    free_mib: float
    worker_mib: float


def choose_workers_per_gpu(use: Use, *, num_cores: int, num_gpus: int) -> int:
    """Return the largest number of workers that have a core each and whose heaviest trials fit together.

    At least 1: a trial that does not fit alone fails with its own message.
    """
    fitting = int(USED_SHARE * use.free_mib / use.worker_mib)
    return max(1, min(fitting, num_cores // num_gpus, MAX_WORKERS_PER_GPU))


def measure_workers_per_gpu(config: StudyConfig, device: str, *, say: Callable[[str], None]) -> int:
    """Return the number of workers on each GPU that `--device` names; 1 if there is no GPU to share.

    `say` gets a line with what was measured. DeviceError if there is no such device or the measurement fails.
    """
    devices = devices_for(device, None)
    if devices[0] == "cpu":
        return 1
    use = measure_use(config, devices[0])
    number = choose_workers_per_gpu(use, num_cores=num_cpus(), num_gpus=len(devices))
    say(
        f"{number} workers on each GPU: the largest trial takes {use.worker_mib:,.0f} of {use.free_mib:,.0f} MiB "
        f"free, {num_cpus()} CPU cores"
    )
    return number


def measure_use(config: StudyConfig, device: str) -> Use:
    """Train the heaviest corner of the study's space for a few steps on `device`, in a process of its own.

    DeviceError with the last line of the process's error output if that fails.
    """
    measured = subprocess.run(
        [sys.executable, "-P", "-m", "fbsearch", "measure-memory", device],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if measured.returncode != 0:
        reason = (measured.stderr.strip().splitlines() or [f"exit code {measured.returncode}"])[-1]
        raise DeviceError(f"--workers-per-gpu auto: measuring a trial on {device} failed: {reason}; write a number")
    return Use(**json.loads(measured.stdout.splitlines()[-1]))
