"""Pictures of what the network looks through: the fractal patterns. Knows nothing of studies or trials."""

from pathlib import Path

import numpy as np
import plotly.colors
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fbsearch.config import FractalPatternType
from fbsearch.patterns import generate_pattern

GAP_PIXELS = 12
LABEL_PIXELS = 28


def color(mask_HW: NDArray[np.float32]) -> Image.Image:
    """A mask in [0, 1] as a picture in the colours of plotly's Magma, dark for 0."""
    stops = np.linspace(0, 1, 256)
    scale = plotly.colors.sample_colorscale("Magma", stops.tolist(), colortype="tuple")
    palette = (np.array(scale) * 255).round().astype(np.uint8)
    return Image.fromarray(palette[(mask_HW * 255).round().astype(np.uint8)])


def draw_patterns(path: Path, *, size: int) -> None:
    """Write a PNG of the five patterns side by side, each `size` pixels square, with their names below."""
    step = size + GAP_PIXELS
    width = step * len(FractalPatternType) + GAP_PIXELS
    picture = Image.new("RGB", (width, size + 2 * GAP_PIXELS + LABEL_PIXELS), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(8, min(18, size // 8)))
    for index, pattern in enumerate(FractalPatternType):
        left = GAP_PIXELS + index * step
        picture.paste(color(generate_pattern(pattern, size, size)), (left, GAP_PIXELS))
        below = (left + size // 2, size + GAP_PIXELS + LABEL_PIXELS // 2)
        draw.text(below, pattern.value, fill="black", font=font, anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG")
