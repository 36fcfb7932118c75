"""Part A: right and fast. The machine, the tests on a GPU, memory, steps against other forms of them, a timeline."""

import contextlib
import functools
import itertools
import multiprocessing
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.harness import Setting, Step
from torch.profiler import ProfilerActivity, profile

from fbsearch.bench.common import interleave
from fbsearch.bench.model import bench_model
from fbsearch.bench.networks import NETS, NUM_CLASSES, OURS, Net
from fbsearch.config.models import DataConfig, Precision, TrainConfig, TrialConfig
from fbsearch.config.space import ChoiceSpace
from fbsearch.config.study_file import StudyConfig
from fbsearch.data.dataset import normalise
from fbsearch.messages import Execution, ImageShape
from fbsearch.network import blocks, fused_ops
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_device, choose_dtype, prepare_device
from fbsearch.training.optimizers import make_optimizer
from fbsearch.training.requirements import estimate_memory
from fbsearch.training.step import GraphStep, TrainStep
from fbsearch.workers.probe import measure_memory

TESTS = Path(__file__).resolve().parents[1]
NUM_TIMED_STEPS = 20
MATMUL = torch.backends.cuda.matmul


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_machine(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """Versions, and the ceilings of this device: a large product in bfloat16, and a copy within its memory."""
    device = choose_device(setting.device)
    side, num_bytes = setting.small(64, 8192), setting.small(2**20, 2**31)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}
    timed = interleave(calls, repeats=setting.small(1, 10), min_seconds=0.01, wait=lambda: wait(device))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    return True, versions | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "tflops_bf16": 2 * side**3 / min(timed["matmul"].seconds) / 1e12,
        "copy_gb_a_second": 2 * num_bytes / min(timed["copy"].seconds) / 1e9,
    }


def run_tests(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """The tests marked `gpu`; a tiny run looks at one file of them, all of which are left out without a GPU."""
    tests = setting.small(TESTS / "data" / "test_placement.py", TESTS)
    options = ["-c", str(Path(__file__).with_name("pytest.ini")), "-q", "-m", "gpu", str(tests)]
    if setting.tiny:
        code = pytest.main(options)  # this process has imported torch already
        return code == 0, {"exit_code": int(code)}
    command = [sys.executable, "-m", "pytest", *options]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent)
    print(process.stdout, process.stderr)
    last = (process.stdout.strip().splitlines() or [""])[-1]
    return process.returncode == 0, {"exit_code": process.returncode, "summary": last}


