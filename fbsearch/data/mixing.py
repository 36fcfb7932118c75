"""Mixup and cutmix: training images mixed with others of their batch, and so are their labels.

Shapes: B images of a batch, C channels, H height, W width.
"""

import math
from typing import NamedTuple

import torch

from fbsearch.config.models import AugmentConfig
from fbsearch.data.augment import rectangles


class Mixed(NamedTuple):
    """Mixed images and the two classes of each: `labels_B` with the share `share_B`, 0.5 at least, and `others_B`."""

    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    others_B: torch.Tensor
    share_B: torch.Tensor


def mix(
    images_BCHW: torch.Tensor, labels_B: torch.Tensor, config: AugmentConfig, *, generator: torch.Generator
) -> Mixed:
    """Mix each uint8 image with the one before it in the batch (channels_last out), by random draws of its own.

    Mixup (Zhang et al., 2018, arXiv:1710.09412): the pixels' weighted mean, with a share of the image from
    Beta(mixup, mixup). Cutmix (Yun et al., 2019, arXiv:1905.04899): a rectangle of the other image is pasted at its
    place; it has the image's proportions, its area is one minus a share from Beta(cutmix, cutmix) and its centre
    uniform, and what sticks out is cut off: the share of the labels is that of the pixels that remain. With both on,
    each image gets either with probability 1/2.

    Since the batch is in random order, the one before is as good as any. All tensors and the generator must be on the
    same device, for which this never waits.
    """
    assert config.mixup or config.cutmix, "there is something to mix"
    others_BCHW = images_BCHW.roll(1, 0)
    if not config.cutmix:
        share_B = draw_shares(config.mixup, len(labels_B), generator=generator)
        mixed_BCHW = _blend(images_BCHW, others_BCHW, share_B[:, None, None, None])
    else:
        pasted_B1HW = _draw_rectangles(images_BCHW, config.cutmix, generator=generator)
        share_B = 1 - pasted_B1HW.mean((1, 2, 3), dtype=torch.float32)
        if not config.mixup:
            mixed_BCHW = torch.where(pasted_B1HW, others_BCHW, images_BCHW)
            mixed_BCHW = mixed_BCHW.contiguous(memory_format=torch.channels_last)
        else:
            blend_B = draw_shares(config.mixup, len(labels_B), generator=generator)
            chosen_B = torch.rand(len(labels_B), generator=generator, device=labels_B.device) < 0.5
            weight_B1HW = torch.where(chosen_B[:, None, None, None], blend_B[:, None, None, None], ~pasted_B1HW)
            share_B = torch.where(chosen_B, blend_B, share_B)
            mixed_BCHW = _blend(images_BCHW, others_BCHW, weight_B1HW)
    partners_B, is_less_B = labels_B.roll(1, 0), share_B < 0.5
    return Mixed(
        mixed_BCHW,
        labels_B=torch.where(is_less_B, partners_B, labels_B),
        others_B=torch.where(is_less_B, labels_B, partners_B),
        share_B=torch.maximum(share_B, 1 - share_B),
    )


def draw_shares(alpha: float, count: int, *, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` numbers from Beta(alpha, alpha), float32, exactly, with two uniform ones for each.

    torch draws from it without a generator only. By Bailey's polar method for Student's t (Mathematics of Computation
    62, 1994): T with 2 alpha degrees of freedom is sqrt(2 alpha (U^(-1/alpha) - 1)) cos(2 pi V), and
    1/2 + T / (2 sqrt(2 alpha + T^2)) has this distribution (Devroye, Non-Uniform Random Variate Generation, 1986).
    """
    u_B, v_B = torch.rand(2, count, generator=generator, device=generator.device)
    cosine_B = torch.cos(2 * math.pi * v_B)
    square_B = torch.expm1(-u_B.log() / alpha) * cosine_B.square()  # T^2 / (2 alpha), infinite for a tiny alpha
    return 0.5 + 0.5 * cosine_B.sign() / torch.sqrt(1 + 1 / square_B)


def _draw_rectangles(images_BCHW: torch.Tensor, alpha: float, *, generator: torch.Generator) -> torch.Tensor:
    num_images, _, height, width = images_BCHW.shape
    side_B = (1 - draw_shares(alpha, num_images, generator=generator)).sqrt()
    y_B, x_B = torch.rand(2, num_images, generator=generator, device=images_BCHW.device)
    height_B, width_B = (side_B * height).round().long(), (side_B * width).round().long()
    return rectangles(
        (height, width),
        top_B=(y_B * height).long() - height_B // 2,
        left_B=(x_B * width).long() - width_B // 2,
        height_B=height_B,
        width_B=width_B,
    )


def _blend(images_BCHW: torch.Tensor, others_BCHW: torch.Tensor, weight_B1HW: torch.Tensor) -> torch.Tensor:
    mixed_BCHW = torch.lerp(others_BCHW.to(torch.float32), images_BCHW.to(torch.float32), weight_B1HW)
    return mixed_BCHW.round_().to(torch.uint8, memory_format=torch.channels_last)
