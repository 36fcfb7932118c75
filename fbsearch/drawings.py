"""SVG drawings, plain text without scripts: a network's architecture, learning curves, a confusion matrix.

Also the table of a network's parts that the first is drawn from. Must not know data sets, runs or files; all text that
comes from outside is escaped. Lengths are pixels.

Shapes: C channels, H height, W width, K classes.
"""

import base64
import dataclasses
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import torch
from PIL import Image
from rich.markup import escape as escape_markup
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fbsearch.config import ModelConfig
from fbsearch.events import EpochStats
from fbsearch.folder import Ints
from fbsearch.model import FractalBrainNet
from fbsearch.patterns import generate_pattern
from fbsearch.study_file import ExportedConfig

INK, FAINT, RULE, PANEL = "#1f2933", "#66737f", "#d5dbe1", "#f6f8fa"
TRAIN_COLOR, VAL_COLOR = "#2171b5", "#e6550d"
# A convolution's colour says its column, from the shallowest to the eighth.
COLUMN_COLORS = ("#a6d8d4", "#74bfc4", "#4aa0b5", "#2f7fa3", "#265f8f", "#234479", "#212d5e", "#1a1a40")
JOIN_COLOR, SCALE_COLOR, STRIDE_COLOR, HEAD_COLOR = "#f2a33a", "#7fb069", "#9aa5b1", "#b48ead"
NESTS = ("#ffffff", "#eef3f8")
LEAF_HEIGHT, PAD, JOIN_WIDTH, GAP = 22, 6, 8, 5
MASK_PIXELS = 96
MAX_CELL_LABELS = 30  # classes: above, a confusion matrix shows colours alone


class Canvas:
    """Shapes in the order in which they are drawn."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", radius: float = 3
    ) -> None:
        """Draw a rectangle with its upper left corner at (x, y)."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        size: float = 12,
        anchor: str = "middle",
        fill: str = INK,
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """Write one line; y is its baseline. `turned` reads upwards."""
        weight = ' font-weight="600"' if bold else ""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}{turn}>'
            f"{escape(_printable(content))}</text>"
        )

    def line(
        self, points: Sequence[tuple[float, float]], *, stroke: str, width: float = 1.5, arrow: bool = False
    ) -> None:
        """Draw straight lines from point to point."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self._parts.append(
            f'<polyline points="{joined}" fill="none" stroke="{stroke}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{end}/>'
        )

    def dot(self, x: float, y: float, *, fill: str) -> None:
        """Draw a point."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{fill}"/>')

    def picture(self, x: float, y: float, side: float, image: Image.Image) -> None:
        """Put a picture at (x, y), its pixels kept as squares."""
        png = io.BytesIO()
        image.save(png, format="PNG")
        self._parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{side:g}" height="{side:g}" style="image-rendering:pixelated" '
            f'href="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"/>'
        )

    def render(self, width: float, height: float, *, title: str) -> str:
        """The whole file; `title` is what a reader without eyes is told."""
        arrow = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{FAINT}"/></marker></defs>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label={quoteattr(_printable(title))} '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
        )
        ground = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
        return "\n".join([head, arrow, ground, *self._parts, "</svg>\n"])


def _printable(text: str) -> str:
    """Without what XML cannot hold: control characters and halves of characters, as file names may have them."""
    return re.sub(r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", text)


# ------------------------------------------------------------------------------------------------------- architecture


@dataclass(frozen=True)
class Layer:
    """One part of a network. `shape` is its output's without the batch; `flops` of one image, a multiply-add is two."""

    name: str
    kind: str
    shape: tuple[int, ...]
    num_parameters: int
    flops: int


def list_layers(config: ModelConfig, *, num_classes: int, in_channels: int, image_size: int) -> list[Layer]:
    """The parts of a network in the order in which an image goes through them; nothing is computed, only counted."""
    with torch.device("meta"), torch.no_grad():
        net = FractalBrainNet(config, num_classes=num_classes, in_channels=in_channels, image_size=image_size).eval()
        parts = dict(_parts(net))
        shapes: dict[str, tuple[int, ...]] = {}

        def remember(name: str) -> None:
            def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
                shapes[name] = tuple((output if isinstance(output, Tensor) else output[0]).shape[1:])

            parts[name].register_forward_hook(hook)

        for name in parts:
            remember(name)
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, in_channels, image_size, image_size))
    counts = {key: int(sum(value.values())) for key, value in counter.get_flop_counts().items()}
    flops = {name: counts.get(f"FractalBrainNet.{name}", 0) for name in parts}
    if "global_attention" in parts:  # the net computes it without calling the module, which only holds the parameters
        shapes["global_attention"] = (cast("nn.MultiheadAttention", parts["global_attention"]).embed_dim,)
        flops["global_attention"] = counts["Global"] - sum(f for name, f in flops.items() if name != "global_attention")
    return [
        Layer(name, _kind(name, part, net.config), shapes[name], sum(p.numel() for p in part.parameters()), flops[name])
        for name, part in parts.items()
    ]


