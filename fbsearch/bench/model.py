"""The speed of single training and inference steps on random images, and of the same steps in other implementations.

Also measures the peak of the machine, to give each speed as a share of it.

Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from fbsearch.bench.common import (
    Timing,
    choose_names,
    format_figure,
    interleave,
    machine,
    make_table,
    print_report,
    torch_threads,
)
from fbsearch.bench.networks import (
    NETS,
    OURS,
    Implementation,
    Net,
    choose_net,
    load_implementations,
    our_implementations,
)
from fbsearch.bench.step import Subject
from fbsearch.errors import ConfigError
from fbsearch.training.devices import choose_device, prepare_device

PHASES = ("training", "inference")
NAMES = ("net", "precision", "implementation")
# The side of a square matrix and the number of 32x32 maps that the peaks are measured with.
PEAK_SIZES = {"cuda": (8192, 256), "cpu": (1024, 8)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def bench_model(
    *,
    sizes: Sequence[str],
    precisions: Sequence[str],
    batch_size: int | None = None,
    device: str = "auto",
    num_threads: int = 1,
    repeats: int = 7,
    compiled: bool = False,
    backend: str | Callable[..., Any] = "inductor",
    reference_form: bool = False,
    against: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Measure nets (keys of NETS) in precisions (keys of DTYPES) and return the content of `bench model --json`.

    Files named in `against` are executed, see `load_implementation`. `batch_size` replaces that of every net,
    `reference_form` applies REFERENCE_FORM to every configuration, `backend` is torch.compile's. `say` gets a line
    before each measurement.
    Torch's number of threads is restored at the end.

    A row is one implementation of one net in one precision and phase. `flops_per_image` is counted by torch in this
    implementation's own step (for a compiled net in its eager form), a multiply-add as two. `share_of_peak` is relative
    to the faster of the two peaks. `memory_mib` is the peak of a training step, see `Subject.peak_memory_mib`. The
    ratios are this row's speed and memory divided by those of each implementation named by `against`.

    Raises ConfigError for unknown names and unusable files, DeviceError for a missing device.
    """
    nets = [
        choose_net(name, batch_size=batch_size, reference_form=reference_form)
        for name in choose_names(sizes, NETS, flag="--sizes")
    ]
    precisions = choose_names(precisions, DTYPES, flag="--precision")
    chosen = choose_device(device)
    prepare_device(chosen)  # the kernels of the trainer
    others = load_implementations(against)
    device_name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu"
    conditions = machine(num_threads=num_threads, device=device_name)
    ours = our_implementations(compiled=compiled, in_graph=chosen.type == "cuda", backend=backend)
    bench = _Bench(chosen, repeats, [*ours, *others], say)
    with torch_threads(num_threads):
        bench.run(nets, precisions)
    return {
        "bench": "model",
        "machine": conditions,
        "repeats": repeats,
        "reference_form": reference_form,
        "against": {other.name: str(other.path) for other in others},
        "peaks": bench.peaks,
        "rows": bench.rows,
        "notes": bench.notes,
    }


