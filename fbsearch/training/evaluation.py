"""A pass over a split in eval mode.

Shapes: N images of a split, B batch, C channels, H height, W width.
"""

import torch
from torch import nn

from fbsearch.data.dataset import VALIDATION_BATCH, Dataset, Split
from fbsearch.training.distributed import Team
from fbsearch.training.step import Totals, add_evaluation


@torch.inference_mode()
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
    model.eval()
    team = team or Team()
    totals = Totals.on(split.labels_N.device)
    images_NCHW, labels_N = team.part(split.images_NCHW), team.part(split.labels_N)
    if len(labels_N):
        for images_BCHW, labels_B in zip(
            torch.split(images_NCHW, batch_size), torch.split(labels_N, batch_size), strict=True
        ):
            images_BCHW = images_BCHW.to(labels_B.device)
            add_evaluation(totals, model, data.normalise(images_BCHW), labels_B, dtype=dtype)
    return mean_figures(Totals(team.sum(totals.loss), team.sum(totals.num_correct)), split)


def mean_figures(totals: Totals, split: Split) -> tuple[float, float]:
    """Return mean loss and accuracy from the totals of a split."""
    count = len(split.labels_N)
    return totals.loss.item() / count, totals.num_correct.item() / count