def _parts(net: FractalBrainNet) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", net.stem
    for i, stage in enumerate(net.fractal_stages):
        for j, part in enumerate(cast("nn.Sequential", stage)):
            if not isinstance(part, nn.Identity):
                yield f"fractal_stages.{i}.{j}", part
    for name in ("global_attention", "meta_learner", "classifier"):
        if getattr(net, name) is not None:
            yield name, getattr(net, name)


def _kind(name: str, module: nn.Module, config: ModelConfig) -> str:
    """What a part is, in a few words."""
    if name == "stem":
        kernel = "3x3" if config.stem == "conv3" else "7x7, stride 2"
        return f"convolution {kernel}, scale processor"
    if name.startswith("fractal_stages."):
        level = config.fractal_levels[int(name.split(".")[1])]
        convolutions = "1 convolution" if level == 1 else f"{2**level - 1} convolutions, {2 ** (level - 1)} deep"
        return (f"fractal block, level {level}: {convolutions}", "scale processor", "convolution 3x3, stride 2")[
            int(name.split(".")[2])
        ]
    if isinstance(module, nn.MultiheadAttention):
        return f"attention, {module.num_heads} heads, {config.global_attention}"
    return {"meta_learner": "features + 0.1 * meta(features)", "classifier": "two linear layers"}[name]


def layers_as_dict(layers: Sequence[Layer]) -> dict[str, Any]:
    """The parts and their sums as plain values."""
    return {
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "num_parameters": sum(layer.num_parameters for layer in layers),
        "flops": sum(layer.flops for layer in layers),
    }


def layer_table(layers: Sequence[Layer], *, title: str) -> Table:
    """The parts for people."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=escape_markup(title), title_justify="left")
    for column in ("part", "what", "output", "parameters", "FLOPs"):
        table.add_column(column, justify="left" if column in ("part", "what", "output") else "right")
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        table.add_row(layer.name, layer.kind, shape, f"{layer.num_parameters:,}", f"{layer.flops:,}")
    total = layers_as_dict(layers)
    table.add_row("all", "", "", f"{total['num_parameters']:,}", f"{total['flops']:,}", style="bold")
    return table


def draw_architecture(exported: ExportedConfig, layers: Sequence[Layer], *, title: str) -> str:
    """The SVG of a network: its stages from left to right, each block as the fractal of convolutions that it is.

    `layers` are those of `list_layers` for the same configuration.
    """
    config, in_channels, side = exported.model, exported.in_channels, exported.image_size
    canvas = Canvas()
    by_name = {layer.name: layer for layer in layers}
    highest = max(config.fractal_levels)
    leaf_width = max(7.0, min(34.0, 900 / sum(2 ** (level - 1) for level in config.fractal_levels)))
    middle = 178 + max(_block_height(highest), 90) / 2
    bottom = middle + max(_block_height(highest), 90) / 2
    x = _small_part(canvas, 30, middle, bottom, "images", f"{in_channels} x {side} x {side}", "", fill="#e8ecf0")
    x = _small_part(canvas, x, middle, bottom, "stem", *_facts(by_name["stem"]), fill=SCALE_COLOR)
    for stage, level in enumerate(config.fractal_levels):
        parts = [by_name.get(f"fractal_stages.{stage}.{part}") for part in range(3)]
        x = _draw_stage(canvas, x, middle, bottom, stage, level, parts, leaf_width=leaf_width)
    heads = {"global_attention": "attention", "meta_learner": "meta-learner", "classifier": "classifier"}
    for name, label in heads.items():
        if name in by_name:
            x = _small_part(canvas, x, middle, bottom, label, *_facts(by_name[name]), fill=HEAD_COLOR)
    width = max(x + 6, 760)
    _draw_head(canvas, config, layers, title=title, width=width)
    _draw_legend(canvas, bottom + 112, highest)
    return canvas.render(width, bottom + 136, title=title)


def _facts(layer: Layer) -> tuple[str, str]:
    return " x ".join(map(str, layer.shape)), f"{short(layer.num_parameters)} parameters"


def short(count: float) -> str:
    """A count in three digits: 11.6 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _small_part(
    canvas: Canvas, x: float, middle: float, bottom: float, name: str, shape: str, more: str, *, fill: str
) -> float:
    """A part without an inside, with an arrow to what follows; returns where that begins."""
    width, height = 104, 54
    canvas.rect(x, middle - height / 2, width, height, fill=fill, radius=6)
    canvas.text(x + width / 2, middle + 4, name, bold=True)
    canvas.text(x + width / 2, bottom + 40, shape, size=11)
    canvas.text(x + width / 2, bottom + 56, more, size=10, fill=FAINT)
    return _arrow(canvas, x + width, middle) if name != "classifier" else x + width + 24


