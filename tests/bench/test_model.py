"""Benchmarks on nets of milliseconds: what is timed, in which order, what is counted, and what is said of bad input."""

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch._dynamo import lookup_backend

from fbsearch.bench.common import Timing, format_figure, interleave, machine, make_table
from fbsearch.bench.model import PEAK_SIZES, bench_model, print_model_bench
from fbsearch.bench.networks import NETS, OURS, choose_net, load_implementations, our_implementations
from fbsearch.bench.step import Subject
from fbsearch.cli.app import main
from fbsearch.errors import ConfigError, DeviceError
from fbsearch.network.model import SIZES, FractalBrainNet

# Ours through a file, as any other implementation: with our class, or behind the public reference's arguments.
SAME = "from fbsearch.network.model import FractalBrainNet, FractalPatternType, create_fractal_brain_net"
REFERENCE_LIKE = """
from enum import Enum
from fbsearch.config.models import ModelConfig
from fbsearch.network import model

class FractalPatternType(Enum):
    MANDELBROT = "mandelbrot"

class FractalBrainNet(model.FractalBrainNet):
    def __init__(self, num_classes=10, in_channels=3, fractal_levels=(2, 3), base_channels=64, pattern_resolution=32):
        config = ModelConfig(fractal_levels=fractal_levels, base_channels=base_channels, stem="conv7")
        super().__init__(config, num_classes=num_classes, in_channels=in_channels)

def create_fractal_brain_net(model_size="medium", num_classes=10, fractal_pattern=FractalPatternType.MANDELBROT):
    assert isinstance(fractal_pattern, FractalPatternType)
    return model.create_fractal_brain_net(model_size, num_classes, fractal_pattern.value)
"""
ONLY_THE_FUNCTION = "from fbsearch.network.model import create_fractal_brain_net"
QUICK = {"precisions": ["fp32"], "batch_size": 4, "device": "cpu", "repeats": 2}