def measure_memories(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """A worker's memory as the driver sees it, and the estimate of a step against torch's allocator."""
    device = choose_device(setting.device)
    study = StudyConfig(data=DataConfig(limit=100), space={"model.base_channels": ChoiceSpace(choices=(4, 8))})
    measured: dict[str, Any] = dict(
        measure_memory(study, device, context=multiprocessing.get_context("fork") if setting.tiny else None)
    )
    if device.type != "cuda":
        return True, measured
    prepare_device(device)
    ratios = {}
    for name, precision in itertools.product(("digits", "small", "medium"), ("fp32", "bf16")):
        net = NETS[name]
        config = TrialConfig(data=DataConfig(), model=net.config, train=TrainConfig(batch_size=net.batch_size))
        shape = ImageShape(num_classes=NUM_CLASSES, in_channels=net.in_channels, image_size=net.image_size)
        dtype = choose_dtype(precision, device)
        estimate = estimate_memory(config, shape, device=device, dtype=dtype, validation_batch=1)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        timed = TimedStep(net, device=device, precision=precision, in_graph=False)
        timed.call(), timed.call()
        ratios[f"{name} {precision}"] = estimate * 2**20 / (torch.cuda.max_memory_allocated(device) - before)
        timed.step.close()
        del timed
    return all(0.75 <= ratio <= 1.25 for ratio in ratios.values()), measured | {"estimated_over_allocated": ratios}


def measure_models(setting: Setting, *, sizes: tuple[str, ...], batch_size: int | None = None) -> Any:
    """Steps of the trainer eager and in a graph, beside the public reference where it was packed."""
    reference = setting.packed / "FractalBrainNet-v2.py"
    report = bench_model(
        sizes=setting.small(("digits",), sizes),
        precisions=setting.small(("fp32",), ("bf16", "fp32")),
        batch_size=setting.small(4, batch_size),
        device=setting.device,
        repeats=setting.small(1, 5),
        reference_form=True,
        against=[reference] if reference.exists() and not setting.tiny else [],
        say=print,
    )
    rows = [row for row in report["rows"] if row["phase"] == "training"]
    keys = ("net", "precision", "implementation", "batch_size", "images_per_second", "spread", "memory_mib")
    measured: dict[str, Any] = {"rows": [{key: row[key] for key in keys} for row in rows], "peaks": report["peaks"]}
    speeds = {(row["net"], row["precision"], row["implementation"]): row["images_per_second"] for row in rows}
    for (net, precision, name), speed in speeds.items():
        if name == f"{OURS} graph" and precision == "bf16":
            others = (speeds.get((net, precision, other)) for other in (OURS, reference.stem))
            measured[f"{net} graph over eager, over reference"] = [speed / other if other else None for other in others]
    return _reaches_goals(measured), measured


def _reaches_goals(measured: dict[str, Any]) -> bool:
    """A graph's step at least 2.5 times as fast as the eager one for digits and small, 4 times as the reference's."""
    ratios = [value for key, value in measured.items() if key.startswith(("digits graph", "small graph"))]
    return all(eager >= 2.5 and (reference is None or reference >= 4) for eager, reference in ratios)


@dataclass
class TimedStep:
    """A step of the trainer on random images, ready to be called."""

    net: Net
    device: torch.device
    precision: Precision
    in_graph: bool
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        net, device = self.net, self.device
        torch.manual_seed(0)
        model = FractalBrainNet(
            net.config, num_classes=NUM_CLASSES, in_channels=net.in_channels, image_size=net.image_size
        )
        model.to(device).train()
        ones_C = torch.ones(net.in_channels, device=device)
        self.step = (GraphStep if self.in_graph else TrainStep)(
            model=model,
            config=self.train,
            optimizer=make_optimizer(model, self.train),
            normalise=functools.partial(normalise, mean_C=ones_C, std_C=ones_C),
            device=device,
            dtype=choose_dtype(self.precision, device),
            execution=Execution("graph" if self.in_graph else "eager"),
        )
        size = (net.batch_size, net.in_channels, net.image_size, net.image_size)
        images_BCHW = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
        self.images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        self.labels_B = torch.randint(0, NUM_CLASSES, (net.batch_size,), device=device)

    def call(self) -> None:
        self.step(self.images_BCHW, self.labels_B)


def measure_timeline(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """Kernels of 20 steps: their share of the time, the gaps between them, and the longest, eager and in a graph."""
    device = choose_device(setting.device)
    prepare_device(device)
    names = setting.small(("digits",), ("digits", "small", "medium"))
    forms = (False, True) if device.type == "cuda" else (False,)
    measured = {}
    for name, in_graph in itertools.product(names, forms):
        timed = TimedStep(NETS[name], device=device, precision=setting.small("fp32", "bf16"), in_graph=in_graph)
        for _ in range(3):
            timed.call()
        wait(device)
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: len(forms)]
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(setting.small(1, NUM_TIMED_STEPS)):
                timed.call()
            wait(device)
        measured[f"{name} {'graph' if in_graph else 'eager'}"] = _summarise(profiler, device)
        timed.step.close()
    return True, measured


def _summarise(profiler: Any, device: torch.device) -> dict[str, Any]:
    wanted = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    events = [event for event in profiler.profiler.kineto_results.events() if event.device_type() == wanted]
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns(), event.name()) for event in events)
    assert spans, "the profiler has seen no kernel"
    end, gaps, totals = spans[0][1], [], dict[str, list[int]]()
    for start, stop, name in spans:
        gaps.append(max(0, start - end))
        end = max(end, stop)
        totals.setdefault(name, []).append(stop - start)
    wall = end - spans[0][0]
    longest = sorted(totals.items(), key=lambda item: -sum(item[1]))[:15]
    return {
        "num_kernels": len(spans),
        "wall_ms": wall / 1e6,
        "kernels_share": 1 - sum(gaps) / wall,
        "median_gap_us": sorted(gaps)[len(gaps) // 2] / 1e3,
        "longest": [[name[:120], len(spans), sum(spans) / 1e6] for name, spans in longest],
    }


@contextlib.contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes of a module within the context: the constants that an ablation moves."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def measure_ablations(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """Milliseconds of a step with one choice changed that was made on a CPU; the first row is the trainer's."""
    device = choose_device(setting.device)
    prepare_device(device)
    as_is = TrainConfig()
    fused = TrainConfig(schedule="cosine")  # its betas stay, so that torch's fused AdamW serves
    forms: dict[str, tuple[TrainConfig, Precision, Callable[[], contextlib.AbstractContextManager[None]]]] = {
        "as it is": (as_is, "bf16", contextlib.nullcontext),
        "no norm recomputed": (as_is, "bf16", functools.partial(changed, fused_ops, MIN_RECOMPUTED_BYTES=2**62)),
        "every norm recomputed": (as_is, "bf16", functools.partial(changed, fused_ops, MIN_RECOMPUTED_BYTES=0)),
        "scales always folded": (as_is, "bf16", functools.partial(changed, blocks, FOLD_POSITIONS_PER_CHANNEL=0)),
        "scales never folded": (as_is, "bf16", functools.partial(changed, blocks, FOLD_POSITIONS_PER_CHANNEL=2**40)),
        "torch's fused AdamW": (fused, "bf16", contextlib.nullcontext),
        "muon": (TrainConfig(optimizer="muon"), "bf16", contextlib.nullcontext),
        "not deterministic": (as_is, "bf16", functools.partial(changed, torch.backends.cudnn, deterministic=False)),
        "fp32": (as_is, "fp32", contextlib.nullcontext),
        "fp32, products in TF32": (
            as_is,
            "fp32",
            functools.partial(changed, torch.backends.cuda.matmul, allow_tf32=True),
        ),
    }
    measured: dict[str, Any] = {}
    for name in setting.small(("digits",), ("digits", "small")):
        for form, (train, precision, context) in forms.items():
            with context():
                timed = TimedStep(
                    NETS[name], device=device, precision=setting.small("fp32", precision),
                    in_graph=device.type == "cuda", train=train,
                )  # fmt: skip
                calls = {form: timed.call}
                (timing,) = interleave(
                    calls, repeats=setting.small(1, 5), num_warm_ups=3, min_seconds=setting.small(0.0, 0.05),
                    wait=lambda: wait(device),
                ).values()  # fmt: skip
                measured.setdefault(name, {})[form] = round(1000 * timing.median, 4)
                timed.step.close()
    return True, measured


STEPS = [
    Step("machine", measure_machine, 60, {"tflops_bf16": "600-750", "copy_gb_a_second": "2,400-3,000"}),
    Step("tests", run_tests, 200, {"exit_code": 0}),
    Step("memory", measure_memories, 80, {"worker_mib": "500-1,200", "estimated_over_allocated": "0.75-1.25"}),
    Step(
        "models",
        functools.partial(measure_models, sizes=("digits", "small", "medium")),
        120,
        {
            "launches a step": {"digits B64": 465, "small B128": 1100, "medium B32": 2200},
            "eager ms": {"digits B64": "3-3.5", "small B128": "6.5-8", "medium B32": 15},
            "graph ms": {"digits B64": "0.8-1.2", "small B128": "2.2-3", "medium B32": 5},
        },
    ),
    Step(
        "models at 512",
        functools.partial(measure_models, sizes=("small",), batch_size=512),
        60,
        {"launches a step": 1100, "eager ms": 8, "graph ms": "4-5.5"},
    ),
    Step("timeline", measure_timeline, 60, {"kernels_share eager": "0.2-0.4", "kernels_share graph": "0.9-1"}),
    Step("ablations", measure_ablations, 60, {"not deterministic": "as it is", "torch's fused AdamW": "0.1 ms less"}),
]
