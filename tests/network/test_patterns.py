"""The five fractals against their mathematics: symmetry, area, dimension, and the rules every mask obeys."""

from itertools import combinations
from math import comb, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, label

from fbsearch.config.models import FractalPatternType
from fbsearch.errors import ConfigError
from fbsearch.network.patterns import FractalPatternGenerator, Mask, _dragon_vertices, generate_pattern

every_pattern = pytest.mark.parametrize("pattern", FractalPatternType)
sizes = st.integers(1, 40)
quick = settings(max_examples=50, deadline=None)


def box_counting_dimension(mask_HW: Mask, box_sizes: list[int]) -> float:
    """Slope of log(occupied boxes) over log(1 / box size); the box sizes must divide the mask's height and width."""
    counts = []
    for size in box_sizes:
        height, width = mask_HW.shape
        boxes = mask_HW.reshape(height // size, size, width // size, size)
        counts.append(boxes.any(axis=(1, 3)).sum())
    return -np.polyfit(np.log(box_sizes), np.log(counts), 1)[0]


def count_by_hand(z: complex, c: complex, max_iter: int = 100) -> float:
    """The share of iterates with abs(z) <= 2, one point at a time."""
    bounded = 0
    while bounded < max_iter and abs(z) <= 2:
        z, bounded = z * z + c, bounded + 1
    return bounded / max_iter


# Every pattern


@every_pattern
@quick
@given(height=sizes, width=sizes)
def test_mask_any_size_is_float32_between_0_and_1(pattern, height, width):
    mask_HW = generate_pattern(pattern, height, width)
    assert mask_HW.shape == (height, width)
    assert mask_HW.dtype == np.float32
    assert mask_HW.min() >= 0
    assert mask_HW.max() <= 1


@every_pattern
@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (8, 24), (24, 8)])
def test_mask_small_size_keeps_some_pixels_and_drops_others(pattern, shape):
    mask_HW = generate_pattern(pattern, *shape)
    assert mask_HW.std() > 0.1
    assert 0.03 < mask_HW.mean() < 0.7


def test_masks_of_two_patterns_differ():
    for first, second in combinations(FractalPatternType, 2):
        assert np.abs(generate_pattern(first, 64, 48) - generate_pattern(second, 64, 48)).mean() > 0.05


@every_pattern
def test_mask_second_time_is_the_same_read_only_array(pattern):
    mask_HW = generate_pattern(pattern, 1024, 1024)
    assert generate_pattern(pattern.value, 1024, 1024) is mask_HW
    with pytest.raises(ValueError, match="read-only"):
        mask_HW[0, 0] = 0


@pytest.mark.parametrize("size", [0, -1, 8.0, "8", None])
def test_size_not_a_positive_integer_names_the_value(size):
    with pytest.raises(ConfigError, match=f"height is {size!r}; allowed: an integer of 1 or more"):
        generate_pattern(FractalPatternType.CANTOR, size, 8)
    with pytest.raises(ConfigError, match=f"width is {size!r}"):
        generate_pattern(FractalPatternType.CANTOR, 8, size)


def test_pattern_unknown_names_the_five():
    with pytest.raises(ConfigError, match="'koch'; allowed: mandelbrot, sierpinski, julia, cantor, dragon_curve"):
        generate_pattern("koch", 8, 8)


def test_generator_documented_methods_give_the_same_masks():
    generator = FractalPatternGenerator
    assert np.array_equal(generator.mandelbrot_connectivity(20, 12), generate_pattern("mandelbrot", 12, 20))
    assert np.array_equal(generator.julia_connectivity(20, 12), generate_pattern("julia", 12, 20))
    assert np.array_equal(generator.cantor_connectivity(20, 12), generate_pattern("cantor", 12, 20))
    assert np.array_equal(generator.dragon_curve_connectivity(20, 12), generate_pattern("dragon_curve", 12, 20))
    assert np.array_equal(generator.sierpinski_connectivity(20), generate_pattern("sierpinski", 20, 20))


# Mandelbrot and Julia


@quick
@given(height=sizes, width=sizes)
def test_mandelbrot_is_symmetric_about_the_real_axis(height, width):
    mask_HW = generate_pattern("mandelbrot", height, width)
    assert np.array_equal(mask_HW, mask_HW[::-1])


def test_mandelbrot_values_are_the_share_of_bounded_iterates():
    mask_HW = FractalPatternGenerator.mandelbrot_connectivity(23, 17, max_iter=60)
    for row, y in enumerate(np.linspace(-1.5, 1.5, 17)):
        for column, x in enumerate(np.linspace(-2.5, 1.5, 23)):
            assert mask_HW[row, column] == np.float32(count_by_hand(0, complex(x, y), 60))


def test_mandelbrot_area_at_high_resolution_is_near_1_5066():
    mask_HW = FractalPatternGenerator.mandelbrot_connectivity(801, 601, max_iter=1000)
    assert (mask_HW == 1).sum() * (4 / 800) * (3 / 600) == pytest.approx(1.5066, rel=0.01)


@quick
@given(height=sizes, width=sizes)
def test_julia_is_symmetric_under_negation(height, width):
    mask_HW = generate_pattern("julia", height, width)
    assert np.array_equal(mask_HW, mask_HW[::-1, ::-1])


