"""The five fractals of the source documents, drawn as masks in [0, 1] with numpy.

Rows are y (top to bottom), columns are x, and the first and last samples of a grid lie on the edges of its window. On a
grid that is not square a fractal is stretched.

Source: section 1 of the project's documents (their reference draws Mandelbrot, Julia and six rows of Sierpinski, with
x along the rows; Cantor and the dragon are ours). Suffixes: H height, W width, N points still bounded.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fbsearch.config.models import FractalPatternType
from fbsearch.errors import ConfigError

Mask: TypeAlias = NDArray[np.float32]

# Bounding box of the Heighway dragon's limit whose ends are 1 apart.
DRAGON_LENGTH, DRAGON_HEIGHT = 1.5, 1.0


def generate_pattern(pattern: FractalPatternType | str, height: int, width: int) -> Mask:
    """Return the mask of a fractal, float32 [height, width] in [0, 1], with its default constants.

    The array is cached for each (pattern, height, width), and read-only because callers share it. Any size >= 1 works;
    below about 8 x 8 a fractal is hardly recognisable.
    Raise ConfigError for an unknown pattern or a size that is not a positive integer.
    """
    allowed = [known.value for known in FractalPatternType]
    if pattern not in allowed:
        raise ConfigError(f"pattern is {pattern!r}; allowed: {', '.join(allowed)}")
    _check_positive(height=height, width=width)
    return _draw(FractalPatternType(pattern), height, width)


@lru_cache(maxsize=32)
def _draw(pattern: FractalPatternType, height: int, width: int) -> Mask:
    draw: dict[FractalPatternType, Callable[[int, int], Mask]] = {
        FractalPatternType.MANDELBROT: FractalPatternGenerator.mandelbrot_connectivity,
        FractalPatternType.JULIA: FractalPatternGenerator.julia_connectivity,
        FractalPatternType.SIERPINSKI: _sierpinski,
        FractalPatternType.CANTOR: FractalPatternGenerator.cantor_connectivity,
        FractalPatternType.DRAGON_CURVE: FractalPatternGenerator.dragon_curve_connectivity,
    }
    mask_HW = draw[pattern](width, height)
    mask_HW.setflags(write=False)
    return mask_HW


class FractalPatternGenerator:
    """The generator of the source documents. Every method returns a new float32 array [height, width] in [0, 1].

    All raise ConfigError for sizes and iteration counts that are not positive integers.
    """

    @staticmethod
    def mandelbrot_connectivity(width: int, height: int, max_iter: int = 100) -> Mask:
        """Return the Mandelbrot set over x in [-2.5, 1.5], y in [-1.5, 1.5], exactly symmetric about y = 0.

        The value is the share of the first `max_iter` iterates z0 = 0, z1 = c, ... of z <- z^2 + c with abs(z) <= 2;
        points that stay bounded have 1.
        """
        _check_positive(width=width, height=height, max_iter=max_iter)
        upper_HW = _plane(height, width, x_span=(-2.5, 1.5), y_span=(-1.5, 1.5))[: (height + 1) // 2]
        half_HW = _bounded_share(np.zeros_like(upper_HW), upper_HW, max_iter=max_iter)
        return np.concatenate([half_HW, half_HW[: height // 2][::-1]])

    @staticmethod
    def julia_connectivity(
        width: int, height: int, c_real: float = -0.7, c_imag: float = 0.27015, max_iter: int = 100
    ) -> Mask:
        """Return the Julia set of c over x, y in [-2, 2], exactly symmetric under z -> -z.

        The value is the share of the first `max_iter` iterates z0 = point, z1, ... of z <- z^2 + c with abs(z) <= 2.
        """
        _check_positive(width=width, height=height, max_iter=max_iter)
        upper_HW = _plane(height, width, x_span=(-2, 2), y_span=(-2, 2))[: (height + 1) // 2]
        c_HW = np.full_like(upper_HW, complex(c_real, c_imag))
        half_HW = _bounded_share(upper_HW, c_HW, max_iter=max_iter)
        return np.concatenate([half_HW, half_HW[: height // 2][::-1, ::-1]])

    @staticmethod
    def sierpinski_connectivity(size: int, iterations: int | None = None) -> Mask:
        """Return the Sierpinski gasket, [size, size], 1 on the gasket: Pascal's triangle mod 2, its apex top left.

        `iterations` is the number of subdivisions, at most log2 of the size (also for None), which is the limit of the
        grid. At a power of two, mask[n, k] is the binomial coefficient "n choose k" mod 2.
        """
        _check_positive(size=size, iterations=1 if iterations is None else iterations)
        return _sierpinski(size, size, iterations)

    @staticmethod
    def cantor_connectivity(width: int, height: int) -> Mask:
        """Return 2-D Cantor dust, 1 on the dust: the middle-third set in x times the middle-third set in y.

        The number of removals of middle thirds follows the resolution: one more at 3, 9, 27, ... pixels. A pixel
        belongs to the interval that contains its centre.
        """
        _check_positive(width=width, height=height)
        return np.outer(_middle_third(height), _middle_third(width)).astype(np.float32)

    @staticmethod
    def dragon_curve_connectivity(width: int, height: int) -> Mask:
        """Return the Heighway dragon, 1 on every pixel that contains one of its vertices; its box fills the grid.

        The order is the smallest even one whose segments are no longer than a pixel, so the mask is 4-connected and
        close to the curve's limit, which has an area (a third of its box) and a fractal boundary.
        """
        _check_positive(width=width, height=height)
        cells = max(width / DRAGON_LENGTH, height / DRAGON_HEIGHT)
        vertices = _dragon_vertices(2 * int(np.ceil(np.log2(cells))))
        mask_HW = np.zeros((height, width), np.float32)
        mask_HW[_to_pixels(vertices.imag, height), _to_pixels(vertices.real, width)] = 1
        return mask_HW


def _check_positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; allowed: an integer of 1 or more")


def _plane(
    height: int, width: int, *, x_span: tuple[float, float], y_span: tuple[float, float]
) -> NDArray[np.complex128]:
    """Return the points x + iy of a grid, [height, width]."""
    return _axis(width, *x_span)[None, :] + 1j * _axis(height, *y_span)[:, None]


def _axis(size: int, low: float, high: float) -> NDArray[np.float64]:
    """Return evenly spaced points from low to high, exactly symmetric about their centre; at size 1 the centre."""
    steps = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return (low + high) / 2 + steps * ((high - low) / max(size - 1, 1))


def _bounded_share(z_HW: NDArray[np.complex128], c_HW: NDArray[np.complex128], *, max_iter: int) -> Mask:
    """Return the share of `max_iter` iterates of z <- z^2 + c with abs(z) <= 2; none has it after escaping."""
    counts = np.zeros(z_HW.size, np.float32)
    alive_N, z_N, c_N = np.arange(z_HW.size), z_HW.ravel(), c_HW.ravel()
    for _ in range(max_iter):
        bounded_N = z_N.real**2 + z_N.imag**2 <= 4
        alive_N, z_N, c_N = alive_N[bounded_N], z_N[bounded_N], c_N[bounded_N]
        counts[alive_N] += 1
        z_N = z_N * z_N + c_N
    return (counts / np.float32(max_iter)).reshape(z_HW.shape)


def _digits(size: int, *, base: int) -> int:
    """Return the largest depth with base^depth <= size."""
    depth = 0
    while base ** (depth + 1) <= size:
        depth += 1
    return depth


def _cells(size: int, num_cells: int) -> NDArray[np.int64]:
    """Return, for each of `size` pixels, the index of the cell (of `num_cells` equal ones) that holds its centre."""
    return (2 * np.arange(size) + 1) * num_cells // (2 * size)


def _sierpinski(width: int, height: int, iterations: int | None = None) -> Mask:
    """Return 2^depth rows of Pascal's triangle mod 2: by Lucas' theorem odd where k has no bit that n lacks."""
    resolved = _digits(min(height, width), base=2)
    depth = resolved if iterations is None else min(resolved, iterations)
    n_H, k_W = _cells(height, 2**depth), _cells(width, 2**depth)
    odd_HW: NDArray[np.bool_] = (k_W[None, :] & ~n_H[:, None]) == 0
    return odd_HW.astype(np.float32)


def _middle_third(size: int) -> NDArray[np.bool_]:
    """Return the middle-third Cantor set of `size` pixels: the cells whose number has no digit 1 in base 3."""
    depth = _digits(size, base=3)
    cells = _cells(size, 3**depth)
    kept = np.ones(size, np.bool_)
    for place in range(depth):
        kept &= cells // 3**place % 3 != 1
    return kept


def _dragon_vertices(order: int) -> NDArray[np.complex128]:
    """Return the 2^order + 1 lattice vertices of the Heighway dragon from 0 to 2^(order/2); `order` is even.

    Each unfolding appends the curve so far, reversed and turned by a right angle about its end.
    """
    vertices = np.array([0, 1], np.complex128)
    for _ in range(order):
        end = vertices[-1]
        vertices = np.concatenate([vertices, end - 1j * (vertices[-2::-1] - end)])
    vertices *= vertices[-1].conjugate() / 2 ** (order // 2)
    return vertices


def _to_pixels(positions: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Scale lattice positions to pixel indices from 0 to size - 1."""
    offsets = positions - positions.min()
    pixels: NDArray[np.float64] = np.rint(offsets * ((size - 1) / max(offsets.max(), 1)))
    return pixels.astype(np.int64)
