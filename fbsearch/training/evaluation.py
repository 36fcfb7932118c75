"""A pass over a split in eval mode.

Shapes: N images of a split, B batch, C channels, H height, W width, K classes.
"""

from dataclasses import dataclass

import torch
from torch import nn

from fbsearch.data.dataset import VALIDATION_BATCH, Dataset, Split
from fbsearch.training.distributed import Team
from fbsearch.training.step import Totals, add_evaluation


@dataclass(frozen=True)
class Scores:
    """The figures of a split: mean cross-entropy (nats, no label smoothing), and shares in [0, 1].

    The last two are means over the classes that have an image in the split, of F1 and of the accuracy on the class's
    images; None where classes were not counted.
    """

    loss: float
    accuracy: float
    macro_f1: float | None = None
    balanced_accuracy: float | None = None


def evaluate(
    model: nn.Module,
    data: Dataset,
    split: Split,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = VALIDATION_BATCH,
    team: Team | None = None,
) -> tuple[float, float]:
    """Put `model` into eval mode; return its mean cross-entropy (nats, no label smoothing) and accuracy on a split.

    Each process of a `team` computes its part, and all get the result of the whole split.
    """
    scores = score(model, data, split, dtype=dtype, batch_size=batch_size, team=team)
    return scores.loss, scores.accuracy


@torch.inference_mode()
def score(
    model: nn.Module,
    data: Dataset,
    split: Split,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = VALIDATION_BATCH,
    team: Team | None = None,
    num_classes: int | None = None,
) -> Scores:
    """Do what `evaluate` does, and with `num_classes` give the means over the classes, too."""
    model.eval()
    team = team or Team()
    totals = Totals.on(split.labels_N.device, num_classes=num_classes)
    images_NCHW, labels_N = team.part(split.images_NCHW), team.part(split.labels_N)
    if len(labels_N):
        for images_BCHW, labels_B in zip(
            torch.split(images_NCHW, batch_size), torch.split(labels_N, batch_size), strict=True
        ):
            images_BCHW = images_BCHW.to(labels_B.device)
            add_evaluation(totals, model, data.normalise(images_BCHW), labels_B, dtype=dtype)
    classes_3K = None if totals.classes_3K is None else team.sum(totals.classes_3K)
    return mean_scores(Totals(team.sum(totals.loss), team.sum(totals.num_correct), classes_3K), split)


def mean_scores(totals: Totals, split: Split) -> Scores:
    """Return the figures of a split from its totals."""
    count = len(split.labels_N)
    loss, accuracy = totals.loss.item() / count, totals.num_correct.item() / count
    if totals.classes_3K is None:
        return Scores(loss, accuracy)
    truth_K, said_K, right_K = totals.classes_3K[:, totals.classes_3K[0] > 0].double()
    f1, recall = (2 * right_K / (truth_K + said_K)).mean(), (right_K / truth_K).mean()
    return Scores(loss, accuracy, f1.item(), recall.item())
