"""Pictures of fractal masks, and of attention maps before and after training.

Torch is imported by the functions that are given networks, so that patterns are drawn without it.

Shapes: N images, B images of a batch, C channels, H height, W width.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.colors
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fbsearch.config.models import FractalPatternType
from fbsearch.files import FileKind, write_output, write_whole
from fbsearch.network.patterns import generate_pattern
from fbsearch.pictures.fonts import Font, choose_font

if TYPE_CHECKING:
    from torch import Tensor

    from fbsearch.network.analysis import PatternAnalysis
    from fbsearch.network.model import FractalBrainNet

GAP_PIXELS = 12
LABEL_PIXELS = 28
TILE_PIXELS = 112
MASK_PIXELS = 256
FONT_PIXELS = 14
NAME_CHARACTERS = 24
# Pages and dashboards can be light or dark: on a clear ground, grey is readable on both.
CLEAR, GREY = (0, 0, 0, 0), (128, 128, 128, 255)
PICTURE = FileKind("picture of fbsearch", b"Software\0fbsearch")


def color(mask_HW: NDArray[np.float32]) -> Image.Image:
    """Return a mask in [0, 1] as a picture in the colours of plotly's Magma, dark for 0."""
    stops = np.linspace(0, 1, 256)
    scale = plotly.colors.sample_colorscale("Magma", stops.tolist(), colortype="tuple")
    palette = (np.array(scale) * 255).round().astype(np.uint8)
    return Image.fromarray(palette[(mask_HW * 255).round().astype(np.uint8)])


def mask_png(mask_HW: NDArray[Any]) -> bytes:
    """Return a mask in [0, 1] as a square PNG of MASK_PIXELS a side, in which its cells can be seen."""
    picture = color(np.clip(mask_HW, 0, 1).astype(np.float32))
    file = io.BytesIO()
    picture.resize((MASK_PIXELS, MASK_PIXELS), Image.Resampling.NEAREST).save(file, format="PNG")
    return file.getvalue()


