"""From an exported configuration to its analysis: data, the net with its weights, tables and figures.

Knows nothing of searches. The test split is not even loaded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.colors
import plotly.graph_objects as go
from rich.table import Table

from fbsearch.config.models import FractalPatternType
from fbsearch.network.patterns import generate_pattern

if TYPE_CHECKING:
    from torch import Tensor

    from fbsearch.network.model import FractalBrainNet, PatternAnalysis

from collections.abc import Callable

import torch
from safetensors.torch import load_file

from fbsearch.config.export_file import Export, ExportedConfig, load_export
from fbsearch.config.models import TrialConfig
from fbsearch.data.dataset import Dataset, evenly_spaced_rows, load_dataset
from fbsearch.errors import ConfigError
from fbsearch.files import file_name
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures.maps import Samples, draw_attention, draw_masks
from fbsearch.training.devices import choose_device
from fbsearch.training.loop import evaluate, train

# So many validation images give the figures of the tables; fewer are drawn.
NUM_ANALYSED = 256


@dataclass(frozen=True)
class Analysis:
    """Tables to show and the files that were written."""

    tables: tuple[Table, ...]
    paths: tuple[Path, ...]


def analyze_export(
    file: Path,
    *,
    rank: int,
    num_images: int,
    output: Path | None,
    checkpoint: Path | None,
    device: str,
    say: Callable[[str], None],
) -> Analysis:
    """Analyse one configuration of an export on validation images; the figures go to the folder `output`.

    The net is trained for its epochs as a trial is, or gets the weights in `checkpoint`; it is compared with a net of
    the same shape and seed that was not trained. `say` gets a line for each step.
    Raises ConfigError for files that cannot be used, DataError and DeviceError as their loaders do.
    """
    export = load_export(file)
    config = _pick(export, rank, file=file)
    folder = output or Path("reports") / file_name(export.study) / "analysis"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be written: {error.strerror}") from None
    data = load_dataset(config.data, device=choose_device(device), with_test=False, on_progress=say)
    untrained, net = _build(config, data), _build(config, data)
    if checkpoint is None:
        _train(net, config, data, say)
    else:
        load_weights(net, checkpoint)
    for name, one in (("untrained", untrained), ("trained", net)):
        say(f"{name}: {evaluate(one, data, data.val)[1]:.2%} validation accuracy")
    return _write(folder, net, untrained, data, num_images=num_images)


def load_weights(net: FractalBrainNet, path: Path) -> None:
    """Load a state dict, as safetensors or as torch.save wrote it; nothing is unpickled. ConfigError if it is none."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"--checkpoint {path}: cannot be read: {error.strerror}") from None
    try:
        is_safe = path.suffix == ".safetensors"
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors have each their own
        raise ConfigError(f"--checkpoint {path}: is no state dict, or is cut off") from error
    try:
        net.load_state_dict(content)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"--checkpoint {path}: does not fit this configuration's net: {error}") from error


def _pick(export: Export, rank: int, *, file: Path) -> ExportedConfig:
    for config in export.configs:
        if config.rank == rank:
            return config
    ranks = ", ".join(str(config.rank) for config in export.configs)
    raise ConfigError(f"--rank {rank}: {file} has no such rank; it has: {ranks}")


def _build(config: ExportedConfig, data: Dataset) -> FractalBrainNet:
    """The net that a trial of this configuration starts from."""
    torch.manual_seed(config.seed)
    return FractalBrainNet.for_images(config.model, data.info.shape).to(data.mean_C.device)


def _train(net: FractalBrainNet, config: ExportedConfig, data: Dataset, say: Callable[[str], None]) -> None:
    say(f"an export holds no weights: training rank {config.rank} (trial {config.trial}) first")
    trial = TrialConfig(data=config.data, model=config.model, train=config.train, seed=config.seed)
    for stats in train(net, trial, data):
        say(f"epoch {stats.epoch}/{config.train.epochs}: {stats.val_accuracy:.2%} validation accuracy")


