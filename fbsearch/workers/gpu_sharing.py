"""How many workers share a GPU: from its free memory, what one worker is measured to use, and the CPU cores.

The measurement runs in a process of its own (`probe`), so that the coordinator stays free of torch and of the GPU.
"""

import json
import subprocess
import sys
from dataclasses import dataclass

from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import DeviceError

# What is given out of the free memory: allocators leave holes, and the estimate is of one trial.
USED_SHARE = 0.8
# More small nets than this at once mostly wait for each other.
MAX_WORKERS_PER_GPU = 8


@dataclass(frozen=True)
class Use:
    """MiB: what was free on the device before the data were loaded, and what a worker with the heaviest trial holds."""

    free_mib: float
    worker_mib: float


def choose_workers_per_gpu(use: Use, *, num_cores: int, num_gpus: int) -> int:
    """The largest number of workers whose heaviest trials fit together and for each of which there is a core.

    At least 1: a trial that does not fit alone fails with its own message.
    """
    fitting = int(USED_SHARE * use.free_mib / use.worker_mib)
    return max(1, min(fitting, num_cores // num_gpus, MAX_WORKERS_PER_GPU))


def measure_use(config: StudyConfig, device: str) -> Use:
    """Train the heaviest corner of the study's space for a few steps on `device`, in a process of its own.

    DeviceError with the process's last words where that fails.
    """
    probe = subprocess.run(
        [sys.executable, "-m", "fbsearch.workers.probe", device],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
        raise DeviceError(f"--workers-per-gpu auto: measuring a trial on {device} failed: {reason}; write a number")
    return Use(**json.loads(probe.stdout.splitlines()[-1]))
