"""Measure the memory that a worker takes of a GPU during the heaviest trial of a study.

Two processes, which leave nothing on the device when they end: one holds what a worker holds, the other reads before
and meanwhile how much the driver has free (`fbsearch measure-memory`). So CUDA's context, the libraries' workspaces and
loaded kernels are counted, which torch's allocator does not know.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

import torch

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.dataset import Dataset, Split, load_dataset
from fbsearch.data.placement import free_bytes
from fbsearch.errors import DeviceError
from fbsearch.messages import ImageShape
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_device, describe_error, prepare_device
from fbsearch.training.loop import train
from fbsearch.training.requirements import measure_cost

# Steps of an epoch, of which the second is captured as a CUDA graph, and epochs, so that validation is captured, too.
NUM_STEPS, NUM_EPOCHS = 3, 5


def heaviest_trial(config: StudyConfig, shape: ImageShape) -> TrialConfig:
    """Return the corner of the space with the most FLOPs in a training step: those of an image times the batch."""

    def work(trial: TrialConfig) -> int:
        return measure_cost(trial.model, shape).flops * trial.train.batch_size

    return max(config.corners(), key=work)


def measure_memory(
    config: StudyConfig, device: torch.device, *, context: BaseContext | None = None
) -> dict[str, float]:
    """Return MiB: `free_mib` before anything is loaded, `worker_mib` of a worker during the heaviest trial.

    Raise DeviceError with the reason where that trial cannot be trained. Other programs that take or free memory of
    the device meanwhile are counted, too. `context` starts the other process, by default as a new one.
    """
    prepare_device(device)
    free = free_bytes(device)
    context = context or multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(  # type: ignore[attr-defined]
        target=_hold, args=(theirs, config.model_dump_json(), str(device)), daemon=True
    )
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
        held = free - free_bytes(device)
    except EOFError:
        answer = "the process that measures it has died"
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, str):
        raise DeviceError(answer)
    return {"free_mib": free / 2**20, "worker_mib": max(1.0, (held + answer) / 2**20)}


def _hold(connection: Connection, study: str, device_name: str) -> None:
    """Train the heaviest trial and hold its memory until the process is killed.

    Send the bytes by which torch's allocator has held more at its peak than it holds now, or the reason of a failure.
    """
    try:
        config, device = StudyConfig.model_validate_json(study), choose_device(device_name)
        prepare_device(device)
        data = load_dataset(config.data, device=device, with_test=False)
        for epoch in _train(config, data):
            if epoch == NUM_EPOCHS:
                connection.send(_released_bytes(device))
                connection.poll(None)
    except Exception as error:
        connection.send(describe_error(error))


def _train(config: StudyConfig, data: Dataset) -> Iterator[int]:
    """Yield the number of each epoch, which has NUM_STEPS steps and a whole validation; nothing is freed meanwhile."""
    trial = heaviest_trial(config, data.info.shape)
    short = trial.train.model_copy(update={"epochs": NUM_EPOCHS, "budget": None, "warmup_epochs": 0.0})
    short = short.model_copy(update={"early_stopping": None})
    num_images = NUM_STEPS * trial.train.batch_size
    few = Split(data.train.images_NCHW[:num_images], data.train.labels_N[:num_images])
    net = FractalBrainNet.for_images(trial.model, data.info.shape).to(data.device)
    for stats in train(net, trial.model_copy(update={"train": short}), replace(data, train=few)):
        yield stats.epoch


def _released_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