def split_bands(m_HW: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the masks of the four bands for a mask m, by name."""
    return {
        "alpha: m": m_HW,
        "beta: 1 - m": 1 - m_HW,
        "gamma: m / 2": m_HW / 2,
        "theta: sin(pi m)": np.sin(np.pi * m_HW),
    }


def draw_patterns(path: Path, *, size: int, force: bool = False) -> None:
    """Write a PNG of the five patterns side by side, each `size` pixels square, with their names below.

    Raises ConfigError if the file is there and was not drawn by fbsearch, without `force`.
    """
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
    write_output(path, _png(picture), kind=PICTURE, force=force)


def _png(picture: Image.Image) -> bytes:
    file, notes = io.BytesIO(), PngInfo()
    notes.add_text("Software", "fbsearch")
    picture.save(file, format="PNG", pnginfo=notes)
    return file.getvalue()


@dataclass(frozen=True)
class Samples:
    """Images to analyse: `x_BCHW` as the network takes them, the first N as pictures with their classes."""

    x_BCHW: "Tensor"
    images_NHWC: NDArray[np.uint8]
    labels: tuple[str, ...]
    class_names: tuple[str, ...]


def draw_masks(path: Path, net: "FractalBrainNet", *, image_size: int) -> None:
    """Write a PNG of the masks that multiply the bands, at the resolution of each stage, on one scale from 0 to 1."""
    import torch

    from fbsearch.network.model import STEMS

    kernel_size, stride = STEMS[net.config.stem]
    side = image_size // stride if kernel_size == stride else -(-image_size // stride)  # a patch drops the rest
    device, pattern_HW = next(net.parameters()).device, net.fractal_pattern.numpy()
    tiles = [[_enlarge(color(pattern_HW))]]
    labels = ["pattern\n{} x {}".format(*pattern_HW.shape)]
    for stage in range(len(net.config.fractal_levels)):
        bands = split_bands(net.mask(torch.empty(1, 4, side, side, device=device))[0].cpu().numpy())
        tiles.append([_enlarge(color(band_HW)) for band_HW in bands.values()])
        labels.append(f"stage {stage + 1}\n{side} x {side}")
        side = (side + 1) // 2
    title = f"What the bands are multiplied by: {net.config.pattern}, dark 0, bright 1"
    write_whole(path, _png(_draw_grid(tiles, title=title, columns=list(bands), rows=labels)), way_out="")


def draw_attention(
    path: Path, trained: "FractalBrainNet", samples: Samples, analyses: "Sequence[tuple[str, PatternAnalysis]]"
) -> None:
    """Write a PNG with a row for each sample image: the image, then the map of each network after each stage.

    `analyses` are names of networks and their analyses of `samples.x_BCHW`. Each map is scaled to its own range. The
    label of a row has the class of the image and the prediction of `trained`.
    """
    import torch

    count = len(samples.images_NHWC)
    with torch.inference_mode():
        shares_NK = trained.eval()(samples.x_BCHW[:count]).softmax(dim=1)
    shares_N, said_N = shares_NK.max(dim=1)
    rows = [
        row_label(true, samples.class_names[int(said)], share.item())
        for true, said, share in zip(samples.labels, said_N, shares_N, strict=True)
    ]
    columns = [
        (f"{name}\nstage {stage}", maps_B1HW[:count, 0].cpu().numpy())
        for name, one in analyses
        for stage, maps_B1HW in enumerate(one["attention_maps"], start=1)
    ]
    write_whole(path, _png(draw_maps(samples.images_NHWC, columns, rows=rows)), way_out="")


def row_label(true: str, said: str, share: float) -> str:
    """Return the label of an image: its class, the predicted class and its probability."""
    return f"is {true[:NAME_CHARACTERS]}\nsaid {said[:NAME_CHARACTERS]}\n({share:.0%})"


def draw_maps(
    images_NHWC: NDArray[np.uint8], columns: Sequence[tuple[str, NDArray[Any]]], *, rows: Sequence[str]
) -> Image.Image:
    """Return a picture with a row for each image: the image, then its map of each column, scaled to its own range.

    `columns` are labels and maps [N, h, w], `rows` the labels of the images.
    """
    tiles = [
        [_photo(image_HWC), *(_map_picture(maps_Nhw[index].astype(np.float32)) for _, maps_Nhw in columns)]
        for index, image_HWC in enumerate(images_NHWC)
    ]
    labels = ["image", *("{}\n{} x {}".format(label, *maps_Nhw.shape[1:]) for label, maps_Nhw in columns)]
    title = "Mean over channels after each stage; each map from its lowest (dark) to its highest value"
    return _draw_grid(tiles, title=title, columns=labels, rows=rows)


def _photo(image_HWC: NDArray[np.uint8]) -> Image.Image:
    return _enlarge(Image.fromarray(image_HWC if image_HWC.shape[2] == 3 else image_HWC[:, :, 0]).convert("RGB"))


def _map_picture(map_HW: NDArray[np.float32]) -> Image.Image:
    low, high = map_HW.min(), map_HW.max()
    return _enlarge(color((map_HW - low) / max(high - low, np.finfo(np.float32).tiny)))


def _enlarge(picture: Image.Image) -> Image.Image:
    """Resize to the width of a tile; pixels of small pictures stay visible as squares."""
    size = (TILE_PIXELS, max(1, TILE_PIXELS * picture.height // picture.width))
    how = Image.Resampling.LANCZOS if picture.width > TILE_PIXELS else Image.Resampling.NEAREST
    return picture.resize(size, how)


def _draw_grid(
    tiles: Sequence[Sequence[Image.Image]], *, title: str, columns: Sequence[str], rows: Sequence[str]
) -> Image.Image:
    """Arrange tiles under a title, with labels to the left of the rows and above the columns."""
    title_label, column_labels = _Label(title, FONT_PIXELS + 2), [_Label(column) for column in columns]
    row_labels = [_Label(row) for row in rows]
    left = max(row.width for row in row_labels) + 2 * GAP_PIXELS
    step_x = max(TILE_PIXELS, *(column.width for column in column_labels)) + GAP_PIXELS
    step_y = max(TILE_PIXELS, *(row.height for row in row_labels)) + GAP_PIXELS
    top = title_label.height + max(column.height for column in column_labels) + 3 * GAP_PIXELS
    width = max(left + step_x * len(columns), title_label.width + 2 * GAP_PIXELS)
    picture = Image.new("RGBA", (width, top + step_y * len(rows)), CLEAR)
    title_label.draw(picture, (GAP_PIXELS, GAP_PIXELS), anchor="la")
    for index, column in enumerate(column_labels):
        column.draw(picture, (left + index * step_x + TILE_PIXELS // 2, top - GAP_PIXELS // 2), anchor="md")
    for row, (label, row_tiles) in enumerate(zip(row_labels, tiles, strict=True)):
        y = top + row * step_y
        label.draw(picture, (GAP_PIXELS, y + TILE_PIXELS // 2), anchor="lm")
        for index, tile in enumerate(row_tiles):
            picture.paste(tile, (left + index * step_x, y))
    return picture


def draw_photos(images: Sequence[NDArray[np.uint8]], *, labels: Sequence[str], a_row: int) -> bytes:
    """Return a PNG of photos [H, W, C], uint8, in rows of `a_row`, each with its label of some lines below."""
    written = [_Label(label) for label in labels]
    photos = [_photo(image_HWC) for image_HWC in images]
    step_x = max(TILE_PIXELS, *(one.width for one in written)) + GAP_PIXELS
    photo_pixels = max(photo.height for photo in photos)
    step_y = photo_pixels + max(one.height for one in written) + 2 * GAP_PIXELS
    size = (min(a_row, len(photos)) * step_x + GAP_PIXELS, -(-len(photos) // a_row) * step_y + GAP_PIXELS)
    picture = Image.new("RGBA", size, CLEAR)
    for place, (photo, label) in enumerate(zip(photos, written, strict=True)):
        row, column = divmod(place, a_row)
        at = (GAP_PIXELS + column * step_x, GAP_PIXELS + row * step_y)
        picture.paste(photo, at)
        label.draw(picture, (at[0], at[1] + photo_pixels + GAP_PIXELS // 2), anchor="la")
    return _png(picture)


class _Label:
    """Some lines of text, each in a font that has its characters. `width` and `height` are pixels."""

    def __init__(self, text: str, pixels: int = FONT_PIXELS) -> None:
        self._lines: list[tuple[Font, str]] = [choose_font(line, pixels) for line in text.split("\n")]
        self._step = round(1.35 * pixels)
        self.width = math.ceil(max(font.getlength(line) for font, line in self._lines))
        self.height = self._step * len(self._lines)

    def draw(self, picture: Image.Image, at: tuple[int, int], *, anchor: str) -> None:
        """Draw the lines at a place, which is at their left or middle, and at their top (a), middle (m) or end (d)."""
        pen = ImageDraw.Draw(picture)
        y = at[1] - {"a": 0, "m": self.height // 2, "d": self.height}[anchor[1]]
        for font, line in self._lines:
            pen.text((at[0], y), line, fill=GREY, font=font, anchor=f"{anchor[0]}a")
            y += self._step
