"""The drawings are well-formed SVG that shows what it is given, and the table of parts agrees with what nets cost."""

import dataclasses
import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from fbsearch.cli.app import main
from fbsearch.config.export_file import Export, ExportedConfig, dump_export
from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig
from fbsearch.messages import EpochStats, ImageShape
from fbsearch.pictures.architecture import COLUMN_COLORS, JOIN_COLOR, draw_architecture, list_layers
from fbsearch.pictures.training_charts import draw_confusion, draw_curves, nice_ticks
from fbsearch.training.requirements import measure_cost

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert(1)</script> & \"quotes' \x00\udcff"


def make_config(**model: object) -> ExportedConfig:
    values = {"base_channels": 8, "stem": "conv3", "pattern_resolution": 8} | model
    return ExportedConfig(
        rank=1, trial=0, value=0.9, num_parameters=1, num_classes=10, in_channels=3, image_size=16, seed=0,
        data=DataConfig(), model=ModelConfig.model_validate(values), train=TrainConfig(),
    )  # fmt: skip


def layers_of(config: ExportedConfig):
    return list_layers(config.model, ImageShape(num_classes=10, in_channels=3, image_size=16))


def fills(svg: str) -> list[str]:
    return [rect.get("fill", "") for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect")]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def history_of(*losses: float, val: float = 1.0) -> list[EpochStats]:
    zero = EpochStats(0, *([0.5] * 10))
    return [
        dataclasses.replace(zero, epoch=i, train_loss=loss, val_loss=val, val_accuracy=val)
        for i, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    "model",
    [
        {"fractal_levels": (1,), "global_attention": "none", "continuous_learning": False},
        {"fractal_levels": (2, 3), "global_attention": "pooled"},
        {"fractal_levels": (1, 2, 1), "stem": "conv7", "activation": "maxout"},
    ],
)
def test_layers_add_up_to_what_the_net_costs(model: dict[str, object]) -> None:
    config = make_config(**model)
    layers = layers_of(config)
    cost = measure_cost(config.model, ImageShape(num_classes=10, in_channels=3, image_size=16))
    assert sum(layer.num_parameters for layer in layers) == cost.num_parameters
    assert sum(layer.flops for layer in layers) == cost.flops
    assert all(layer.flops > 0 and layer.num_parameters > 0 for layer in layers)
    assert layers[-1].shape == (10,) and ("attention" in str(layers)) == (model.get("global_attention") != "none")


@pytest.mark.slow
@pytest.mark.parametrize("levels", [(1,), (2, 3), (8, 1)])
def test_architecture_has_one_bar_for_each_convolution_and_join(levels: tuple[int, ...]) -> None:
    config = make_config(fractal_levels=levels)
    svg = draw_architecture(config, layers_of(config), title=HOSTILE)
    found = fills(svg)
    legend = max(levels)
    assert sum(color in COLUMN_COLORS for color in found) == sum(2**level - 1 for level in levels) + legend
    assert found.count(JOIN_COLOR) == sum(2 ** (level - 1) - 1 for level in levels) + (max(levels) > 1)
    assert "<script" not in svg and any("<script>alert(1)</script> & \"quotes'" in text for text in texts(svg))
    for stage, level in enumerate(levels, start=1):
        assert f"stage {stage}, level {level}" in texts(svg)


@pytest.mark.parametrize("val", [1.0, math.nan])
@pytest.mark.parametrize("losses", [(1.0,), (2.0, 1.0, 0.5), (0.7, 0.7)])
def test_curves_have_a_line_for_each_split_there_is(losses: tuple[float, ...], val: float) -> None:
    svg = draw_curves(history_of(*losses, val=val), title=HOSTILE, caption="no overfitting")
    assert ("validation" in texts(svg)) == (not math.isnan(val)) and "nan" not in svg
    dots = list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))
    assert len(dots) == 2 * len(losses) * (1 if math.isnan(val) else 2)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_confusion_names_classes_and_counts_where_there_is_room(num_classes: int) -> None:
    confusion_KK = np.eye(num_classes, dtype=np.int64) * 1234
    names = [f"{HOSTILE}{k}" for k in range(num_classes)]
    svg = draw_confusion(confusion_KK, names, title="a, b")
    assert len(fills(svg)) == num_classes**2 + 1
    assert texts(svg).count("1234") == (num_classes if num_classes <= 30 else 0)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.5, 0.5), (1, 2), (0.013, 0.0131), (0, 0), (1, 300), (-3, 7)])
def test_nice_ticks_are_few_and_reach_both_ends(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and ticks == sorted(set(ticks)) and len(ticks) <= 8


def test_summary_command_shows_a_table_json_and_a_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(fractal_levels=(1, 2))
    export = Export.model_validate(
        {"study": "s", "exported": "2026-11-20T12:00:00Z", "versions": {}, "configs": [config]}, strict=False
    )
    (tmp_path / "best.yaml").write_text(dump_export(export))

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fbsearch", "summary", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code or 0, *capsys.readouterr()

    plot = tmp_path / "drawings" / "net.svg"
    code, output, errors = run(tmp_path / "best.yaml", "--plot", plot)
    assert (code, errors) == (0, "") and "fractal_stages.1.0" in output and str(plot.name) in output
    assert "s, rank 1" in texts(plot.read_text())
    assert run(tmp_path / "best.yaml", "--plot", plot)[0] == 0, "over its own kind"
    plot.write_text("mine")
    assert run(tmp_path / "best.yaml", "--plot", plot)[0] == 1 and plot.read_text() == "mine"
    code, output, _ = run(tmp_path / "best.yaml", "--json")
    cost = measure_cost(config.model, ImageShape(num_classes=10, in_channels=3, image_size=16))
    found = json.loads(output)
    assert (found["num_parameters"], found["flops"]) == (cost.num_parameters, cost.flops)
    assert run(tmp_path / "best.yaml", "--rank", 2)[0] == 1
