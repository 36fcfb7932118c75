"""The targets of the loss where labels alone do not say them: classes with weights, images of two classes.

Shapes: B images of a batch, C channels, H height, W width, K classes, N images of a split.
"""

import torch
import torch.nn.functional as F

from fbsearch.config.models import TrialConfig
from fbsearch.data.augment import augment
from fbsearch.data.dataset import Dataset
from fbsearch.data.mixing import mix


def balanced_weights(labels_N: torch.Tensor, *, num_classes: int) -> torch.Tensor:
    """Return the weight [K] of an image of each class: inverse to the class's number of images, on average 1.

    The mean is over the images, so that each class has the same sum of weights, and the loss the size that it has
    without weights. A class without images has no effect.
    """
    counts_K = torch.bincount(labels_N, minlength=num_classes).to(torch.float32)
    return len(labels_N) / ((counts_K > 0).sum() * counts_K.clamp_min(1))


def soft_targets(
    labels_B: torch.Tensor, *, num_classes: int, label_smoothing: float, weights_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Return targets [B, K], float32, whose cross-entropy is that of the labels, smoothed, times the label's weight."""
    targets_BK = F.one_hot(labels_B, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
    return targets_BK if weights_K is None else targets_BK * weights_K[labels_B][:, None]


class BatchMaker:
    """Make what a training step takes of a batch: augmented images, labels, and targets where labels do not do."""

    def __init__(self, config: TrialConfig, data: Dataset) -> None:
        self._augment, self._smoothing = config.data.augment, config.train.label_smoothing
        self._num_classes = data.info.num_classes
        self._mixes = bool(self._augment.mixup or self._augment.cutmix)
        self._weights_K: torch.Tensor | None = None
        if config.train.class_weights == "balanced":
            self._weights_K = balanced_weights(data.train.labels_N, num_classes=self._num_classes)

    def __call__(
        self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, *, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return uint8 images, the class that has the larger share in each, and targets [B, K] or None.

        None stands for the labels themselves, which the loss smooths. Never wait for the device, on which all lies.
        """
        images_BCHW = augment(images_BCHW, self._augment, generator=generator)
        if not self._mixes:
            return images_BCHW, labels_B, None if self._weights_K is None else self._soften(labels_B)
        mixed = mix(images_BCHW, labels_B, self._augment, generator=generator)
        share_B1 = mixed.share_B[:, None]
        targets_BK = torch.lerp(self._soften(mixed.others_B), self._soften(mixed.labels_B), share_B1)
        return mixed.images_BCHW, mixed.labels_B, targets_BK

    def _soften(self, labels_B: torch.Tensor) -> torch.Tensor:
        return soft_targets(
            labels_B,
            num_classes=self._num_classes,
            label_smoothing=self._smoothing,
            weights_K=self._weights_K,
        )
