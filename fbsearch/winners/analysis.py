"""From an exported configuration to its analysis: data, the net with its weights, tables and figures.

Knows nothing of searches. The test split is not even loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import load_file

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import Export, ExportedConfig, load_export
from fbsearch.data.dataset import Dataset, evenly_spaced_rows, load_dataset
from fbsearch.errors import ConfigError
from fbsearch.files import file_name
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures.maps import (
    Samples,
    compare_dimensions,
    compare_nets,
    draw_attention,
    draw_masks,
    plot_dimensions,
)
from fbsearch.training.loop import choose_device, evaluate, train

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
    info = data.info
    shape = {"num_classes": info.num_classes, "in_channels": info.in_channels, "image_size": info.image_size}
    torch.manual_seed(config.seed)
    return FractalBrainNet(config.model, **shape).to(data.mean_C.device)


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