def _write(
    folder: Path, trained: FractalBrainNet, untrained: FractalBrainNet, data: Dataset, *, num_images: int
) -> Analysis:
    samples = pick_samples(data, num_images)
    before, after = (net.analyze_fractal_patterns(samples.x_BCHW) for net in (untrained, trained))
    config, info = trained.config, data.info
    paths = tuple(folder / name for name in ("attention.png", "masks.png", "dimension.html"))
    draw_attention(paths[0], trained, samples, [("trained", after), ("untrained", before)])
    draw_masks(paths[1], trained, image_size=info.image_size)
    plot_dimensions(config.pattern, config.pattern_resolution).write_html(paths[2], include_plotlyjs=True)
    tables = compare_nets(after, before), compare_dimensions(config.pattern, config.pattern_resolution)
    return Analysis(tables, paths)


def pick_samples(data: Dataset, num_images: int) -> Samples:
    """Validation images spread evenly over the split: NUM_ANALYSED, or all; of them `num_images` to be drawn."""
    num_val = len(data.val.labels_N)
    drawn, analysed = evenly_spaced_rows(num_val, num_images), evenly_spaced_rows(num_val, NUM_ANALYSED)
    others = analysed[~torch.isin(analysed, drawn)]
    rows = torch.cat([drawn, others]).to(data.val.labels_N.device)
    images_NCHW, labels_N = data.val.images_NCHW[rows], data.val.labels_N[rows]
    names = data.info.class_names
    return Samples(
        x_BCHW=data.normalise(images_NCHW),
        images_NHWC=images_NCHW[: len(drawn)].permute(0, 2, 3, 1).cpu().numpy(),
        labels=tuple(names[int(label)] for label in labels_N[: len(drawn)]),
        class_names=names,
    )


DIMENSION_PIXELS = 512
# What the specification says of the limit sets; it gives no value for Mandelbrot and Julia.
THEORETICAL_DIMENSIONS = {
    FractalPatternType.SIERPINSKI: math.log(3, 2),
    FractalPatternType.CANTOR: math.log(4, 3),
    FractalPatternType.DRAGON_CURVE: 2.0,
}