def _arrow(canvas: Canvas, x: float, y: float) -> float:
    canvas.line([(x + 3, y), (x + 21, y)], stroke=FAINT, arrow=True)
    return x + 24


def _draw_stage(
    canvas: Canvas, x: float, middle: float, bottom: float, stage: int, level: int,
    parts: Sequence[Layer | None], *, leaf_width: float,
) -> float:  # fmt: skip
    """One stage in its panel; returns where the next part begins."""
    block, scale, down = parts
    assert block is not None and scale is not None, "every stage has them"
    block_width = _block_width(level, leaf_width)
    inside = block_width + 24 + 26 + (24 + 26 if down else 0)
    width = max(inside + 24, 150)
    top = 150.0
    canvas.rect(x, top, width, bottom + 64 - top, fill=PANEL, stroke=RULE, radius=8)
    canvas.text(x + width / 2, top + 18, f"stage {stage + 1}, level {level}", bold=True)
    at = x + (width - inside) / 2
    _draw_block(canvas, at, middle - _block_height(level) / 2, level, leaf_width, depth=0, column=1)
    at = _arrow(canvas, at + block_width, middle)
    for i, height in enumerate((24, 40, 56)):  # 1x1, 3x3 and 5x5 side by side
        canvas.rect(at + 9 * i, middle - height / 2, 7, height, fill=SCALE_COLOR, radius=2)
    if down:
        at = _arrow(canvas, at + 26, middle)
        canvas.rect(at, middle - 24, 26, 48, fill=STRIDE_COLOR)
        canvas.text(at + 13, middle + 5, "\N{DIVISION SIGN}2", fill="white", bold=True)
    total = sum(layer.num_parameters for layer in parts if layer)
    canvas.text(x + width / 2, bottom + 22, _facts(block)[0], size=11)
    canvas.text(x + width / 2, bottom + 38, f"{short(total)} parameters", size=10, fill=FAINT)
    flops = sum(layer.flops for layer in parts if layer)
    canvas.text(x + width / 2, bottom + 54, f"{short(flops)} FLOPs", size=10, fill=FAINT)
    return _arrow(canvas, x + width, middle)


def _block_width(level: int, leaf_width: float) -> float:
    if level == 1:
        return leaf_width
    return 2 * _block_width(level - 1, leaf_width) + 2 * GAP + JOIN_WIDTH + 2 * PAD


def _block_height(level: int) -> float:
    return LEAF_HEIGHT if level == 1 else _block_height(level - 1) + GAP + LEAF_HEIGHT + 2 * PAD


