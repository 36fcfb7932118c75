"""Analysis of an exported configuration: dimensions near theory, tables of trained and untrained nets, the figures."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from fbsearch.cli.app import main
from fbsearch.config.models import DataConfig, FractalPatternType, ModelConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.errors import ConfigError, DeviceError
from fbsearch.network.model import FractalBrainNet
from fbsearch.pictures.maps import Samples, draw_attention, draw_masks, draw_patterns
from fbsearch.winners.analysis import (
    BoxCount,
    analyze_export,
    compare_dimensions,
    compare_nets,
    count_boxes,
    load_weights,
    neighbour_correlations,
    pick_samples,
    plot_dimensions,
)

EXPORT = """
format: fbsearch-export/1
study: {study}
exported: 2026-11-21T00:00:00Z
versions: {{torch: 2.15.0}}
configs:
- rank: 2
  trial: 7
  value: 0.5
  num_parameters: 1
  num_classes: 10
  in_channels: 1
  image_size: 8
  seed: 3
  data: {{name: digits, limit: 120}}
  model: {{fractal_levels: [1, 2], base_channels: 4, pattern: julia, pattern_resolution: 16}}
  train: {{epochs: 2, batch_size: 32}}
"""
SHAPE = {"in_channels": 1, "image_size": 8}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "best.yaml"
    path.write_text(EXPORT.format(study="tiny"), encoding="utf-8")
    return path


def make_net(**fields: object) -> FractalBrainNet:
    torch.manual_seed(0)
    config = {"fractal_levels": (1, 2), "base_channels": 4, "pattern": "julia", "pattern_resolution": 16}
    return FractalBrainNet(ModelConfig.model_validate(config | fields), **SHAPE)


def analyze(file: Path, **fields: object):
    said: list[str] = []
    wanted = {"rank": 2, "num_images": 3, "output": file.parent / "out", "checkpoint": None, "device": "cpu"}
    return analyze_export(file, **wanted | fields, say=said.append), said


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def shown(*tables: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(*tables)
    return capture.get()


# Dimensions


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


# Comparing nets


def test_neighbour_correlations_have_the_hierarchys_mean():
    torch.manual_seed(1)
    analysis = make_net(fractal_levels=(1, 1, 1)).analyze_fractal_patterns(torch.randn(5, 1, 8, 8))
    found = list(neighbour_correlations(analysis["attention_maps"]))
    assert len(found) == 2
    assert np.mean(found) == pytest.approx(analysis["hierarchical_organization"]["correlation"], abs=1e-5)


def test_neighbour_correlation_of_a_constant_map_is_0():
    assert list(neighbour_correlations([torch.rand(2, 1, 4, 4), torch.ones(2, 1, 2, 2)])) == [0]


def test_comparison_shows_each_stage_and_the_hierarchy():
    torch.manual_seed(1)
    x = torch.randn(4, 1, 8, 8)
    trained, untrained = (make_net(pattern=pattern).analyze_fractal_patterns(x) for pattern in ("julia", "cantor"))
    lines = [line.split() for line in shown(compare_nets(trained, untrained)).splitlines()]
    figures = [untrained["pattern_complexity"][0], trained["pattern_complexity"][0], math.log(16)]
    assert lines[2][:7] == ["1", "4", "x", "4", *(f"{figure:.3f}" for figure in figures)]
    assert len(lines[2]) == 9
    assert len(lines[3]) == 7  # the last stage has no next one
    scores = [one["hierarchical_organization"]["hierarchy_score"] for one in (untrained, trained)]
    assert lines[4] == ["hierarchy", "score", *(f"{score:.3f}" for score in scores)]


# Pictures


def test_masks_picture_shows_each_stages_bands(tmp_path):
    net = make_net(pattern="sierpinski", pattern_resolution=8, base_channels=8)
    draw_masks(tmp_path / "new" / "masks.png", net, image_size=8)
    pixels = pixels_of(tmp_path / "new" / "masks.png")
    # Sierpinski's 27 of 64 pixels: bright in alpha, dark in beta; at 8 x 8 a tile's square is 14 pixels.
    brightest = (pixels == [252, 253, 191]).all(axis=2).sum()
    assert brightest >= (27 + 27 + 37) * 14 * 14


@pytest.mark.parametrize("stem", ["conv3", "conv7"])
def test_masks_picture_has_the_sizes_that_the_stages_see(tmp_path, stem):
    net = make_net(stem=stem, fractal_levels=(1, 1))
    seen = []
    for stage in net.fractal_stages:
        stage[0].register_forward_pre_hook(lambda _block, args: seen.append(args[0].shape[-1]))
    sides = []
    net.mask.register_forward_pre_hook(lambda _mask, args: sides.append(args[0].shape[-1]))
    net.eval()(torch.zeros(1, 1, 9, 9))
    sides.clear()
    draw_masks(tmp_path / "masks.png", net, image_size=9)
    assert sides == seen


def make_samples(count: int, channels: int = 1) -> Samples:
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
    names = ("a [b] <i>", "x" * 300, *"cdefghij")
    return Samples(torch.randn(count + 2, channels, 8, 8), images_NHWC, names[:count], names)


def test_attention_picture_has_a_row_an_image_and_a_column_a_map(tmp_path):
    net, samples = make_net(), make_samples(2)
    analysis = net.analyze_fractal_patterns(samples.x_BCHW)
    path, shapes = tmp_path / "attention.png", []
    for nets in (2, 3):
        draw_attention(path, net, samples, [("trained", analysis)] * nets)
        shapes.append(pixels_of(path).shape)
    assert shapes[1][1] - shapes[0][1] == 2 * 124  # two stages more
    draw_attention(path, net, make_samples(3), [("trained", analysis)] * 2)
    assert pixels_of(path).shape[0] - shapes[0][0] == 124


def test_attention_picture_of_a_constant_map_is_dark(tmp_path):
    net, samples = make_net(), make_samples(1)
    flat = net.analyze_fractal_patterns(samples.x_BCHW) | {"attention_maps": [torch.full((3, 1, 4, 4), 7.0)]}
    draw_attention(tmp_path / "attention.png", net, samples, [("flat", flat)])
    pixels = pixels_of(tmp_path / "attention.png")
    assert (pixels == [0, 0, 4]).all(axis=2).sum() >= 112 * 112


def test_patterns_picture_has_the_five_side_by_side(tmp_path):
    draw_patterns(tmp_path / "patterns.png", size=64)
    assert pixels_of(tmp_path / "patterns.png").shape == (64 + 24 + 28, 5 * (64 + 12) + 12, 3)


# An export


def test_samples_are_validation_images_spread_over_the_split():
    data = load_dataset(DataConfig(name="digits"), with_test=False)
    samples = pick_samples(data, 4)
    assert samples.images_NHWC.shape == (4, 8, 8, 1)
    assert 256 <= len(samples.x_BCHW) <= 260
    val_NHWC = data.val.images_NCHW.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(samples.images_NHWC[0], val_NHWC[0])
    assert np.array_equal(samples.images_NHWC[3], val_NHWC[-1])
    assert samples.labels[3] == data.info.class_names[int(data.val.labels_N[-1])]
    assert torch.equal(samples.x_BCHW[:1], data.normalise(data.val.images_NCHW[:1]))
    assert len(pick_samples(data, 10**6).labels) == len(data.val.labels_N)


def test_analyze_trains_first_and_writes_the_figures(export):
    found, said = analyze(export)
    assert [path.name for path in found.paths] == ["attention.png", "masks.png", "dimension.html"]
    assert all(path.parent == export.parent / "out" and path.stat().st_size > 1000 for path in found.paths)
    assert said[0] == "an export holds no weights: training rank 2 (trial 7) first"
    assert [line.split(":")[0] for line in said[1:]] == ["epoch 1/2", "epoch 2/2", "untrained", "trained"]
    assert said[4].removeprefix("trained") == said[2].removeprefix("epoch 2/2")
    html = found.paths[2].read_text(encoding="utf-8")
    assert "Plotly.newPlot" in html
    assert re.search(r'<(script|link)[^>]*(src|href)="http', html) is None
    assert shown(*found.tables).count("julia") == 2


def test_analyze_same_seed_gives_the_same_pictures(export):
    first, _ = analyze(export, output=export.parent / "1")
    second, _ = analyze(export, output=export.parent / "2")
    for one, other in zip(first.paths[:2], second.paths[:2], strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_analyze_checkpoint_is_loaded_instead_of_training(export):
    path = export.parent / "weights.pt"
    torch.save(make_net().state_dict(), path)
    _, said = analyze(export, checkpoint=path)
    assert [line.split(":")[0] for line in said] == ["untrained", "trained"]


@pytest.mark.parametrize(("name", "save"), [("weights.pt", torch.save), ("weights.safetensors", save_file)])
def test_load_weights_gives_the_saved_net(tmp_path, name, save):
    saved, net = make_net(), make_net(init="reference")
    save({key: value.contiguous() for key, value in saved.state_dict().items()}, tmp_path / name)
    load_weights(net, tmp_path / name)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(net.eval()(x), saved.eval()(x))


# Bad input


def test_checkpoint_that_cannot_be_used_names_it(tmp_path):
    def message(name: str, content: object) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ConfigError) as caught:
            load_weights(make_net(), path)
        return str(caught.value).removeprefix(f"--checkpoint {path}: ")

    state = make_net().state_dict()
    torch.save(state, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    no_checkpoint = "is no state dict, or is cut off"
    assert message("none.pt", None) == "cannot be read: No such file or directory"
    assert message("none.safetensors", None) == "cannot be read: No such file or directory"
    assert message("text.pt", b"hello") == message("empty.pt", b"") == no_checkpoint
    assert message("text.safetensors", b"hello") == message("empty.safetensors", b"") == no_checkpoint
    assert message("cut.pt", whole[: len(whole) // 2]) == no_checkpoint
    assert message("net.pt", make_net()) == no_checkpoint  # a pickled object is not unpickled
    assert message("list.pt", [1, 2]).startswith("does not fit this configuration's net: ")
    assert "size mismatch" in message("shape.pt", make_net(base_channels=8).state_dict())
    less = {key: value for key, value in state.items() if key != "classifier.1.bias"}
    assert "classifier.1.bias" in message("less.pt", less)
    assert "surplus" in message("more.pt", state | {"surplus": torch.ones(1)})


def test_rank_that_is_not_there_lists_what_is(export):
    with pytest.raises(ConfigError, match=r"--rank 1: .*best.yaml has no such rank; it has: 2"):
        analyze(export, rank=1)


def test_output_that_cannot_be_written_is_said_before_training(export):
    with pytest.raises(ConfigError, match=r"--output .*best.yaml/x: cannot be written: Not a directory"):
        analyze(export, output=export / "x")


def test_device_that_is_not_there_says_so(export):
    with pytest.raises(DeviceError, match="--device tpu"):
        analyze(export, device="tpu")


@pytest.mark.parametrize(
    ("study", "folder"), [("tiny", "tiny"), ("../../up", "_.._up"), ("a b/c", "a_b_c"), ("'..'", "study")]
)
def test_command_writes_below_reports_whatever_the_study_is_called(export, study, folder, monkeypatch, capsys):
    export.write_text(EXPORT.format(study=study).replace("epochs: 2", "epochs: 1"), encoding="utf-8")
    work = export.parent / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["fbsearch", "analyze", str(export), "--rank", "2", "--images", "1"])
    with pytest.raises(SystemExit) as caught:
        main()
    output, errors = capsys.readouterr()
    assert (caught.value.code or 0, errors) == (0, "")
    assert {path.relative_to(work).parent for path in work.rglob("*.*") if path.is_file()} == {
        Path("reports", folder, "analysis")
    }
    for word in ("complexity", "hierarchy score", "dimension", "validation accuracy", "attention.png: written"):
        assert word in output


def test_command_file_that_is_no_export_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.yaml").write_text(json.dumps({"name": "a study"}))
    monkeypatch.setattr(sys, "argv", ["fbsearch", "analyze", str(tmp_path / "x.yaml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "it is no export" in capsys.readouterr().err
