"""Weights of classes and shares of labels in the loss, against torch's own and against repeated images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from fbsearch.config.models import AugmentConfig, DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.config.study_file import SHORT_RUN_MODEL, SHORT_RUN_TRAINING
from fbsearch.data.dataset import Dataset, load_dataset
from fbsearch.data.mixing import mix
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.loop import train
from fbsearch.training.targets import BatchMaker, balanced_weights, soft_targets


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataConfig(limit=300))


def make_config(augment: dict[str, Any] | None = None, **settings: Any) -> TrialConfig:
    model = ModelConfig(fractal_levels=(1,), base_channels=8, stem="conv3", pattern_resolution=8)
    data = DataConfig(limit=300, augment=AugmentConfig(**(augment or {})))
    return TrialConfig(data=data, model=model, train=TrainConfig(**({"epochs": 2, "batch_size": 32} | settings)))


def test_balanced_weights_are_scikit_learns_and_one_on_average() -> None:
    labels_N = torch.tensor([0] * 6 + [1] * 2 + [3] * 1)
    weights_K = balanced_weights(labels_N, num_classes=5)
    expected = compute_class_weight("balanced", classes=torch.tensor([0, 1, 3]).numpy(), y=labels_N.numpy())
    assert weights_K[[0, 1, 3]].tolist() == pytest.approx(expected)
    assert weights_K[labels_N].mean() == pytest.approx(1)
    assert weights_K.isfinite().all()


def test_soft_targets_of_labels_give_the_loss_of_labels() -> None:
    logits_BK, labels_B = torch.randn(16, 5), torch.randint(0, 5, (16,))
    for smoothing in (0.0, 0.1):
        targets_BK = soft_targets(labels_B, num_classes=5, label_smoothing=smoothing)
        expected = F.cross_entropy(logits_BK, labels_B, label_smoothing=smoothing)
        torch.testing.assert_close(F.cross_entropy(logits_BK, targets_BK), expected)


def test_balanced_loss_is_that_of_images_repeated_until_classes_are_equal() -> None:
    logits_BK, labels_B = torch.randn(8, 2), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    weights_K = balanced_weights(labels_B, num_classes=2)
    targets_BK = soft_targets(labels_B, num_classes=2, label_smoothing=0.1, weights_K=weights_K)
    rows = [0, 1, 2, 3, 4, 5, *[6, 7] * 3]
    repeated = F.cross_entropy(logits_BK[rows], labels_B[rows], label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(logits_BK, targets_BK), repeated)


@pytest.mark.parametrize("settings", [{"mixup": 0.5}, {"cutmix": 1.0}])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_batch_of_mixed_images_has_the_loss_of_both_labels(
    digits: Dataset, settings: dict[str, Any], class_weights: str
) -> None:
    config = make_config(settings, class_weights=class_weights, label_smoothing=0.1)
    images_BCHW, labels_B = digits.train.images_NCHW[:32], digits.train.labels_N[:32]
    made = BatchMaker(config, digits)
    found_BCHW, majority_B, targets_BK = made(images_BCHW, labels_B, generator=torch.Generator().manual_seed(3))
    mixed = mix(images_BCHW, labels_B, config.data.augment, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found_BCHW, mixed.images_BCHW) and torch.equal(majority_B, mixed.labels_B)
    weights_K = torch.ones(10)
    if class_weights == "balanced":
        weights_K = balanced_weights(digits.train.labels_N, num_classes=10)
    logits_BK = torch.randn(32, 10)
    expected = torch.zeros(())
    for label_B, share_B in ((mixed.labels_B, mixed.share_B), (mixed.others_B, 1 - mixed.share_B)):
        losses_B = F.cross_entropy(logits_BK, label_B, label_smoothing=0.1, reduction="none")
        expected += (share_B * weights_K[label_B] * losses_B).mean()
    assert targets_BK is not None
    torch.testing.assert_close(F.cross_entropy(logits_BK, targets_BK), expected)


def test_batch_without_mixing_and_weights_keeps_its_labels(digits: Dataset) -> None:
    images_BCHW, labels_B = digits.train.images_NCHW[:32], digits.train.labels_N[:32]
    made = BatchMaker(make_config(), digits)(images_BCHW, labels_B, generator=torch.Generator())
    assert made[0] is images_BCHW and made[1] is labels_B and made[2] is None


def probability_of_the_rare(data: Dataset, *, class_weights: str) -> float:
    """Train on a folder, and return the mean probability of class 1 on its validation images."""
    settings = {"epochs": 12, "batch_size": 32, "label_smoothing": 0.0, "class_weights": class_weights}
    train_config = SHORT_RUN_TRAINING.model_copy(update=settings)
    model = SHORT_RUN_MODEL.model_copy(update={"fractal_levels": (1,), "base_channels": 4})
    torch.manual_seed(0)
    net = FractalBrainNet.for_images(model, data.info.shape)
    list(train(net, TrialConfig(data=DataConfig(), model=model, train=train_config), data))
    with torch.no_grad():
        return float(net.eval()(data.normalise(data.val.images_NCHW)).softmax(1)[:, 1].mean())


def test_balanced_weights_of_an_unbalanced_folder_take_the_odds_away(tmp_path: Path) -> None:
    """Images of noise tell nothing of their class, so that the odds of the classes are all there is to learn."""
    rng = np.random.default_rng(0)
    for name, count in (("common", 180), ("rare", 20)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "train" / name / f"{i}.png")
    data = load_dataset(DataConfig(name="folder", root=str(tmp_path), image_size=8))
    plain, balanced = (probability_of_the_rare(data, class_weights=kind) for kind in ("none", "balanced"))
    assert plain < 0.2 < 0.3 < balanced


def test_training_accuracy_of_mixed_images_counts_the_larger_part(digits: Dataset) -> None:
    augment = AugmentConfig(cutmix=1.0)
    config = TrialConfig(
        data=DataConfig(augment=augment),
        model=SHORT_RUN_MODEL,
        train=SHORT_RUN_TRAINING.model_copy(update={"epochs": 15, "batch_size": 32}),
    )
    torch.manual_seed(0)
    *_, last = train(FractalBrainNet.for_images(config.model, digits.info.shape), config, digits)
    assert last.val_accuracy > 0.8 and 0.4 < last.train_accuracy < 1
