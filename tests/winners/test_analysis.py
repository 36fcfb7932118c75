"""Analysis of an exported configuration: tables of trained and untrained nets, the figures, and what is refused."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from fbsearch.cli.app import main
from fbsearch.config.models import DataConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.errors import ConfigError, DeviceError
from fbsearch.winners.analysis import analyze_export, compare_nets, load_weights, pick_samples
from tests.pictures.test_maps import make_net

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


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "best.yaml"
    path.write_text(EXPORT.format(study="tiny"), encoding="utf-8")
    return path


def analyze(file: Path, **fields: object):
    said: list[str] = []
    wanted = {"rank": 2, "num_images": 3, "output": file.parent / "out", "checkpoint": None, "device": "cpu"}
    return analyze_export(file, **wanted | fields, say=said.append), said


def shown(*tables: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(*tables)
    return capture.get()


# Comparing nets


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
    no_checkpoint = "is not a state dict, or is truncated"
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
    with pytest.raises(ConfigError, match=r"--rank 1: .*best.yaml holds the ranks 2"):
        analyze(export, rank=1)


def test_output_that_cannot_be_written_is_said_before_training(export):
    with pytest.raises(ConfigError, match=r"--output .*best.yaml/x: cannot be written: Not a directory"):
        analyze(export, output=export / "x")


def test_device_that_is_not_there_says_so(export):
    with pytest.raises(DeviceError, match="--device tpu"):
        analyze(export, device="tpu")


@pytest.mark.parametrize(
    ("study", "folder"),
    [
        ("tiny", "tiny"),
        ("../../up", "_.._up~29b18949100a"),
        ("a b/c", "a_b_c~539138d51839"),
        ("'..'", "study~5ec1f7e700f3"),
    ],
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
