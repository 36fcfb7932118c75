"""Analysis of a network's stage maps: entropy of each map, Pearson correlation of neighbouring maps.

Suffixes: B batch, H height, W width, N positions (H * W); digits stand for themselves.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F


class PatternAnalysis(TypedDict):
    """The result of `FractalBrainNet.analyze_fractal_patterns`."""

    fractal_pattern: Tensor
    attention_maps: list[Tensor]
    pattern_complexity: list[float]
    hierarchical_organization: dict[str, float]


def analyze_maps(fractal_pattern: Tensor, attention_maps: list[Tensor]) -> PatternAnalysis:
    """Return the analysis of the stage maps, [B, 1, H, W] each, from the first stage to the last."""
    correlations = correlate_neighbours(attention_maps)
    organization = {"correlation": 0.0, "hierarchy_score": 0.0}
    if correlations:
        correlation = sum(correlations) / len(correlations)
        organization = {"correlation": correlation, "hierarchy_score": 1 - correlation}
    return {
        "fractal_pattern": fractal_pattern,
        "attention_maps": attention_maps,
        "pattern_complexity": [_entropy(map_B1HW) for map_B1HW in attention_maps],
        "hierarchical_organization": organization,
    }


def correlate_neighbours(maps: Sequence[Tensor]) -> list[float]:
    """Return the Pearson correlation of each map [B, 1, H, W] with the next one resized to it (bilinear).

    One float in [-1, 1] for each pair, the mean over the batch. A constant map correlates with nothing: 0.
    """
    correlations = []
    for above_B1HW, below_B1HW in pairwise(maps):
        resized_B1HW = F.interpolate(below_B1HW, size=above_B1HW.shape[-2:], mode="bilinear", align_corners=False)
        products_BN = _standardise(above_B1HW) * _standardise(resized_B1HW)
        correlations.append(products_BN.sum(dim=1).mean().item())
    return correlations


def _entropy(map_B1HW: Tensor) -> float:
    """Return the entropy of the softmax over positions, in nats, 0 to ln(H * W); the mean over the batch."""
    log_p_BN = F.log_softmax(map_B1HW.double().flatten(1), dim=1)
    return -(log_p_BN.exp() * log_p_BN).sum(dim=1).mean().item()


def _standardise(map_B1HW: Tensor) -> Tensor:
    """Centre each map and divide it by its norm, [B, N]; 0 where it is constant up to float32 rounding."""
    values_BN = map_B1HW.double().flatten(1)
    centred_BN = values_BN - values_BN.mean(dim=1, keepdim=True)
    norm_B1 = centred_BN.norm(dim=1, keepdim=True)
    is_constant_B1 = norm_B1 <= 1e-6 * values_BN.norm(dim=1, keepdim=True)
    return torch.where(is_constant_B1, 0, centred_BN / norm_B1)