@dataclass
class _Bench:
    """The settings of a benchmark and its results so far.

    `peaks` are FLOPs per second, for each precision, of a large matrix product and a 3x3 convolution.
    """

    device: torch.device
    repeats: int
    implementations: list[Implementation]
    say: Callable[[str], None]
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, nets: Sequence[Net], precisions: Sequence[str]) -> None:
        for precision in precisions:
            self.say(f"peaks of this machine in {precision}")
            self.peaks[precision] = self._measure_peaks(DTYPES[precision])
        for net in nets:
            for precision in precisions:
                subjects = self._prepare(net, precision)
                for phase in PHASES:
                    self._measure(net, precision, phase, subjects)

    def _measure_peaks(self, dtype: torch.dtype) -> dict[str, float]:
        """Return the FLOPs per second of the fastest sample: a peak is measured when nothing disturbs the machine."""
        size, batch = PEAK_SIZES[self.device.type]
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        x_BCHW = torch.randn(batch, 128, 32, 32, device=self.device, dtype=dtype)
        weight = torch.randn(128, 128, 3, 3, device=self.device, dtype=dtype)
        x_BCHW, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x_BCHW, weight))
        with torch.inference_mode():
            timings = self._time({"matmul": lambda: a @ b, "conv3x3": lambda: F.conv2d(x_BCHW, weight, padding=1)})
        flops = {"matmul": 2 * size**3, "conv3x3": 2 * 9 * 128 * x_BCHW.numel()}
        return {name: flops[name] / min(timing.seconds) for name, timing in timings.items()}

    def _time(self, candidates: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        if self.device.type == "cuda":
            return interleave(candidates, repeats=self.repeats, wait=partial(torch.cuda.synchronize, self.device))
        return interleave(candidates, repeats=self.repeats)

    def _prepare(self, net: Net, precision: str) -> dict[str, Subject]:
        """Build each implementation's net and take its first steps; note the implementations that have no such net."""
        subjects = {}
        for implementation in self.implementations:
            self.say(f"{net.name} {precision}: first steps of {implementation.name}")
            torch.manual_seed(0)
            try:
                model = implementation.build(net)
                if model is None:
                    self.notes.append(f"{implementation.name} has no net like {net.name}, which is left out")
                    continue
                subjects[implementation.name] = Subject(
                    model,
                    net,
                    is_ours=implementation.is_ours,
                    device=self.device,
                    dtype=DTYPES[precision],
                    in_graph=implementation.in_graph,
                )
            except Exception as error:  # a file of the user's can fail in any way
                if implementation.is_ours:
                    raise
                message = f"--against {implementation.path}: {net.name} in {precision} fails: "
                raise ConfigError(f"{message}{type(error).__name__}: {error}") from error
        return subjects

    def _measure(self, net: Net, precision: str, phase: str, subjects: Mapping[str, Subject]) -> None:
        """Add the rows of one net in one precision and phase, with all implementations measured in turns."""
        self.say(f"{net.name} {precision}: {phase}")
        for subject in subjects.values():
            subject.model.train(phase == "training")
        timings = self._time({name: partial(subject.step, phase) for name, subject in subjects.items()})
        others = [one.name for one in self.implementations if not one.is_ours and one.name in subjects]
        for name, subject in subjects.items():
            # The counter does not see into a compiled net, which computes the same as the eager one.
            flops = (subjects[OURS] if subject.is_ours else subject).count_flops(phase)
            images_per_second = net.batch_size / timings[name].median
            self.rows.append(
                {
                    "net": net.name,
                    "precision": precision,
                    "phase": phase,
                    "implementation": name,
                    "batch_size": net.batch_size,
                    "image_size": net.image_size,
                    "num_parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
                    "images_per_second": images_per_second,
                    "spread": timings[name].spread,
                    "seconds": timings[name].seconds,
                    "flops_per_image": flops,
                    "flops_per_second": flops * images_per_second,
                    "share_of_peak": flops * images_per_second / max(self.peaks[precision].values()),
                    "first_step_seconds": subject.first_step_seconds,
                    "memory_mib": subject.memory_mib,
                    "speed_ratios": {other: timings[other].median / timings[name].median for other in others},
                    "memory_ratios": {other: subject.memory_mib / subjects[other].memory_mib for other in others},
                }
            )


def print_model_bench(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report of `bench_model`: conditions and peaks, speed of training and inference, memory, notes."""
    parts: list[str | Table] = []
    for precision, peaks in report["peaks"].items():
        figures = ", ".join(f"{name} {format_figure(flops / 1e9)} GFLOP/s" for name, flops in peaks.items())
        parts.append(f"peak in {precision}: {figures}")
    others = list(report["against"])
    columns = [*NAMES, "images/s", "spread", "MFLOP/image", "GFLOP/s", "of peak", *(f"speed /\n{o}" for o in others)]
    for phase in PHASES:
        rows = [_speed(row, others) for row in report["rows"] if row["phase"] == phase]
        parts.append(make_table(f"\n{phase}, medians of {report['repeats']}", columns, rows, num_names=len(NAMES)))
    columns = [*NAMES, "parameters", "first step s", "peak MiB", *(f"memory /\n{o}" for o in others)]
    rows = [_memory(row, others) for row in report["rows"] if row["phase"] == "training"]
    parts.append(make_table("\nmemory of training", columns, rows, num_names=len(NAMES)))
    print_report(console, report, *parts, *(f"note: {note}" for note in report["notes"]))


def _names(row: Mapping[str, Any]) -> list[str]:
    net = f"{row['net']} {row['image_size']}x{row['image_size']} B{row['batch_size']}"
    return [net, row["precision"], row["implementation"]]


def _speed(row: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    return [
        *_names(row),
        format_figure(row["images_per_second"]),
        f"{row['spread']:.1%}",
        format_figure(row["flops_per_image"] / 1e6),
        format_figure(row["flops_per_second"] / 1e9),
        f"{row['share_of_peak']:.0%}",
        *(format_figure(row["speed_ratios"].get(name), "x") for name in others),
    ]


def _memory(row: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    return [
        *_names(row),
        f"{row['num_parameters']:,}",
        format_figure(row["first_step_seconds"]),
        format_figure(row["memory_mib"]),
        *(format_figure(row["memory_ratios"].get(name), "x") for name in others),
    ]