def write(folder: Path, text: str, name: str = "other.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def subject(name: str = "digits", **fields: object) -> Subject:
    net = choose_net(name, batch_size=4, reference_form=False)
    config = net.config.model_copy(update=fields)
    model = FractalBrainNet(config, in_channels=net.in_channels, image_size=net.image_size)
    return Subject(model, net, is_ours=True, device=torch.device("cpu"), dtype=torch.float32)


# Timing


class Clock:
    """A clock that only moves when a call takes its time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def call(self, seconds: float, log: list[str] | None = None, name: str = "") -> Callable[[], None]:
        def take() -> None:
            self.seconds += seconds
            if log is not None:
                log.append(name)

        return take


def test_interleave_takes_turns_after_warming_up():
    order: list[str] = []
    clock = Clock()
    calls = {"a": clock.call(0.002, order, "a"), "b": clock.call(0.004, order, "b")}
    timings = interleave(calls, repeats=3, min_seconds=0.001, clock=clock)
    assert "".join(order) == "aaabbb" + "ababab"
    assert timings["a"].seconds == pytest.approx([0.002] * 3)
    assert timings["b"].seconds == pytest.approx([0.004] * 3)


def test_interleave_short_calls_make_samples_of_many():
    clock = Clock()
    calls: list[str] = []
    waits = itertools.count()
    timings = interleave(
        {"a": clock.call(2**-10, calls)}, repeats=2, wait=lambda: next(waits), min_seconds=2**-4, clock=clock
    )
    assert len(calls) == 3 + 2 * 2**6
    assert timings["a"].seconds == (2**-10,) * 2
    assert next(waits) == 4  # the warm-up, one call to see how long it takes, two samples


@pytest.mark.parametrize(("seconds", "median", "spread"), [((2.0,), 2, 0), ((4.0, 1.0, 2.0, 3.0, 9.0), 3, 1 / 3)])
def test_timing_is_the_median_and_half_the_quartiles_distance(seconds, median, spread):
    timing = Timing(seconds)
    assert (timing.median, timing.spread) == (median, pytest.approx(spread))


def test_machine_names_the_conditions():
    found = machine(num_threads=3)
    assert found["num_threads"] == 3
    assert found["num_cores"] > 0
    assert found["memory_mib"] > 100
    assert found["cpu"]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0"), (0.012345, "0.0123"), (1.5, "1.50"), (12.34, "12.3"), (123.4, "123"), (1820.4, "1,820")],
)
def test_figure_has_three_digits(value, text):
    assert format_figure(value) == text


def test_table_shows_names_left_and_figures_right():
    console = Console(width=40, record=True)
    with console.capture() as capture:
        console.print(make_table("title", ["net", "x"], [["small", "1"], ["s", "100"]]))
    assert [line.rstrip() for line in capture.get().splitlines()] == ["title", "net      x", "small    1", "s      100"]


# One net


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bench_on_a_gpu_measures_the_step_with_and_without_a_graph():
    report = bench_model(sizes=["digits"], **QUICK | {"device": "cuda"})
    found = {(row["implementation"], row["phase"]): row for row in report["rows"]}
    assert found.keys() == {(name, phase) for name in (OURS, f"{OURS} graph") for phase in ("training", "inference")}
    assert all(row["images_per_second"] > 0 for row in found.values())


def test_step_training_is_the_trainers():
    one = subject()
    before = [parameter.clone() for parameter in one.model.parameters()]
    one.step("training")
    assert any(not torch.equal(old, new) for old, new in zip(before, one.model.parameters(), strict=True))
    assert type(one.optimizer) is torch.optim.AdamW


def test_step_inference_changes_nothing():
    one = subject()
    one.model.eval()
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    one.step("inference")
    assert all(torch.equal(value, before[key]) for key, value in one.model.state_dict().items())


def test_flops_of_training_are_about_three_forward_passes():
    one = subject()
    training = one.count_flops("training")
    one.model.eval()
    assert 2 < training / one.count_flops("inference") < 3.5


def test_peak_memory_is_the_same_each_time_and_grows_with_the_net():
    small, large = subject(base_channels=8), subject(base_channels=32)
    assert small.memory_mib == small.peak_memory_mib() == subject(base_channels=8).memory_mib
    assert large.memory_mib > 2 * small.memory_mib


def test_peak_memory_counts_weights_states_gradients_and_activations():
    linear = torch.nn.Linear(1, 10)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2**18))  # 1 MiB, and two of AdamW's states as large
            self.linear = linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.weight.exp().sum().view(1, 1).expand(len(x), 1))

    net = choose_net("digits", batch_size=4, reference_form=False)
    one = Subject(Net(), net, is_ours=False, device=torch.device("cpu"), dtype=torch.float32)
    # Held are 3; in the forward the last step's gradient and exp's result, in the backward that and the new gradient.
    assert one.memory_mib == pytest.approx(5, abs=0.01)


def test_nets_are_the_documented_sizes_and_the_default_study():
    assert {name: net.config for name, net in NETS.items() if name != "digits"} == SIZES
    digits = NETS["digits"]
    assert (digits.config.fractal_levels, digits.config.base_channels, digits.config.stem) == ((2,), 16, "conv3")
    assert (digits.image_size, digits.in_channels, digits.batch_size) == (8, 1, 64)


def test_compiled_is_offered_on_request_only():
    assert [one.name for one in our_implementations(compiled=False)] == [OURS]
    assert [one.name for one in our_implementations(compiled=True)] == [OURS, f"{OURS} compiled"]


# The whole benchmark


def test_bench_model_gives_sane_rows_for_each_phase(monkeypatch, capsys):
    monkeypatch.setitem(PEAK_SIZES, "cpu", (64, 1))
    threads = torch.get_num_threads()
    report = bench_model(sizes=["digits"], **QUICK | {"precisions": ["fp32", "bf16"]})
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(report))["bench"] == "model"
    assert report.keys() == {"bench", "machine", "repeats", "reference_form", "against", "peaks", "rows", "notes"}
    assert [(row["precision"], row["phase"]) for row in report["rows"]] == [
        ("fp32", "training"), ("fp32", "inference"), ("bf16", "training"), ("bf16", "inference"),
    ]  # fmt: skip
    for row in report["rows"]:
        assert (row["net"], row["implementation"], row["batch_size"]) == ("digits", OURS, 4)
        assert len(row["seconds"]) == 2
        assert row["images_per_second"] == pytest.approx(4 / (sum(row["seconds"]) / 2))
        assert row["flops_per_second"] == pytest.approx(row["flops_per_image"] * row["images_per_second"])
        peak = max(report["peaks"][row["precision"]].values())
        assert row["share_of_peak"] == pytest.approx(row["flops_per_second"] / peak) and row["share_of_peak"] > 0
        assert row["memory_mib"] > 0
        assert row["first_step_seconds"] > 0
        assert (row["speed_ratios"], row["memory_ratios"]) == ({}, {})
    assert 2 < report["rows"][0]["flops_per_image"] / report["rows"][1]["flops_per_image"] < 3.5
    assert {precision: set(peaks) for precision, peaks in report["peaks"].items()} == {
        "fp32": {"matmul", "conv3x3"}, "bf16": {"matmul", "conv3x3"},
    }  # fmt: skip
    assert all(0 < peak < math.inf for peaks in report["peaks"].values() for peak in peaks.values())
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("text", [SAME, REFERENCE_LIKE], ids=["our arguments", "the reference's arguments"])
def test_bench_model_against_a_file_gives_ratios(tmp_path, text):
    path = write(tmp_path, text)
    report = bench_model(sizes=["digits", "small"], against=[path], **QUICK)
    assert report["against"] == {"other": str(path)}
    assert report["notes"] == []
    rows = {(row["net"], row["phase"], row["implementation"]): row for row in report["rows"]}
    assert len(rows) == 2 * 2 * 2
    for net, phase in itertools.product(("digits", "small"), ("training", "inference")):
        ours, other = rows[net, phase, OURS], rows[net, phase, "other"]
        assert other["speed_ratios"] == other["memory_ratios"] == {"other": 1}
        assert ours["speed_ratios"]["other"] == pytest.approx(ours["images_per_second"] / other["images_per_second"])
        assert ours["flops_per_image"] == pytest.approx(other["flops_per_image"])
        assert ours["memory_ratios"]["other"] == pytest.approx(1, abs=0.3)


def test_bench_model_reference_form_is_pooled():
    net = choose_net("small", batch_size=None, reference_form=True)
    assert (net.config.global_attention, net.config.drop_path, net.batch_size) == ("pooled", "channel", 128)
    report = bench_model(sizes=["digits"], reference_form=True, **QUICK)
    assert report["reference_form"] is True


def test_bench_model_leaves_out_a_net_that_a_file_does_not_have(tmp_path):
    report = bench_model(sizes=["digits"], against=[write(tmp_path, ONLY_THE_FUNCTION)], **QUICK)
    assert report["notes"] == ["other has no net like digits, which is left out"]
    assert {row["implementation"] for row in report["rows"]} == {OURS}


def test_files_of_one_name_are_told_apart_by_their_paths(tmp_path):
    (tmp_path / "b").mkdir()
    paths = [write(tmp_path, SAME), write(tmp_path / "b", SAME), write(tmp_path, SAME, "fbsearch.py")]
    assert [one.name for one in load_implementations(paths)] == [str(path) for path in paths]


def test_print_model_bench_shows_every_figure(tmp_path):
    report = bench_model(sizes=["digits"], against=[write(tmp_path, SAME)], **QUICK)
    console = Console(width=160)
    with console.capture() as capture:
        print_model_bench(console, report | {"notes": ["something [is] left out"]})
    text = capture.get()
    lines = text.splitlines()
    assert [line.strip() for line in lines if "medians of" in line] == [
        "training, medians of 2",
        "inference, medians of 2",
    ]
    assert sum("digits 8x8 B4" in line for line in lines) == 6
    assert text.count("1.00x") >= 3
    assert "peak in fp32: matmul" in text
    assert "…" not in text
    assert lines[-1].rstrip() == "note: something [is] left out"


@pytest.mark.slow
def test_bench_model_compiled_says_how_long_the_first_step_takes(monkeypatch):
    """Traced and differentiated as for every backend of torch.compile, but by one that needs no C++ compiler."""
    graphs = []

    def slow_backend(graph, inputs):
        graphs.append(graph)
        time.sleep(0.2)
        return lookup_backend("aot_eager")(graph, inputs)

    fields = {"fractal_levels": (1,), "base_channels": 4, "global_attention": "none", "drop_path": "none"}
    config = NETS["digits"].config.model_copy(update=fields)
    monkeypatch.setitem(NETS, "digits", dataclasses.replace(NETS["digits"], config=config, image_size=2))
    report = bench_model(sizes=["digits"], compiled=True, backend=slow_backend, **QUICK)
    rows = {(row["implementation"], row["phase"]): row for row in report["rows"]}
    assert rows.keys() == set(itertools.product((OURS, f"{OURS} compiled"), ("training", "inference")))
    assert graphs and rows[f"{OURS} compiled", "training"]["first_step_seconds"] > 0.2
    assert rows[f"{OURS} compiled", "training"]["flops_per_image"] == rows[OURS, "training"]["flops_per_image"]


# Bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": ["small", "tiny"]}, "--sizes tiny: unknown; allowed: digits, small, medium, large, xlarge"),
        ({"sizes": [""]}, "--sizes : unknown; allowed: "),
        ({"precisions": ["fp16"]}, "--precision fp16: unknown; allowed: fp32, bf16"),
    ],
)
def test_bench_model_unknown_name_lists_what_there_is(fields, message):
    with pytest.raises(ConfigError, match=message):
        bench_model(**{"sizes": ["digits"], "precisions": ["fp32"], "device": "cpu"} | fields)


def test_bench_model_device_that_is_not_there_says_so():
    with pytest.raises(DeviceError, match="--device tpu"):
        bench_model(sizes=["digits"], precisions=["fp32"], device="tpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no function create_fractal_brain_net"),
        ("create_fractal_brain_net = 3", "has no function create_fractal_brain_net"),
        ("import no_such_module", "cannot be executed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "cannot be executed: SyntaxError"),
        ("def create_fractal_brain_net(size): ...", "small in fp32 fails: TypeError: .*model_size"),
        (
            "def create_fractal_brain_net(**_): return 3",
            "small in fp32 fails: TypeError: got a int, not a torch",
        ),
        ("def create_fractal_brain_net(**_): 1 / 0", "small in fp32 fails: ZeroDivisionError"),
    ],
)
def test_against_a_file_that_cannot_be_used_names_it(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"--against {path}: {message}"):
        bench_model(sizes=["small"], against=[path], **QUICK)


@pytest.mark.parametrize(("name", "message"), [("none.py", "no such file"), ("folder", "is no Python file")])
def test_against_what_is_no_file_says_so(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"--against .*{name}: {message}"):
        load_implementations([tmp_path / name])


# The command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fbsearch", "bench", "model", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_command_prints_one_json_object_and_its_progress_apart(monkeypatch, capsys):
    options = ["--sizes", "digits", "--precision", "fp32", "--batch-size", "4", "--repeats", "1", "--json"]
    assert run(monkeypatch, *options) == 0
    output, errors = capsys.readouterr()
    assert json.loads(output)["rows"][0]["net"] == "digits"
    assert "digits fp32: training" in errors.splitlines()


def test_command_bad_size_is_one_line(monkeypatch, capsys):
    assert run(monkeypatch, "--sizes", "huge") == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("error: --sizes huge: unknown; allowed: ")


def test_command_help_says_that_a_file_is_executed(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    assert "EXECUTED" in capsys.readouterr().out