def test_julia_values_are_the_share_of_bounded_iterates():
    mask_HW = FractalPatternGenerator.julia_connectivity(18, 13, c_real=-0.4, c_imag=0.6)
    for row, y in enumerate(np.linspace(-2, 2, 13)):
        for column, x in enumerate(np.linspace(-2, 2, 18)):
            assert mask_HW[row, column] == np.float32(count_by_hand(complex(x, y), complex(-0.4, 0.6)))


def test_julia_of_c_0_is_the_unit_disc():
    mask_HW = FractalPatternGenerator.julia_connectivity(401, 401, c_real=0, c_imag=0)
    assert (mask_HW == 1).sum() * (4 / 400) ** 2 == pytest.approx(np.pi, rel=0.01)


# Sierpinski and Cantor


def test_sierpinski_power_of_two_is_pascals_triangle_mod_2():
    pascal_HW = [[comb(n, k) % 2 for k in range(32)] for n in range(32)]
    assert np.array_equal(generate_pattern("sierpinski", 32, 32), pascal_HW)


def test_sierpinski_dimension_is_log_3_over_log_2():
    mask_HW = generate_pattern("sierpinski", 512, 512)
    assert box_counting_dimension(mask_HW, [1, 2, 4, 8, 16, 32, 64]) == pytest.approx(log(3) / log(2))


@quick
@given(height=st.integers(8, 100), width=st.integers(8, 100))
def test_sierpinski_any_shape_fills_the_grid(height, width):
    mask_HW = generate_pattern("sierpinski", height, width)
    assert mask_HW[-1].all()
    assert mask_HW[:, 0].all()
    assert mask_HW[-1, -1] == 1
    assert mask_HW[0, -1] == 0


def test_sierpinski_iterations_limit_the_depth():
    once_HW = np.kron([[1, 0], [1, 1]], np.ones((8, 8)))
    assert np.array_equal(FractalPatternGenerator.sierpinski_connectivity(16, 1), once_HW)
    assert np.array_equal(
        FractalPatternGenerator.sierpinski_connectivity(16, 99), generate_pattern("sierpinski", 16, 16)
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_cantor_power_of_three_is_the_product_of_middle_third_sets(depth):
    dust_HW = np.ones((1, 1))
    for _ in range(depth):
        dust_HW = np.kron(dust_HW, [[1, 0, 1], [0, 0, 0], [1, 0, 1]])
    assert np.array_equal(generate_pattern("cantor", 3**depth, 3**depth), dust_HW)


def test_cantor_dimension_is_log_4_over_log_3():
    mask_HW = generate_pattern("cantor", 729, 729)
    assert box_counting_dimension(mask_HW, [1, 3, 9, 27, 81]) == pytest.approx(log(4) / log(3))


@pytest.mark.parametrize(("size", "intervals"), [(2, 1), (3, 2), (8, 2), (9, 4), (26, 4), (27, 8), (100, 16)])
def test_cantor_depth_follows_the_resolution(size, intervals):
    row_W = generate_pattern("cantor", size, size)[0]
    assert np.diff(row_W, prepend=0, append=0).clip(min=0).sum() == intervals


# The dragon


def test_dragon_segments_are_unit_steps_that_turn_and_never_overlap():
    vertices = _dragon_vertices(12)
    steps = np.diff(vertices)
    assert np.allclose(np.abs(steps), 1)
    assert np.allclose((steps[1:] / steps[:-1]).real, 0)
    middles = vertices[:-1] + vertices[1:]
    assert len(np.unique(np.rint([middles.real, middles.imag]), axis=1).T) == 2**12


def test_dragon_turns_follow_the_paper_folding_sequence():
    steps = np.diff(_dragon_vertices(10))
    turns = np.sign((steps[1:] / steps[:-1]).imag)
    number = np.arange(1, 2**10)
    odd_part = number // (number & -number)
    assert abs((turns * np.where(odd_part % 4 == 1, 1, -1)).sum()) == len(turns)


@quick
@given(height=st.integers(1, 80), width=st.integers(1, 80))
def test_dragon_any_size_is_connected_and_touches_every_edge(height, width):
    mask_HW = generate_pattern("dragon_curve", height, width)
    assert label(mask_HW)[1] == 1
    assert mask_HW[0].any() and mask_HW[-1].any() and mask_HW[:, 0].any() and mask_HW[:, -1].any()


def test_dragon_area_is_a_third_of_its_box():
    assert generate_pattern("dragon_curve", 2048, 3072).mean() == pytest.approx(1 / 3, rel=0.06)


def test_dragon_dimension_is_2_and_its_boundary_1_5236():
    mask_HW = generate_pattern("dragon_curve", 2048, 3072) == 1
    assert box_counting_dimension(mask_HW, [1, 2, 4]) == pytest.approx(2, abs=0.08)
    boundary_HW = mask_HW & ~binary_erosion(mask_HW)
    assert box_counting_dimension(boundary_HW, [2, 4, 8, 16, 32, 64]) == pytest.approx(1.5236, abs=0.05)
