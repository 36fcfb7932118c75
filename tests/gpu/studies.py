"""Part B: studies. Digits with several workers on one GPU, many short trials in one process, CIFAR-10 whole."""

import functools
import shutil
import tarfile
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from gpu.commands import Command, read_study, write_study
from gpu.harness import Setting, Step

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import Finished
from fbsearch.training.devices import choose_device
from fbsearch.workers.worker import Worker

MIB = 2**20
DIGITS_GOAL, CIFAR_SECONDS = 0.98, 270


def search_digits(setting: Setting, *, workers: int, in_graph: bool = True) -> tuple[bool, dict[str, Any]]:
    """The default study's 100 trials on one GPU."""
    folder = setting.output / f"digits-{workers}{'' if in_graph else '-eager'}"
    num_trials = setting.small(2, 100)
    study = StudyConfig().model_dump(mode="json")
    study["train"]["cuda_graph"] = in_graph
    if setting.tiny:
        study["train"]["epochs"], study["data"]["limit"] = 1, 60
    path = write_study(folder, **study)
    command = ["run", path, "--trials", num_trials, "--workers", workers, "--device", setting.device]
    Command(setting, folder, *command, "--storage", f"sqlite:///{folder}/fbsearch.db").wait()
    measured = read_study(folder)
    return measured["num_finished"] == num_trials and (setting.tiny or measured["best"] >= DIGITS_GOAL), measured


def train_many(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """300 short trials in one worker: its memory, on the host and on the device, must not grow with them."""
    device = choose_device(setting.device)
    data = DataConfig(limit=setting.small(60, None))
    worker = Worker(0, data, device=setting.device, say=print)
    num_trials = setting.small(4, 300)
    samples: list[dict[str, float]] = []
    num_finished = 0
    for number in range(num_trials):
        model = ModelConfig(fractal_levels=((1,), (2,), (1, 1))[number % 3], base_channels=(8, 16)[number % 2])
        train = TrainConfig(epochs=2, batch_size=(32, 64)[number % 2])
        events = list(worker.run(number, TrialConfig(data=data, model=model, train=train, seed=number)))
        num_finished += isinstance(events[-1], Finished)
        if (number + 1) % max(1, num_trials // 6) == 0:
            samples.append(_memory(device))
    # The first samples are those of libraries that load their kernels one by one.
    grown = {key: samples[-1][key] - samples[len(samples) // 3][key] for key in samples[-1]}
    limit = setting.small(4096, 64)
    return num_finished == num_trials and all(value < limit for value in grown.values()), {
        "num_finished": num_finished,
        "grown_mib": grown,
        "samples": samples,
    }


def _memory(device: torch.device) -> dict[str, float]:
    found = {"host": psutil.Process().memory_info().rss / MIB}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"device": (total - free) / MIB, "reserved": torch.cuda.memory_reserved(device) / MIB}
    return found


def search_cifar(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """CIFAR-10, all 50,000 images, with 4 workers for 4.5 minutes; the best is exported for part C."""
    folder = setting.output / "cifar10"
    study = StudyConfig().model_dump(mode="json") if setting.tiny else cifar_study(unpack_images(setting))
    study["name"] = "cifar10"
    if setting.tiny:
        study["train"]["epochs"], study["data"]["limit"] = 1, 60
    path = write_study(folder, **study)
    storage = ["--storage", f"sqlite:///{folder}/fbsearch.db"]
    limits = ["--trials", 2] if setting.tiny else ["--trials", 10_000, "--timeout", CIFAR_SECONDS]
    workers = ["--workers", setting.small(1, 4), "--device", setting.device]
    Command(setting, folder, "run", path, *limits, *workers, *storage).wait()
    export = ["export", "cifar10", "--top", 1, "--output", "winner.yaml", "--force"]
    Command(setting, folder, *export, *storage).wait()
    shutil.copy(folder / "winner.yaml", setting.output / "winner.yaml")
    measured = read_study(folder)
    measured["winner"] = yaml.safe_load((folder / "winner.yaml").read_text())["configs"][0]["model"]
    goals = measured["busy_share_in_steps"] >= 0.9 and measured["best"] >= 0.85
    return measured["num_complete"] > 0 and (setting.tiny or goals), measured


def cifar_study(root: Path) -> dict[str, Any]:
    """Return studies/cifar10.yaml with all images, and trials of 20 seconds."""
    path = Path(__file__).resolve().parents[2] / "studies" / "cifar10.yaml"
    study: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    study["data"] |= {"root": str(root), "limit": None, "augment": {"flip": True, "shift": 4, "cutout": 0}}
    study["train"] |= {"budget": {"seconds": 20}, "batch_size": 256}
    study["space"]["model.base_channels"] = {"choices": [32, 48, 64, 96]}
    return study


def unpack_images(setting: Setting) -> Path:
    """Return the image tree of CIFAR-10, unpacked once from what gpu_pack.sh has made."""
    root = setting.output / "images"
    if not root.exists():
        with tarfile.open(setting.packed / "cifar10.tar.xz") as archive:
            archive.extractall(root, filter="data")
    return root


STEPS = [
    *(
        Step(
            f"digits {workers}",
            functools.partial(search_digits, workers=workers),
            50,
            {"best": ">= 0.98", "search_seconds": seconds},
            is_tiny=workers == 2,
        )
        for workers, seconds in ((1, "60-90"), (2, "35-50"), (4, "20-35"), (8, "20-35"))
    ),
    Step("cifar10", search_cifar, 330, {"best": "0.88-0.92", "busy_share_in_steps": ">= 0.9"}),
    Step("many trials", train_many, 120, {"grown_mib": "< 64"}),
    Step(
        "digits 4 eager",
        functools.partial(search_digits, workers=4, in_graph=False),
        60,
        {"best": ">= 0.98", "search_seconds": "1.5 times as with graphs"},
    ),
]
