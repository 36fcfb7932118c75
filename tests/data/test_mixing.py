"""Mixup and cutmix, on images whose every pixel tells where it comes from."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from fbsearch.config.models import AugmentConfig
from fbsearch.data.mixing import Mixed, draw_shares, mix

COUNT = 400


@pytest.fixture
def flat_BCHW() -> torch.Tensor:
    """Images of one grey each, 0 or 240 by turns."""
    greys_B = 240 * (torch.arange(COUNT) % 2)
    return greys_B.to(torch.uint8)[:, None, None, None].expand(COUNT, 3, 20, 10).contiguous()


def run(images_BCHW: torch.Tensor, *, seed: int = 0, **settings: float) -> Mixed:
    labels_B = torch.arange(len(images_BCHW))
    return mix(images_BCHW, labels_B, AugmentConfig(**settings), generator=torch.Generator().manual_seed(seed))


def own_shares(mixed: Mixed) -> torch.Tensor:
    """The share of each image's own label; the other must be that of the image before it."""
    own_B = torch.arange(COUNT)
    before_B = own_B.roll(1)
    first = mixed.labels_B == own_B
    assert torch.equal(torch.where(first, mixed.others_B, mixed.labels_B), before_B)
    assert torch.equal(torch.where(first, mixed.labels_B, mixed.others_B), own_B)
    assert mixed.share_B.min() >= 0.5 and mixed.share_B.max() <= 1
    return torch.where(first, mixed.share_B, 1 - mixed.share_B)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0, 100.0])
def test_draw_shares_follows_the_beta_distribution(alpha: float) -> None:
    shares = draw_shares(alpha, 20_000, generator=torch.Generator().manual_seed(0)).double().numpy()
    # At some places: with a small alpha many numbers are closer to 0 or 1 than float32 can say.
    for place in scipy.stats.beta(alpha, alpha).ppf([0.3, 0.4, 0.5, 0.6, 0.7]):
        expected = scipy.stats.beta(alpha, alpha).cdf(place)
        assert abs((shares <= place).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(shares))
    assert shares.std() == pytest.approx(scipy.stats.beta(alpha, alpha).std(), rel=0.02)
    assert abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 0.03


def test_draw_shares_of_a_tiny_alpha_are_nothing_or_all() -> None:
    shares = draw_shares(1e-9, 1000, generator=torch.Generator().manual_seed(0))
    assert set(shares.tolist()) == {0.0, 1.0}


def test_mixup_blends_pixels_as_it_blends_labels(flat_BCHW: torch.Tensor) -> None:
    mixed = run(flat_BCHW, mixup=0.4)
    share_B = own_shares(mixed)
    own_B, other_B = flat_BCHW[:, 0, 0, 0], flat_BCHW.roll(1, 0)[:, 0, 0, 0]
    expected_B = share_B * own_B + (1 - share_B) * other_B
    assert (mixed.images_BCHW.float() - expected_B[:, None, None, None]).abs().max() <= 0.501
    assert 0.4 < share_B.mean() < 0.6 and share_B.unique().numel() > COUNT / 2


def test_cutmix_pastes_one_rectangle_and_counts_its_pixels(flat_BCHW: torch.Tensor) -> None:
    mixed = run(flat_BCHW, cutmix=1.0)
    share_B = own_shares(mixed)
    pasted_BHW = (mixed.images_BCHW != flat_BCHW).any(1)
    assert torch.equal(mixed.images_BCHW, torch.where(pasted_BHW[:, None], flat_BCHW.roll(1, 0), flat_BCHW))
    torch.testing.assert_close(pasted_BHW.float().mean((1, 2)), 1 - share_B)
    for hole_HW in pasted_BHW[pasted_BHW.any((1, 2))]:
        ys, xs = hole_HW.nonzero().T
        assert hole_HW[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
    # Half of the image if nothing were cut off at the edges.
    assert 0.2 < pasted_BHW.float().mean() < 0.5


def test_mixup_and_cutmix_together_take_turns_at_random(flat_BCHW: torch.Tensor) -> None:
    mixed = run(flat_BCHW, mixup=1.0, cutmix=1.0)
    share_B = own_shares(mixed)
    values = mixed.images_BCHW.flatten(1)
    is_pasted = ((values == 0) | (values == 240)).all(1)
    assert 0.35 < is_pasted.float().mean() < 0.65
    expected = share_B * flat_BCHW[:, 0, 0, 0] + (1 - share_B) * flat_BCHW.roll(1, 0)[:, 0, 0, 0]
    assert (mixed.images_BCHW.float().mean((1, 2, 3)) - expected).abs().max() <= 0.501


@pytest.mark.parametrize("settings", [{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 1.0}])
def test_mix_is_repeatable_and_leaves_its_input_alone(flat_BCHW: torch.Tensor, settings: dict[str, Any]) -> None:
    images_BCHW = flat_BCHW.contiguous(memory_format=torch.channels_last)
    before = images_BCHW.clone()
    first, again, other = (run(images_BCHW, seed=seed, **settings) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first.images_BCHW, other.images_BCHW)
    assert torch.equal(images_BCHW, before)
    assert first.images_BCHW.dtype == torch.uint8
    assert first.images_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_mix_of_a_single_image_leaves_it_as_it_is() -> None:
    one_BCHW = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    mixed = run(one_BCHW, mixup=1.0, cutmix=1.0)
    assert torch.equal(mixed.images_BCHW, one_BCHW) and mixed.labels_B.tolist() == mixed.others_B.tolist() == [0]
