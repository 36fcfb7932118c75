"""Analysis of an exported configuration: its trained network beside the untrained one, as tables and figures."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import load_file

from fbsearch.config.export_file import ExportedConfig, load_export
from fbsearch.config.models import FractalPatternType, TrialConfig
from fbsearch.data.dataset import Dataset, evenly_spaced_rows, load_dataset
from fbsearch.errors import ConfigError
from fbsearch.files import file_name, write_whole
from fbsearch.network.analysis import PatternAnalysis, correlate_neighbours
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures.dimensions import compare_dimensions, plot_dimensions
from fbsearch.pictures.maps import Samples, draw_attention, draw_masks
from fbsearch.training.devices import choose_device
from fbsearch.training.evaluation import evaluate
from fbsearch.training.loop import train
from fbsearch.winners.checkpoint import build_net, choose_config

# The number of validation images that the tables are computed from; fewer are drawn.
NUM_ANALYSED = 256


@dataclass(frozen=True)
class Analysis:
    """The tables to print and the files that were written."""

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
    """Analyse one configuration of an export on validation images and write the figures to the folder `output`.

    The network is trained as a trial is, or gets the weights in `checkpoint`, and is compared with an untrained one of
    the same seed. The test split is not loaded. `say` gets a line for each step.
    Raises ConfigError for files that cannot be used, DataError and DeviceError as the loaders do.
    """
    export = load_export(file)
    config = choose_config(export, file, rank=rank)
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
    """Load a state dict, as safetensors or as torch.save wrote it; nothing is unpickled. ConfigError for others."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"--checkpoint {path}: cannot be read: {error.strerror}") from None
    try:
        is_safe = path.suffix == ".safetensors"
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own
        raise ConfigError(f"--checkpoint {path}: is not a state dict, or is truncated") from error
    try:
        net.load_state_dict(content)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"--checkpoint {path}: does not fit this configuration's net: {error}") from error


def _build(config: ExportedConfig, data: Dataset) -> FractalBrainNet:
    """Build the network that a trial of this configuration starts from."""
    torch.manual_seed(config.seed)
    return build_net(config).to(data.mean_C.device)


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
    if not config.uses_mask:
        return Analysis((compare_nets(after, before),), paths[:1])
    draw_masks(paths[1], trained, image_size=info.image_size)
    pattern = FractalPatternType(config.pattern)
    page = plot_dimensions(pattern, config.pattern_resolution).to_html(include_plotlyjs=True)
    write_whole(paths[2], page, way_out="")
    tables = compare_nets(after, before), compare_dimensions(pattern, config.pattern_resolution)
    return Analysis(tables, paths)


def pick_samples(data: Dataset, num_images: int) -> Samples:
    """Pick NUM_ANALYSED validation images (or all), spread evenly over the split, `num_images` of which are drawn."""
    num_val = len(data.val.labels_N)
    drawn, analysed = evenly_spaced_rows(num_val, num_images), evenly_spaced_rows(num_val, NUM_ANALYSED)
    others = analysed[~torch.isin(analysed, drawn)]
    rows = torch.cat([drawn, others])
    images_NCHW, labels_N = (values[rows.to(values.device)] for values in (data.val.images_NCHW, data.val.labels_N))
    images_NCHW = images_NCHW.to(data.device)
    names = data.info.class_names
    return Samples(
        x_BCHW=data.normalise(images_NCHW),
        images_NHWC=images_NCHW[: len(drawn)].permute(0, 2, 3, 1).cpu().numpy(),
        labels=tuple(names[int(label)] for label in labels_N[: len(drawn)]),
        class_names=names,
    )


def compare_nets(trained: PatternAnalysis, untrained: PatternAnalysis) -> Table:
    """Return a table of complexity and hierarchy of each stage, before and after training."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("\nstage", "\nmap"):
        table.add_column(column, header_style="dim", no_wrap=True)
    for column in ("complexity\nuntrained", "\ntrained", "\nlargest", "like the next\nuntrained", "\ntrained"):
        table.add_column(column, header_style="dim", justify="right")
    similarities = [[*correlate_neighbours(one["attention_maps"]), None] for one in (untrained, trained)]
    for stage, map_B1HW in enumerate(trained["attention_maps"]):
        height, width = map_B1HW.shape[-2:]
        entropies = [one["pattern_complexity"][stage] for one in (untrained, trained)]
        alike = ["" if values[stage] is None else f"{values[stage]:.3f}" for values in similarities]
        cells = [*(f"{entropy:.3f}" for entropy in entropies), f"{math.log(height * width):.3f}", *alike]
        table.add_row(str(stage + 1), f"{height} x {width}", *cells)
    scores = [one["hierarchical_organization"]["hierarchy_score"] for one in (untrained, trained)]
    table.add_row("hierarchy score", "", "", "", "", *(f"{score:.3f}" for score in scores))
    return table
