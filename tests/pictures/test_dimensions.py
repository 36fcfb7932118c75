"""Box-counting dimensions of the masks, near theory where there is one."""

import math

import numpy as np
import pytest
from rich.console import Console

from fbsearch.config.models import FractalPatternType
from fbsearch.pictures.dimensions import BoxCount, compare_dimensions, count_boxes, plot_dimensions


def shown(*tables: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(*tables)
    return capture.get()


@pytest.mark.parametrize(
    ("pattern", "dimension", "error"),
    [
        ("sierpinski", math.log(3, 2), 1e-6),
        ("cantor", math.log(4, 3), 1e-6),
        ("dragon_curve", 2, 0.15),
        # No value in the specification. The Mandelbrot set has an area, therefore 2; this Julia set is below that.
        ("mandelbrot", 2, 0.15),
        ("julia", 1.75, 0.1),
    ],
)
def test_dimension_of_a_mask_at_512_is_near_theory(pattern, dimension, error):
    assert count_boxes(FractalPatternType(pattern), 512).fit[0] == pytest.approx(dimension, abs=error)


def test_boxes_of_sierpinski_and_cantor_are_the_powers():
    assert count_boxes(FractalPatternType.SIERPINSKI, 32) == BoxCount((2, 4, 8, 16, 32), (3, 9, 27, 81, 243))
    assert count_boxes(FractalPatternType.CANTOR, 100) == BoxCount((3, 9, 27, 81), (4, 16, 64, 256))


@pytest.mark.parametrize("pattern", FractalPatternType)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_dimension_of_a_tiny_mask_is_none_or_a_number(pattern, size):
    count = count_boxes(pattern, size)
    assert all(side <= size for side in count.boxes_per_side)
    assert math.isnan(count.fit[0]) or 0 <= count.fit[0] <= 2


def test_dimension_table_has_the_five_and_the_nets_own():
    lines = shown(compare_dimensions(FractalPatternType.CANTOR, 2)).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[4].split() == ["cantor", "512", "x", "512", "1.262", "1.262"]
    assert lines[6].split() == ["cantor", "(this", "net's)", "2", "x", "2", "-", "1.262"]


def test_dimension_plot_has_points_lines_and_the_nets_own():
    figure = plot_dimensions(FractalPatternType.SIERPINSKI, 16)
    names = [trace.name for trace in figure.data if trace.name]
    assert "sierpinski: 1.585 (theory 1.585)" in names
    assert "sierpinski at the net's 16 x 16: 1.585" in names
    assert len(figure.data) == 2 * 5 + 1
    line = next(trace for trace in figure.data if trace.mode == "lines" and trace.legendgroup == "sierpinski")
    assert np.allclose(line.y, 3 ** np.log2(line.x))
