"""A search in the style of the tutorials of Optuna and PyTorch, the baseline of `bench trial --against-plain`.

It has one process, a DataLoader over transformed images, an eager loop and `study.optimize`. The network, the images
and their split, the space, the sampler, the pruner and the seeds are those of the study file. It is not optimised on
purpose.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from fbsearch.config.models import AugmentConfig, TrainConfig, TrialConfig
from fbsearch.config.study_file import StudyConfig, load_study_file
from fbsearch.data.dataset import Dataset, Split, load_dataset
from fbsearch.network.model import FractalBrainNet
from fbsearch.study.sampling import make_pruner, make_sampler, sample
from fbsearch.training import optimizers
from fbsearch.training.devices import choose_device
from fbsearch.training.optimizers import make_scheduler
from fbsearch.training.targets import balanced_weights

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


class Images(TorchDataset[tuple[torch.Tensor, int]]):
    """Decoded images that are transformed on access."""

    def __init__(self, split: Split, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.images_NCHW, self.labels = split.images_NCHW, split.labels_N.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images_NCHW[index]), self.labels[index]


def make_transform(data: Dataset, augment: AugmentConfig) -> v2.Compose:
    """Return the transform from uint8 [C, H, W] to normalised float32, with the study file's augmentation."""
    steps: list[nn.Module] = []
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augment.shift:
        steps.append(v2.RandomCrop(data.info.image_size, padding=augment.shift, padding_mode="reflect"))
    if augment.rotation or augment.scale:
        scale = (1 - augment.scale, 1 + augment.scale)
        steps.append(v2.RandomAffine(augment.rotation, scale=scale, interpolation=v2.InterpolationMode.BILINEAR))
    if augment.colour:
        steps.append(v2.ColorJitter(augment.colour, augment.colour, augment.colour))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean_C.tolist(), data.std_C.tolist())]
    if augment.cutout:
        share = min(1.0, (augment.cutout / data.info.image_size) ** 2)
        steps.append(v2.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0)))
    if augment.erasing:
        steps.append(v2.RandomErasing(p=augment.erasing))
    return v2.Compose(steps)


def make_mixing(data: Dataset, augment: AugmentConfig) -> Callable[[Any, Any], Any]:
    """Return what changes a batch of images and labels: with mixup and cutmix, one of them for each batch."""
    num_classes = data.info.num_classes
    ways: list[nn.Module] = []
    if augment.mixup:
        ways.append(v2.MixUp(alpha=augment.mixup, num_classes=num_classes))
    if augment.cutmix:
        ways.append(v2.CutMix(alpha=augment.cutmix, num_classes=num_classes))
    return v2.RandomChoice(ways) if ways else lambda images, labels: (images, labels)


def make_criterion(train: TrainConfig, data: Dataset) -> nn.Module:
    """Return torch's cross-entropy with the study file's smoothing and class weights."""
    weights_K = None
    if train.class_weights == "balanced":
        weights_K = balanced_weights(data.train.labels_N, num_classes=data.info.num_classes)
    return nn.CrossEntropyLoss(weights_K, label_smoothing=train.label_smoothing)


def objective(trial: optuna.Trial, study: StudyConfig, data: Dataset, device: torch.device) -> float:
    """Train one network and return the validation accuracy after its last epoch."""
    config = study.trial(sample(trial, study), seed=study.search.seed + trial.number)
    torch.manual_seed(config.seed)
    model = FractalBrainNet.for_images(config.model, data.info.shape).to(device)
    train_images = Images(data.train, make_transform(data, config.data.augment))
    batch_size = config.train.batch_size
    # BatchNorm cannot train on a last batch of one image.
    drop_last = len(train_images) >= batch_size
    train_loader = DataLoader(train_images, batch_size=batch_size, shuffle=True, drop_last=drop_last)
    val_loader = DataLoader(Images(data.val, make_transform(data, AugmentConfig())), batch_size=256)
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config.train, num_steps=config.train.epochs * len(train_loader))
    mixing, criterion = make_mixing(data, config.data.augment), make_criterion(config.train, data).to(device)
    accuracy = 0.0
    for epoch in range(1, config.train.epochs + 1):
        model.train()
        for images, labels in train_loader:
            images, labels = mixing(images.to(device), labels.to(device))
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        num_correct = 0
        with torch.no_grad():
            for images, labels in val_loader:
                images, labels = images.to(device), labels.to(device)
                num_correct += (model(images).argmax(dim=1) == labels).sum().item()
        accuracy = num_correct / len(val_loader.dataset)  # type: ignore[arg-type]
        trial.report(accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return accuracy


def make_optimizer(model: nn.Module, config: TrialConfig) -> torch.optim.Optimizer:
    """Return torch's optimiser with its own defaults; Muon of convolutions is fbsearch's, torch has none."""
    train = config.train
    if train.optimizer == "muon":
        return optimizers.make_optimizer(model, train)
    values: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    if train.optimizer == "sgd":
        values |= {"momentum": train.momentum, "nesterov": train.momentum > 0}
    elif train.optimizer == "rmsprop":
        values["momentum"] = train.momentum
    return OPTIMIZERS[train.optimizer](model.parameters(), **values)


def search_plainly(study_file: Path, *, num_trials: int, storage: str, device: str) -> float:
    """Run `num_trials` trials of a new study in the database `storage`; return the seconds they took."""
    config = load_study_file(study_file)
    chosen = choose_device(device)
    data = load_dataset(config.data, device="cpu", with_test=False)
    study = optuna.create_study(
        storage=storage,
        study_name=config.name,
        direction="maximize",
        sampler=make_sampler(config.search, num_trials=0),
        pruner=make_pruner(config),
    )
    started = time.perf_counter()
    study.optimize(lambda trial: objective(trial, config, data, chosen), n_trials=num_trials)
    return time.perf_counter() - started
