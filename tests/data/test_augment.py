"""Augmentation, on noise whose every pixel can be traced."""

import hashlib

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fbsearch.config.models import AugmentConfig
from fbsearch.data.augment import augment, change_colour, warp


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


def square(noise_BCHW: torch.Tensor) -> torch.Tensor:
    return noise_BCHW[:, :, :7, :7]


def warped(images_BCHW, *, degrees=0.0, factor=1.0, flip=False, shift=(0, 0)):
    count = len(images_BCHW)
    return warp(
        images_BCHW,
        degrees_B=torch.full((count,), float(degrees)),
        factor_B=torch.full((count,), float(factor)),
        flip_B=torch.full((count,), flip),
        shift_2B=torch.tensor(shift)[:, None].expand(2, count),
    )


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_warp_by_quarters_is_rot90(noise_BCHW, quarters):
    images_BCHW = square(noise_BCHW)
    assert torch.equal(warped(images_BCHW, degrees=90 * quarters), images_BCHW.rot90(quarters, dims=(2, 3)))


def test_warp_of_nothing_is_the_identity_and_keeps_the_layout(noise_BCHW):
    out = warped(noise_BCHW)
    assert torch.equal(out, noise_BCHW)
    assert out.dtype == torch.uint8 and out.is_contiguous(memory_format=torch.channels_last)
    one_BCHW = torch.full((4, 1, 1, 1), 9, dtype=torch.uint8)
    assert torch.equal(warped(one_BCHW, degrees=40, factor=0.5), one_BCHW)


def test_warp_flips_and_shifts_as_without_it(noise_BCHW):
    assert torch.equal(warped(noise_BCHW, flip=True), noise_BCHW.flip(3))
    shifted = warped(noise_BCHW, shift=(2, -1))
    wide = np.pad(noise_BCHW.numpy(), ((0, 0), (0, 0), (2, 2), (1, 1)), mode="reflect")
    assert (shifted.numpy() == wide[:, :, 4:13, 0:7]).all()


def test_warp_enlarges_about_the_centre():
    line = torch.arange(0, 90, 10, dtype=torch.uint8).expand(2, 1, 9, 9)  # brightness rises by 10 a pixel
    out = warped(line, factor=2.0)[0, 0]
    assert out[:, 4].eq(40).all() and out[4].tolist() == [20, 25, 30, 35, 40, 45, 50, 55, 60]
    assert warped(line, factor=0.5)[0, 0, 4].tolist() == [40, 20, 0, 20, 40, 60, 80, 60, 40]  # reflected at the edges


def test_augment_rotation_and_scale_stay_within_their_ranges():
    # A bright point on a black square: its place tells angle and factor of each image.
    images = torch.zeros(500, 1, 41, 41, dtype=torch.uint8)
    images[:, :, 20, 28] = 255  # so near that its reflections stay outside
    weight = augment(images, AugmentConfig(rotation=30, scale=0.25), generator=seeded())[:, 0].double()
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    total = weight.sum((1, 2))
    up, right = -(weight * y).sum((1, 2)) / total, (weight * x).sum((1, 2)) / total
    degrees, factors = torch.rad2deg(torch.atan2(up, right)), torch.hypot(up, right) / 8
    assert degrees.abs().max() < 32 and degrees.min() < -26 and degrees.max() > 26
    assert 0.72 < factors.min() < 0.79 and 1.21 < factors.max() < 1.28


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_change_colour_of_one_kind_is_torchvisions(noise_BCHW, name, factor):
    kinds = {kind: torch.full((len(noise_BCHW),), 1.0) for kind in ("brightness", "contrast", "saturation")}
    kinds[name].fill_(factor)
    out = change_colour(noise_BCHW, *kinds.values())
    expected = getattr(v2.functional, f"adjust_{name}")(noise_BCHW, factor)
    assert (out.int() - expected.int()).abs().max() <= (factor != 1.0)  # torchvision rounds down
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_change_colour_leaves_the_saturation_of_grey_images(noise_BCHW):
    grey_BCHW, ones_B = noise_BCHW[:, :1], torch.ones(len(noise_BCHW))
    assert torch.equal(change_colour(grey_BCHW, ones_B, ones_B, 0 * ones_B), grey_BCHW)
    assert (change_colour(grey_BCHW, 2 * ones_B, ones_B, ones_B) == grey_BCHW.int().mul(2).clamp(max=255)).all()


def test_augment_colour_draws_for_each_image_within_its_range():
    images = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)  # contrast and saturation do nothing to them
    values = augment(images, AugmentConfig(colour=0.4), generator=seeded())[:, 0, 0, 0].float()
    assert 60 <= values.min() < 64 and 136 < values.max() <= 140 and len(values.unique()) > 50


def test_augment_erasing_blanks_a_whole_rectangle_in_its_share_of_the_images():
    images = torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8, generator=seeded())
    out = augment(images, AugmentConfig(erasing=0.5), generator=seeded())
    changed_BHW = (out != images).any(1)
    assert 250 < changed_BHW.any((1, 2)).sum() < 350
    shares, ratios = [], []
    for before, after, hole_HW in zip(images, out, changed_BHW, strict=True):
        if hole_HW.any():
            ys, xs = hole_HW.nonzero().T
            height, width = int(ys.max() - ys.min() + 1), int(xs.max() - xs.min() + 1)
            inside = after[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].float()
            assert (inside - before.float().mean((1, 2))[:, None, None]).abs().max() <= 0.5
            shares.append(height * width / 32**2)
            ratios.append(height / width)
    assert 0.01 < min(shares) < 0.05 and 0.28 < max(shares) < 0.37
    assert 0.2 < min(ratios) < 0.5 and 2 < max(ratios) < 5
    every = augment(images, AugmentConfig(erasing=1.0), generator=seeded())
    assert (every != images).any(3).any(2).any(1).all()


def test_augment_flip_shift_and_cutout_draw_what_they_always_drew(noise_BCHW):
    out = augment(noise_BCHW, AugmentConfig(flip=True, shift=2, cutout=3), generator=seeded())
    assert hashlib.sha256(out.contiguous().numpy().tobytes()).hexdigest()[:16] == "c7ff853e9edeb107"


def test_augment_is_repeatable_and_leaves_its_input_alone(noise_BCHW):
    everything = AugmentConfig(flip=True, shift=2, cutout=3, rotation=20, scale=0.2, colour=0.3, erasing=0.5)
    before = noise_BCHW.clone()
    first, again, other = (augment(noise_BCHW, everything, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(noise_BCHW, before)
    assert first.dtype == torch.uint8 and first.is_contiguous(memory_format=torch.channels_last)