def _draw_block(canvas: Canvas, x: float, y: float, level: int, leaf_width: float, *, depth: int, column: int) -> None:
    """The fractal: two blocks of the level below in a row, beneath them one convolution, both into the join."""
    if level == 1:
        canvas.rect(x, y, leaf_width, LEAF_HEIGHT, fill=COLUMN_COLORS[column - 1])
        return
    width, height = _block_width(level, leaf_width), _block_height(level)
    canvas.rect(x, y, width, height, fill=NESTS[depth % 2], stroke=RULE, radius=6)
    inner = _block_width(level - 1, leaf_width)
    for left in (x + PAD, x + PAD + inner + GAP):
        _draw_block(canvas, left, y + PAD, level - 1, leaf_width, depth=depth + 1, column=column + 1)
    below = y + height - PAD - LEAF_HEIGHT
    canvas.rect(x + PAD, below, 2 * inner + GAP, LEAF_HEIGHT, fill=COLUMN_COLORS[column - 1])
    canvas.rect(x + width - PAD - JOIN_WIDTH, y + PAD, JOIN_WIDTH, height - 2 * PAD, fill=JOIN_COLOR)


def _draw_head(canvas: Canvas, config: ModelConfig, layers: Sequence[Layer], *, title: str, width: float) -> None:
    """Title, what the drawing does not show, and the mask."""
    canvas.text(30, 40, title, size=20, anchor="start", bold=True)
    total, flops = sum(layer.num_parameters for layer in layers), sum(layer.flops for layer in layers)
    lines = [
        f"{total:,} parameters, {flops:,} FLOPs an image",
        f"levels {list(config.fractal_levels)}, {config.base_channels} channels, stem {config.stem}, "
        f"{config.activation}, init {config.init}",
        f"drop-path {config.drop_path} {config.drop_path_prob:g}, dropout {config.dropout:g}, "
        f"attention {config.global_attention}, mask {config.pattern.value} at {config.pattern_resolution} pixels",
    ]
    for i, line in enumerate(lines):
        canvas.text(30, 66 + 20 * i, line, size=12.5, anchor="start", fill=FAINT)
    pattern_HW = generate_pattern(config.pattern, config.pattern_resolution, config.pattern_resolution)
    light = np.array([246, 248, 250])
    dark = np.array([26, 26, 64])
    rgb_HWC = light + pattern_HW[:, :, None] * (dark - light)
    left = width - 30 - MASK_PIXELS
    canvas.picture(left, 24, MASK_PIXELS, Image.fromarray(rgb_HWC.round().astype(np.uint8)))
    canvas.text(left + MASK_PIXELS / 2, 136, config.pattern.value, size=11, fill=FAINT)


def _draw_legend(canvas: Canvas, y: float, highest: int) -> None:
    entries = [(COLUMN_COLORS[column], f"column {column + 1}") for column in range(highest)]
    entries += [(JOIN_COLOR, "join with learned gates"), (SCALE_COLOR, "scale processor 1x1, 3x3, 5x5")]
    entries += [(STRIDE_COLOR, "convolution of stride 2")]
    x = 30.0
    for color, label in entries:
        canvas.rect(x, y - 10, 14, 12, fill=color)
        canvas.text(x + 20, y, label, size=11, anchor="start", fill=FAINT)
        x += 40 + 6.2 * len(label)


# ------------------------------------------------------------------------------------------------- curves and confusion


def draw_curves(history: Sequence[EpochStats], *, title: str, caption: str) -> str:
    """The SVG of loss and accuracy over the epochs, on the training and, where there is one, the validation split."""
    canvas = Canvas()
    canvas.text(30, 34, title, size=18, anchor="start", bold=True)
    for i, line in enumerate(_wrap(caption, 120)):
        canvas.text(30, 56 + 16 * i, line, size=12, anchor="start", fill=FAINT)
    epochs = [stats.epoch for stats in history]
    names = {"train": TRAIN_COLOR, "val": VAL_COLOR}
    for panel, (measure, factor, label) in enumerate([("loss", 1, "loss (nats)"), ("accuracy", 100, "accuracy (%)")]):
        curves = {name: [factor * getattr(stats, f"{name}_{measure}") for stats in history] for name in names}
        curves = {name: values for name, values in curves.items() if not math.isnan(values[-1])}
        _draw_panel(canvas, 70 + 440 * panel, 110, epochs, [(names[n], v) for n, v in curves.items()], label=label)
    for i, (color, label) in enumerate(zip(names.values(), ("training", "validation"), strict=True)):
        if i == 0 or not math.isnan(history[-1].val_loss):
            canvas.line([(70 + 110 * i, 410), (92 + 110 * i, 410)], stroke=color, width=2.5)
            canvas.text(98 + 110 * i, 414, label, anchor="start")
    return canvas.render(900, 436, title=title)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return lines


