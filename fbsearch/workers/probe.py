"""`python -m fbsearch.workers.probe cuda:0 < study.json` prints the memory that the heaviest trial needs on a GPU.

A process of its own, that ends and leaves nothing on the device. Must not know who asks.
"""

import itertools
import json
import sys

import torch

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.messages import ImageShape
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.loop import train
from fbsearch.training.requirements import measure_cost

# The first step rehearses and captures the CUDA graph, whose memory is the most that a trial holds.
NUM_STEPS = 3
# What CUDA itself, its libraries and their workspaces take in every process, beside torch's allocator. An assumption.
CONTEXT_MIB = 700


def heaviest_trial(config: StudyConfig, shape: ImageShape) -> TrialConfig:
    """The corner of the space whose training step computes most: FLOPs of an image times images of a step."""

    def work(trial: TrialConfig) -> int:
        return measure_cost(trial.model, shape).flops * trial.train.batch_size

    return max(config.corners(), key=work)


def probe(config: StudyConfig, device: torch.device) -> dict[str, float]:
    """MiB: `free_mib` before anything is loaded, `worker_mib` of a worker in the midst of the heaviest trial."""
    free_mib = torch.cuda.mem_get_info(device)[0] / 2**20
    data = load_dataset(config.data, device=device, with_test=False)
    trial = heaviest_trial(config, data.info.shape)
    net = FractalBrainNet.for_images(trial.model, data.info.shape)
    steps = itertools.count()
    for _ in train(net.to(device), trial, data, stop_requested=lambda: next(steps) >= NUM_STEPS):
        pass
    return {"free_mib": free_mib, "worker_mib": torch.cuda.max_memory_reserved(device) / 2**20 + CONTEXT_MIB}


if __name__ == "__main__":
    print(json.dumps(probe(StudyConfig.model_validate_json(sys.stdin.read()), torch.device(sys.argv[1]))))
