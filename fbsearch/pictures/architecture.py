"""A network's architecture as a table of its parts and as an SVG drawing. Lengths are pixels.

Shapes: C channels, H height, W width.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich.markup import escape as escape_markup
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fbsearch.config.export_file import ExportedConfig
from fbsearch.config.models import ModelConfig
from fbsearch.files import FileKind
from fbsearch.messages import ImageShape
from fbsearch.network.model import STEMS, FractalBrainNet
from fbsearch.network.patterns import generate_pattern
from fbsearch.pictures.maps import color
from fbsearch.pictures.svg import ARROW, FAINT, RULE, Canvas

DRAWING = FileKind("drawing of fbsearch", ARROW.encode())
PANEL = "#f6f8fa"
# Colours of convolutions, by column from the shallowest to the eighth.
COLUMN_COLORS = ("#a6d8d4", "#74bfc4", "#4aa0b5", "#2f7fa3", "#265f8f", "#234479", "#212d5e", "#1a1a40")
JOIN_COLOR, SCALE_COLOR, STRIDE_COLOR, HEAD_COLOR = "#f2a33a", "#7fb069", "#9aa5b1", "#b48ead"
DYNAMICS_COLOR = "#d98880"
NESTS = ("#ffffff", "#eef3f8")
LEAF_HEIGHT, PAD, JOIN_WIDTH, GAP = 22, 6, 8, 5
MASK_PIXELS = 96


@dataclass(frozen=True)
class Layer:
    """One part of a network: output shape without the batch, parameters, FLOPs of one image (a multiply-add is two)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    num_parameters: int
    flops: int


def list_layers(config: ModelConfig, shape: ImageShape) -> list[Layer]:
    """Return the parts of a network in the order of the forward pass, counted on the meta device."""
    with torch.device("meta"), torch.no_grad():
        net = FractalBrainNet.for_images(config, shape).eval()
        parts = dict(_parts(net))
        shapes: dict[str, tuple[int, ...]] = {}

        def remember(name: str, _part: nn.Module, _inputs: object, output: Tensor) -> None:
            shapes[name] = tuple(output.shape[1:])

        for name, part in parts.items():
            part.register_forward_hook(functools.partial(remember, name))
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, shape.in_channels, shape.image_size, shape.image_size))
    counts = {key: int(sum(value.values())) for key, value in counter.get_flop_counts().items()}
    flops = {name: counts.get(f"FractalBrainNet.{name}", 0) for name in parts}
    if "global_attention" in parts:  # the module is never called: the network uses its parameters
        shapes["global_attention"] = (cast("nn.MultiheadAttention", parts["global_attention"]).embed_dim,)
        flops["global_attention"] = counts["Global"] - sum(f for name, f in flops.items() if name != "global_attention")
    return [
        Layer(name, _kind(name, part, net.config), shapes[name], sum(p.numel() for p in part.parameters()), flops[name])
        for name, part in parts.items()
    ]


def _parts(net: FractalBrainNet) -> Iterator[tuple[str, nn.Module]]:
    yield "stem", net.stem
    for i, stage in enumerate(net.fractal_stages):
        for name, part in stage.named_children():
            if not isinstance(part, nn.Identity):
                yield f"fractal_stages.{i}.{name}", part
    for name in ("global_attention", "meta_learner", "classifier"):
        if getattr(net, name) is not None:
            yield name, getattr(net, name)


def _kind(name: str, module: nn.Module, config: ModelConfig) -> str:
    """Describe a part in a few words."""
    if name == "stem":
        kernel_size, stride = STEMS[config.stem]
        scales = "" if config.scale_processor == "none" else ", scale processor"
        halving = ", maximum of 2x2" if config.stem == "pool3" else f", stride {stride}" if stride > 1 else ""
        return f"convolution {kernel_size}x{kernel_size}{halving}{scales}"
    if name.startswith("fractal_stages."):
        _, stage, part = name.split(".")
        level = config.fractal_levels[int(stage)]
        convolutions = "1 convolution" if level == 1 else f"{2**level - 1} convolutions, {2 ** (level - 1)} deep"
        if int(stage) and config.downsample == "stride":
            convolutions += ", stride 2"
        downsample = "maximum of 2x2" if config.downsample == "pool" else "convolution 3x3, stride 2"
        block = f"fractal block, level {level}: {convolutions}"
        return {"0": block, "dynamics": "dynamics module", "1": "scale processor", "2": downsample}[part]
    if isinstance(module, nn.MultiheadAttention):
        return f"attention, {module.num_heads} heads, {config.global_attention}"
    return {"meta_learner": "features + 0.1 * meta(features)", "classifier": "two linear layers"}[name]


