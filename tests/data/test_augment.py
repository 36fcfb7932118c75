"""Augmentation, on noise whose every pixel can be traced."""

import numpy as np
import pytest
import torch

from fbsearch.config.models import AugmentConfig
from fbsearch.data.augment import augment


@pytest.fixture
def noise_BCHW():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 9, 7), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augment_with_everything_off_gives_the_same_tensor(noise_BCHW):
    generator = seeded()
    before = generator.get_state()
    assert augment(noise_BCHW, AugmentConfig(), generator=generator) is noise_BCHW
    assert torch.equal(generator.get_state(), before)


def test_augment_flip_mirrors_about_half_of_the_images(noise_BCHW):
    out = augment(noise_BCHW, AugmentConfig(flip=True), generator=seeded())
    flipped = (out == noise_BCHW.flip(3)).all(dim=(1, 2, 3))
    kept = (out == noise_BCHW).all(dim=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert 70 < flipped.sum() < 130


@pytest.mark.parametrize("shift", [1, 3, 20])
def test_augment_shift_reflects_at_the_edges(noise_BCHW, shift):
    out = augment(noise_BCHW, AugmentConfig(shift=shift), generator=seeded())
    found = set()
    for before, after in zip(noise_BCHW.numpy(), out.numpy(), strict=True):
        wide = np.pad(before, ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(wide, (3, 9, 7))[0]
        places = np.argwhere((views == after).all(axis=(2, 3, 4)))
        assert len(places)
        found |= {tuple(place) for place in places}
    assert len({y for y, _ in found}) == len({x for _, x in found}) == 2 * shift + 1


def test_augment_shift_of_a_single_pixel_image_changes_nothing():
    one_BCHW = torch.full((4, 1, 1, 1), 9, dtype=torch.uint8)
    assert torch.equal(augment(one_BCHW, AugmentConfig(shift=3), generator=seeded()), one_BCHW)


def test_augment_cutout_fills_one_square_with_the_mean_colour(noise_BCHW):
    out = augment(noise_BCHW, AugmentConfig(cutout=4), generator=seeded())
    changed_BHW = (out != noise_BCHW).any(1)
    areas = changed_BHW.sum((1, 2))
    assert areas.max() == 16 and areas.min() >= 3  # clipped at the edges: a quarter remains at least
    for before, after, hole_HW in zip(noise_BCHW, out, changed_BHW, strict=True):
        inside = after[:, hole_HW].float()
        assert (inside - before.float().mean((1, 2))[:, None]).abs().max() <= 0.5
        ys, xs = hole_HW.nonzero().T
        assert ys.max() - ys.min() < 4 and xs.max() - xs.min() < 4


def test_augment_is_repeatable_and_leaves_its_input_alone(noise_BCHW):
    everything = AugmentConfig(flip=True, shift=2, cutout=3)
    before = noise_BCHW.clone()
    first, again, other = (augment(noise_BCHW, everything, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(noise_BCHW, before)
    assert first.dtype == torch.uint8 and first.is_contiguous(memory_format=torch.channels_last)
