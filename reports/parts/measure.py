"""Train one network for some processor seconds on one thread and print its validation accuracy as JSON.

The rate follows the share of the seconds that has passed, so that networks of any cost see a whole schedule:

    python reports/parts/measure.py data/cifar10 --seconds 60 --optimizer muon --model '{"fractal_levels": [1, 2, 1]}'
    python reports/parts/measure.py data/cifar10 --seconds 60 --optimizer adamw --rate 0.004 --cnn
"""

import argparse
import json
import math
import time

import torch
from torch import nn

from fbsearch.config.models import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from fbsearch.config.study_file import SHORT_RUN_MODEL
from fbsearch.data.augment import augment
from fbsearch.data.dataset import batches, load_dataset
from fbsearch.messages import ImageShape
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.loop import evaluate
from fbsearch.training.optimizers import make_optimizer
from fbsearch.training.step import train_batch

WARMUP_SHARE = 0.3
AUGMENT = AugmentConfig(flip=True, shift=2)


def tutorials_cnn(shape: ImageShape) -> nn.Sequential:
    """Three times convolution 3x3, BatchNorm, ReLU and max-pool, then one hidden layer."""
    layers: list[nn.Module] = []
    channels = shape.in_channels
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    side = shape.image_size // 8
    head = [nn.Flatten(), nn.Linear(channels * side**2, 128), nn.ReLU(), nn.Linear(128, shape.num_classes)]
    return nn.Sequential(*layers, *head)


def share_of_rate(time_share: float) -> float:
    """Rise by a cosine over WARMUP_SHARE, then fall by one to 0."""
    if time_share < WARMUP_SHARE:
        return 0.04 + 0.48 * (1 - math.cos(math.pi * time_share / WARMUP_SHARE))
    return 0.5 * (1 + math.cos(math.pi * (time_share - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--cnn", action="store_true")
    parser.add_argument("--model", type=json.loads, default={}, help="fields that differ from the default study's")
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    data = load_dataset(DataConfig(name="folder", root=options.root, image_size=32, limit=options.limit))
    info = data.info
    shape = ImageShape(num_classes=info.num_classes, in_channels=info.in_channels, image_size=info.image_size)
    config = ModelConfig.model_validate(SHORT_RUN_MODEL.model_dump(mode="json") | options.model)
    net: nn.Module = tutorials_cnn(shape) if options.cnn else FractalBrainNet.for_images(config, shape)
    net.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(
        net, TrainConfig(optimizer=options.optimizer, learning_rate=options.rate, weight_decay=0.02)
    )
    generator = torch.Generator().manual_seed(options.seed)
    num_steps, started = 0, time.process_time()
    while (share := (time.process_time() - started) / options.seconds) < 1:
        for images_BCHW, labels_B in batches(data.train, batch_size=64, generator=generator):
            share = (time.process_time() - started) / options.seconds
            if share >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = options.rate * share_of_rate(share)
            x_BCHW = data.normalise(augment(images_BCHW, AUGMENT, generator=generator))
            net.train()
            train_batch(net, optimizer, x_BCHW, labels_B, dtype=torch.float32, label_smoothing=0.1)
            num_steps += 1
    loss, accuracy = evaluate(net, data, data.val)
    print(json.dumps(vars(options) | {"val_accuracy": accuracy, "val_loss": loss, "num_steps": num_steps}))


if __name__ == "__main__":
    main()