@dataclass(frozen=True)
class BoxCount:
    """How many boxes of a grid a set touches, for grids of more and more boxes a side."""

    boxes_per_side: tuple[int, ...]
    num_touched: tuple[int, ...]

    @property
    def num_fitted(self) -> int:
        """How many of the grids, the finest, give the slope: half. The dimension is a limit for small boxes."""
        return max(2, (len(self.boxes_per_side) + 1) // 2)

    @property
    def fit(self) -> tuple[float, float]:
        """Slope and intercept of log(touched) over log(boxes a side); the slope is the dimension's estimate.

        Not a number where fewer than two grids touch anything.
        """
        if len(self.boxes_per_side) < 2 or not min(self.num_touched):
            return math.nan, math.nan
        sides, touched = self.boxes_per_side[-self.num_fitted :], self.num_touched[-self.num_fitted :]
        slope, intercept = np.polyfit(np.log(sides), np.log(touched), 1)
        return float(slope), float(intercept)


def count_boxes(pattern: FractalPatternType, size: int) -> BoxCount:
    """Count the boxes that a pattern's set touches at `size` x `size` pixels: the pixels whose mask is 1.

    Boxes a side are the powers of 2 (of Cantor, which divides in three, of 3) from the first up to the pixels a side.
    A pixel lies in the box in which its centre lies.
    """
    base = 3 if pattern is FractalPatternType.CANTOR else 2
    rows, columns = np.nonzero(generate_pattern(pattern, size, size) == 1)
    sides = tuple(base**power for power in range(1, 1 + int(math.log(size, base) + 1e-9)))
    box_rows, box_columns = ([(2 * index + 1) * side // (2 * size) for side in sides] for index in (rows, columns))
    pairs = zip(sides, box_rows, box_columns, strict=True)
    return BoxCount(sides, tuple(len(np.unique(row * side + column)) for side, row, column in pairs))


def plot_dimensions(pattern: FractalPatternType, resolution: int) -> go.Figure:
    """Box counts of the five masks at DIMENSION_PIXELS with their fitted slopes; of `pattern` also at `resolution`."""
    figure = go.Figure()
    for line_color, kind in zip(plotly.colors.qualitative.D3, FractalPatternType, strict=False):
        count = count_boxes(kind, DIMENSION_PIXELS)
        slope, intercept = count.fit
        theory = f" (theory {THEORETICAL_DIMENSIONS[kind]:.3f})" if kind in THEORETICAL_DIMENSIONS else ""
        marker = {"color": line_color, "size": 9 if kind is pattern else 6}
        line = {"color": line_color, "width": 3 if kind is pattern else 1}
        fitted = np.array(count.boxes_per_side[-count.num_fitted :])
        figure.add_scatter(
            x=count.boxes_per_side, y=count.num_touched, mode="markers", marker=marker, legendgroup=kind.value,
            name=f"{kind.value}: {slope:.3f}{theory}",
        )  # fmt: skip
        figure.add_scatter(
            x=fitted, y=np.exp(intercept) * fitted**slope, mode="lines", line=line, legendgroup=kind.value,
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        if kind is pattern:
            own = count_boxes(kind, resolution)
            hollow = {"color": line_color, "size": 14, "symbol": "circle-open", "line": {"width": 2}}
            name = f"{kind.value} at the net's {resolution} x {resolution}: {own.fit[0]:.3f}"
            figure.add_scatter(x=own.boxes_per_side, y=own.num_touched, mode="markers", marker=hollow, name=name)
    axis = {"type": "log", "dtick": 1, "exponentformat": "power", "minor": {"showgrid": True}}
    figure.update_layout(
        template="plotly_white",
        title=f"Box-counting dimension of the masks, {DIMENSION_PIXELS} x {DIMENSION_PIXELS}: slope of the finer half",
        xaxis=axis | {"title": "boxes a side"},
        yaxis=axis | {"title": "boxes that the set touches"},
        legend={"x": 0.02, "y": 0.98, "bgcolor": "rgba(255,255,255,0.8)"},
        width=900,
        height=600,
    )
    return figure


def compare_nets(trained: "PatternAnalysis", untrained: "PatternAnalysis") -> Table:
    """Complexity and hierarchy of each stage, before and after training."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("\nstage", "\nmap"):
        table.add_column(column, header_style="dim", no_wrap=True)
    for column in ("complexity\nuntrained", "\ntrained", "\nlargest", "like the next\nuntrained", "\ntrained"):
        table.add_column(column, header_style="dim", justify="right")
    similarities = [[*neighbour_correlations(one["attention_maps"]), None] for one in (untrained, trained)]
    for stage, map_B1HW in enumerate(trained["attention_maps"]):
        height, width = map_B1HW.shape[-2:]
        entropies = [one["pattern_complexity"][stage] for one in (untrained, trained)]
        alike = ["" if values[stage] is None else f"{values[stage]:.3f}" for values in similarities]
        cells = [*(f"{entropy:.3f}" for entropy in entropies), f"{math.log(height * width):.3f}", *alike]
        table.add_row(str(stage + 1), f"{height} x {width}", *cells)
    scores = [one["hierarchical_organization"]["hierarchy_score"] for one in (untrained, trained)]
    table.add_row("hierarchy score", "", "", "", "", *(f"{score:.3f}" for score in scores))
    return table


def neighbour_correlations(maps: "Sequence[Tensor]") -> Iterator[float]:
    """Pearson's correlation of each stage's map [B, 1, h, w] with the next one's resized to it, mean over the batch.

    A constant map correlates with nothing: 0. The mean of these is `hierarchical_organization`'s.
    """
    import torch

    for above_B1HW, below_B1HW in pairwise(maps):
        size = above_B1HW.shape[-2:]
        resized_B1HW = torch.nn.functional.interpolate(below_B1HW, size=size, mode="bilinear", align_corners=False)
        pairs_B2N = torch.cat([above_B1HW, resized_B1HW], dim=1).double().flatten(2)
        yield torch.stack([pair_2N.corrcoef()[0, 1].nan_to_num(0) for pair_2N in pairs_B2N]).mean().item()


def compare_dimensions(pattern: FractalPatternType, resolution: int) -> Table:
    """Box-counting dimensions of the five masks, and of `pattern` at the resolution at which a net has it."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("pattern", "pixels", "dimension", "in theory"):
        table.add_column(column, header_style="dim", justify="left" if column == "pattern" else "right")
    for kind, size in [*((kind, DIMENSION_PIXELS) for kind in FractalPatternType), (pattern, resolution)]:
        slope = count_boxes(kind, size).fit[0]
        theory = THEORETICAL_DIMENSIONS.get(kind)
        mark = " (this net's)" if size == resolution and kind is pattern else ""
        cells = [f"{size} x {size}", "-" if math.isnan(slope) else f"{slope:.3f}", f"{theory:.3f}" if theory else "-"]
        table.add_row(kind.value + mark, *cells)
    return table
