"""Measure what each augmentation costs, and what it is worth in runs of the same number of steps; one thread.

    python reports/race/augmentation.py cost
    python reports/race/augmentation.py worth data/cifar10 --epochs 16 --seeds 2

`cost` prints the median milliseconds of each augmentation of a batch of 64 and of the training steps of two networks,
in processor time, on random images. `worth` trains a network with each augmentation beside flip and shift on a folder
of CIFAR-10, `limit: 5000`, and prints a line of JSON a run. Equal steps, not seconds: a busy machine changes nothing.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fbsearch.config.models import AugmentConfig, DataConfig, TrialConfig
from fbsearch.config.study_file import SHORT_RUN_MODEL, SHORT_RUN_TRAINING
from fbsearch.data.dataset import Dataset, Split, load_dataset
from fbsearch.messages import DatasetInfo
from fbsearch.network.model import SIZES, FractalBrainNet
from fbsearch.training.loop import train
from fbsearch.training.optimizers import make_optimizer
from fbsearch.training.step import train_batch
from fbsearch.training.targets import BatchMaker

BATCH = 64
BASIS = {"flip": True, "shift": 2}
CHANGES: dict[str, dict[str, float]] = {
    "none": {},
    "cutmix 1": {"cutmix": 1.0},
    "mixup 0.2": {"mixup": 0.2},
    "rotation 15, scale 0.15": {"rotation": 15.0, "scale": 0.15},
    "colour 0.3": {"colour": 0.3},
    "erasing 0.25": {"erasing": 0.25},
    "cutout 8": {"cutout": 8},
}
MODEL = SHORT_RUN_MODEL.model_copy(update={"fractal_levels": (1, 2, 1), "base_channels": 24, "pattern": "cantor"})
TRAIN = SHORT_RUN_TRAINING.model_copy(update={"learning_rate": 0.0084, "weight_decay": 0.02})


def make_trial(data: DataConfig, change: dict[str, float], *, epochs: int, seed: int) -> TrialConfig:
    augment = AugmentConfig.model_validate(BASIS | change)
    return TrialConfig(
        data=data.model_copy(update={"augment": augment}),
        model=MODEL,
        train=TRAIN.model_copy(update={"epochs": epochs}),
        seed=seed,
    )


def random_data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images_NHWC = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8, generator=generator)
    split = Split(images_NHWC.permute(0, 3, 1, 2), torch.randint(0, 10, (BATCH,), generator=generator))
    info = DatasetInfo(10, 3, 32, BATCH, BATCH, 0, tuple(map(str, range(10))))
    return Dataset(info, split, split, None, torch.full((3,), 0.5), torch.full((3,), 0.3))


def median_ms(work: Callable[[], Any], *, count: int) -> float:
    seconds = []
    for _ in range(count + 3):
        started = time.thread_time()
        work()
        seconds.append(time.thread_time() - started)
    return 1000 * statistics.median(seconds[3:])  # the first ones choose algorithms


def cost(count: int) -> None:
    data, generator = random_data(), torch.Generator().manual_seed(0)
    images_BCHW, labels_B = data.train.images_NCHW, data.train.labels_N
    plain = 0.0
    for name, change in CHANGES.items():
        make = BatchMaker(make_trial(DataConfig(), change, epochs=1, seed=0), data)
        found = median_ms(lambda make=make: make(images_BCHW, labels_B, generator=generator), count=count)  # type: ignore[misc]
        plain = plain or found
        print(f"{name:26} {found:6.2f} ms, {found - plain:+6.2f} ms")
    for name, model in (("default parts, 24 channels", MODEL), ("small", SIZES["small"])):
        net = FractalBrainNet.for_images(model, data.info.shape).to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(net, TRAIN)
        x_BCHW = data.normalise(images_BCHW)

        def step(net: FractalBrainNet = net, optimizer: Any = optimizer, x_BCHW: torch.Tensor = x_BCHW) -> None:
            train_batch(net, optimizer, x_BCHW, labels_B, dtype=torch.float32, label_smoothing=0.1)

        print(f"step of {name:18} {median_ms(step, count=max(5, count // 10)):8.1f} ms")


def worth(root: str, *, epochs: int, num_seeds: int, names: list[str]) -> None:
    config = DataConfig(name="folder", root=root, image_size=32, limit=5000)
    data = load_dataset(config, with_test=False)
    for seed in range(num_seeds):
        for name in names:
            trial = make_trial(config, CHANGES[name], epochs=epochs, seed=seed)
            torch.manual_seed(seed)
            net = FractalBrainNet.for_images(MODEL, data.info.shape)
            started = time.thread_time()
            *_, last = train(net, trial, data)
            row = {"change": name, "seed": seed, "epochs": epochs, "val_accuracy": last.val_accuracy}
            row |= {"train_accuracy": last.train_accuracy, "seconds": time.thread_time() - started}
            print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    costs = kinds.add_parser("cost")
    costs.add_argument("--count", type=int, default=200)
    worths = kinds.add_parser("worth")
    worths.add_argument("root")
    worths.add_argument("--epochs", type=int, default=16)
    worths.add_argument("--seeds", type=int, default=2)
    worths.add_argument("--changes", nargs="*", choices=list(CHANGES), default=list(CHANGES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kind == "cost":
        cost(options.count)
    else:
        worth(options.root, epochs=options.epochs, num_seeds=options.seeds, names=options.changes)


if __name__ == "__main__":
    main()
