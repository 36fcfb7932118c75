"""The correlation of neighbouring stage maps, against numpy's."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fbsearch.config.models import ModelConfig
from fbsearch.network.analysis import correlate_neighbours
from fbsearch.network.model import FractalBrainNet


def test_neighbour_correlations_are_pearsons_and_have_the_hierarchys_mean():
    torch.manual_seed(1)
    net = FractalBrainNet(ModelConfig(fractal_levels=(1, 1, 1), base_channels=8, stem="conv3"), in_channels=1)
    analysis = net.analyze_fractal_patterns(torch.randn(5, 1, 8, 8))
    maps = analysis["attention_maps"]
    found = correlate_neighbours(maps)
    assert len(found) == 2
    assert np.mean(found) == pytest.approx(analysis["hierarchical_organization"]["correlation"])
    for correlation, above, below in zip(found, maps, maps[1:], strict=False):
        resized = F.interpolate(below, size=above.shape[-2:], mode="bilinear", align_corners=False)
        pairs = [np.corrcoef(one.flatten(), other.flatten())[0, 1] for one, other in zip(above, resized, strict=True)]
        assert correlation == pytest.approx(np.mean(pairs), abs=1e-5)


def test_neighbour_correlation_of_a_constant_map_is_0():
    assert correlate_neighbours([torch.rand(2, 1, 4, 4), torch.ones(2, 1, 2, 2)]) == [0]
