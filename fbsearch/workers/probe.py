"""Measure the memory that the heaviest trial of a study needs on a GPU.

Runs in a process of its own (`fbsearch measure-memory`), which leaves nothing on the device when it ends.
"""

import itertools

import torch

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.messages import ImageShape
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import prepare_device
from fbsearch.training.loop import train
from fbsearch.training.requirements import measure_cost

# The first step captures the CUDA graph, which makes the peak of a trial's memory.
NUM_STEPS = 3
# Memory of CUDA, its libraries and their workspaces in every process, outside torch's allocator. An assumption.
CONTEXT_MIB = 700


def heaviest_trial(config: StudyConfig, shape: ImageShape) -> TrialConfig:
    """Return the corner of the space with the most FLOPs in a training step: those of an image times the batch."""

    def work(trial: TrialConfig) -> int:
        return measure_cost(trial.model, shape).flops * trial.train.batch_size

    return max(config.corners(), key=work)


def measure_memory(config: StudyConfig, device: torch.device) -> dict[str, float]:
    """Return MiB: `free_mib` before anything is loaded, `worker_mib` of a worker during the heaviest trial."""
    prepare_device(device)
    free_mib = torch.cuda.mem_get_info(device)[0] / 2**20
    data = load_dataset(config.data, device=device, with_test=False)
    trial = heaviest_trial(config, data.info.shape)
    net = FractalBrainNet.for_images(trial.model, data.info.shape)
    steps = itertools.count()
    for _ in train(net.to(device), trial, data, stop_requested=lambda: next(steps) >= NUM_STEPS):
        pass
    return {"free_mib": free_mib, "worker_mib": torch.cuda.max_memory_reserved(device) / 2**20 + CONTEXT_MIB}