def _draw_panel(
    canvas: Canvas,
    left: float,
    top: float,
    epochs: Sequence[int],
    curves: Sequence[tuple[str, list[float]]],
    *,
    label: str,
) -> None:
    width, height = 370.0, 240.0
    low, high = min(min(v) for _, v in curves), max(max(v) for _, v in curves)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def place(epoch: float, value: float) -> tuple[float, float]:
        return left + width * (epoch - first) / (last - first), top + height * (high - value) / (high - low)

    for tick in ticks:
        y = place(first, tick)[1]
        canvas.line([(left, y), (left + width, y)], stroke=RULE, width=1)
        canvas.text(left - 8, y + 4, f"{tick:g}", size=11, anchor="end", fill=FAINT)
    for epoch in (tick for tick in nice_ticks(first, last) if tick == int(tick) and first <= tick <= last):
        canvas.text(place(epoch, low)[0], top + height + 18, f"{epoch:g}", size=11, fill=FAINT)
    canvas.text(left + width / 2, top + height + 36, "epoch", size=12, fill=FAINT)
    canvas.text(left, top - 12, label, size=13, anchor="start", bold=True)
    for color, values in curves:
        points = [place(epoch, value) for epoch, value in zip(epochs, values, strict=True)]
        canvas.line(points, stroke=color, width=2)
        for x, y in points if len(points) <= 60 else []:
            canvas.dot(x, y, fill=color)


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from `low` or below to `high` or above."""
    span = (high - low) or max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = power * next(factor for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def draw_confusion(confusion_KK: Ints, names: Sequence[str], *, title: str) -> str:
    """The SVG of a confusion matrix: rows are true classes, columns what was said; errors red, hits blue."""
    canvas = Canvas()
    num_classes = len(names)
    labelled = num_classes <= MAX_CELL_LABELS
    cell = 44.0 if num_classes <= 12 else max(4.0, 528 / num_classes)
    margin = min(160.0, 26 + 6.5 * max(map(len, names))) if labelled else 20.0
    left, top = 36 + margin, 78.0
    canvas.text(30, 34, title, size=18, anchor="start", bold=True)
    canvas.text(30, 56, "Rows: the true class. Columns: what the network said.", anchor="start", fill=FAINT)
    shares_KK = confusion_KK / np.maximum(confusion_KK.sum(axis=1, keepdims=True), 1)
    for row in range(num_classes):
        for column in range(num_classes):
            share, x, y = float(shares_KK[row, column]), left + cell * column, top + cell * row
            canvas.rect(x, y, cell - 1, cell - 1, fill=_shade(share, right=row == column), radius=0)
            if labelled and confusion_KK[row, column]:
                fill = "white" if share > 0.5 else INK
                canvas.text(
                    x + cell / 2, y + cell / 2 + 4, str(confusion_KK[row, column]), size=min(12, cell / 2.2), fill=fill
                )
    for label, name in enumerate(names if labelled else ()):
        clipped = name if len(name) <= 20 else name[:19] + "\N{HORIZONTAL ELLIPSIS}"
        middle = cell * label + cell / 2
        canvas.text(left - 8, top + middle + 4, clipped, size=min(12, cell * 0.6), anchor="end")
        canvas.text(
            left + middle + 4,
            top + cell * num_classes + 10,
            clipped,
            size=min(12, cell * 0.6),
            anchor="end",
            turned=True,
        )
    side = left + cell * num_classes + 30
    return canvas.render(max(side, 40 + 9.5 * len(title)), top + cell * num_classes + margin + 10, title=title)


def _shade(share: float, *, right: bool) -> str:
    """From near white to blue (right) or red (wrong); the root makes single errors visible."""
    light, dark = (246, 248, 250), (33, 113, 181) if right else (203, 24, 29)
    weight = math.sqrt(share)
    return "#" + "".join(f"{round(a + weight * (b - a)):02x}" for a, b in zip(light, dark, strict=True))