def layers_as_dict(layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the parts and their sums as plain values."""
    return {
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "num_parameters": sum(layer.num_parameters for layer in layers),
        "flops": sum(layer.flops for layer in layers),
    }


def layer_table(layers: Sequence[Layer], *, title: str) -> Table:
    """Return the parts as a table to print."""
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
    """Return the SVG of a network: its stages from left to right, each block as a fractal of convolutions.

    `layers` are those of `list_layers` for the same configuration.
    """
    config = exported.model
    canvas = Canvas()
    by_name = {layer.name: layer for layer in layers}
    highest = max(config.fractal_levels)
    leaf_width = max(7.0, min(34.0, 900 / sum(2 ** (level - 1) for level in config.fractal_levels)))
    middle = 178 + max(_block_height(highest), 90) / 2
    bottom = middle + max(_block_height(highest), 90) / 2
    x = _small_part(canvas, 30, middle, bottom, "images", str(exported.shape), "", fill="#e8ecf0")
    x = _small_part(canvas, x, middle, bottom, "stem", *_facts(by_name["stem"]), fill=SCALE_COLOR)
    for stage, level in enumerate(config.fractal_levels):
        parts = [by_name.get(f"fractal_stages.{stage}.{part}") for part in ("0", "dynamics", "1", "2")]
        x = _draw_stage(canvas, x, middle, bottom, stage, level, parts, leaf_width=leaf_width)
    heads = {"global_attention": "attention", "meta_learner": "meta-learner", "classifier": "classifier"}
    for name, label in heads.items():
        if name in by_name:
            x = _small_part(canvas, x, middle, bottom, label, *_facts(by_name[name]), fill=HEAD_COLOR)
    width = max(x + 6, 760)
    _draw_head(canvas, config, layers, title=title, width=width)
    _draw_legend(canvas, bottom + 112, config)
    return canvas.render(width, bottom + 136, title=title)


def _facts(layer: Layer) -> tuple[str, str]:
    return " x ".join(map(str, layer.shape)), f"{short(layer.num_parameters)} parameters"


def short(count: float) -> str:
    """Format a count with three digits, such as 11.6 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _small_part(
    canvas: Canvas, x: float, middle: float, bottom: float, name: str, shape: str, more: str, *, fill: str
) -> float:
    """Draw a part as a box with an arrow to the next part; return the x where that begins."""
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
    """Draw one stage in its panel; return the x where the next part begins."""
    block, dynamics, scale, down = parts
    assert block is not None, "every stage has one"
    block_width = _block_width(level, leaf_width)
    inside = block_width + sum(24 + 26 for part in (dynamics, scale, down) if part)
    width = max(inside + 24, 150)
    top = 150.0
    canvas.rect(x, top, width, bottom + 64 - top, fill=PANEL, stroke=RULE, radius=8)
    canvas.text(x + width / 2, top + 18, f"stage {stage + 1}, level {level}", bold=True)
    at = x + (width - inside) / 2
    _draw_block(canvas, at, middle - _block_height(level) / 2, level, leaf_width, depth=0, column=1)
    at += block_width
    if dynamics:
        at = _arrow(canvas, at, middle)
        for i in range(4):  # four bands, one above the other
            canvas.rect(at, middle - 24 + 13 * i, 26, 9, fill=DYNAMICS_COLOR, radius=2)
        at += 26
    if scale:
        at = _arrow(canvas, at, middle)
        for i, height in enumerate((24, 40, 56)):  # 1x1, 3x3 and 5x5 side by side
            canvas.rect(at + 9 * i, middle - height / 2, 7, height, fill=SCALE_COLOR, radius=2)
        at += 26
    if down:
        at = _arrow(canvas, at, middle)
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
    """Draw the fractal: two blocks of the level below in a row, one convolution under them, and the join of both."""
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
    """Draw the title, the settings that the drawing does not show, and the mask."""
    canvas.text(30, 40, title, size=20, anchor="start", bold=True)
    total, flops = sum(layer.num_parameters for layer in layers), sum(layer.flops for layer in layers)
    lines = [
        f"{total:,} parameters, {flops:,} FLOPs an image",
        f"levels {list(config.fractal_levels)}, {config.base_channels} channels, stem {config.stem}, "
        f"{config.activation}, init {config.init}",
        f"drop-path {config.drop_path} {config.drop_path_prob:g}, dropout {config.dropout:g}, "
        f"attention {config.global_attention}, dynamics {config.dynamics}, {_describe_mask(config)}",
    ]
    for i, line in enumerate(lines):
        canvas.text(30, 66 + 20 * i, line, size=12.5, anchor="start", fill=FAINT)
    if not config.uses_mask:
        return
    mask_HW = generate_pattern(config.pattern, config.pattern_resolution, config.pattern_resolution)
    left = width - 30 - MASK_PIXELS
    canvas.picture(left, 24, MASK_PIXELS, color(mask_HW))
    canvas.text(left + MASK_PIXELS / 2, 136, config.pattern, size=11, fill=FAINT)


def _describe_mask(config: ModelConfig) -> str:
    """Return the mask's pattern and resolution, or that there is none."""
    return f"mask {config.pattern} at {config.pattern_resolution} pixels" if config.uses_mask else "no mask"


def _draw_legend(canvas: Canvas, y: float, config: ModelConfig) -> None:
    """Draw the colours of the parts that the network has."""
    highest, last = max(config.fractal_levels), len(config.fractal_levels) - 1
    entries = [(COLUMN_COLORS[column], f"column {column + 1}") for column in range(highest)]
    if highest > 1:
        entries.append((JOIN_COLOR, "join with learned gates" if config.join == "gates" else "join: mean"))
    if config.dynamics == "last":
        entries.append((DYNAMICS_COLOR, "dynamics module"))
    if config.scale_processor != "none":
        entries.append((SCALE_COLOR, "scale processor 1x1, 3x3, 5x5"))
    if last and config.downsample != "stride":
        entries.append((STRIDE_COLOR, {"conv": "convolution of stride 2", "pool": "maximum of 2x2"}[config.downsample]))
    x = 30.0
    for fill, label in entries:
        canvas.rect(x, y - 10, 14, 12, fill=fill)
        canvas.text(x + 20, y, label, size=11, anchor="start", fill=FAINT)
        x += 40 + 6.2 * len(label)
