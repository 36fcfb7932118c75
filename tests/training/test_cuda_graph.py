"""Steps and validation as CUDA graphs, without CUDA: `fake_cuda` stands in for torch's streams and graphs."""

import copy
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from fake_kernels import CUDA, fake_gpu
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig
from fbsearch.data.dataset import Dataset, load_dataset
from fbsearch.errors import DeviceLostError
from fbsearch.messages import Execution
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.budget import measure_steps
from fbsearch.training.cuda_graph import CaptureError, capture, restore_afterwards
from fbsearch.training.evaluation import evaluate, mean_scores
from fbsearch.training.optimizers import DeviceRates, make_optimizer, make_scheduler
from fbsearch.training.requirements import _make_fake
from fbsearch.training.step import EAGER_BATCHES, GraphEvaluation, GraphStep, Totals, TrainStep, autocast_forward

CPU = torch.device("cpu")
BATCH, REST, NUM_STEPS = 16, 12, 9
MODEL = ModelConfig(fractal_levels=(2,), base_channels=8, stem="conv3", drop_path="mixed", pattern_resolution=8)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataConfig(limit=200), device=CPU)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def make_step(kind: type[TrainStep], data: Dataset, *, optimizer: str = "muon", model: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    net = model or FractalBrainNet.for_images(MODEL, data.info.shape).train()
    config = TrainConfig(optimizer=optimizer, learning_rate=0.01, clip_grad_norm=5.0)
    made = make_optimizer(net, config)
    step = kind(
        model=net, config=config, optimizer=made, normalise=data.normalise, device=CPU, dtype=torch.float32,
        execution=Execution("graph"),
    )  # fmt: skip
    step.rates = DeviceRates(made, CPU)  # as on CUDA
    return step


def schedule(step: TrainStep) -> None:
    step.scheduler = make_scheduler(step.optimizer, step.config, num_steps=NUM_STEPS)
    step.optimizer._opt_called = True  # type: ignore[attr-defined]


def train_steps(step: TrainStep, data: Dataset, *, soft: bool = False) -> list[float]:
    """Two whole batches and a rest, three times over; the losses of the passes. `soft` targets change each time."""
    losses = []
    torch.manual_seed(7)
    for _ in range(3):
        step.totals.reset()
        for start, size in ((0, BATCH), (BATCH, BATCH), (2 * BATCH, REST)):
            rows = slice(start, start + size)
            targets_BK = torch.rand(size, 10).softmax(1) if soft else None
            step(data.train.images_NCHW[rows], data.train.labels_N[rows], targets_BK)
        losses.append(float(step.totals.loss))
    return losses


@pytest.mark.parametrize("soft", [False, True])
def test_graph_step_computes_what_the_eager_step_computes(digits: Dataset, cuda: FakeCuda, soft: bool) -> None:
    eager, graph = (make_step(kind, digits) for kind in (TrainStep, GraphStep))
    schedule(eager), schedule(graph)
    expected, found = (train_steps(step, digits, soft=soft) for step in (eager, graph))
    # One graph for whole batches, after one of them, and one for the rests, after one of those.
    assert [one.num_replays for one in cuda.graphs] == [5, 2]
    assert cuda.graphs[1].pool() is cuda.graphs[0]
    assert found == pytest.approx(expected, rel=1e-5)
    assert graph.optimizer.param_groups[0]["lr"] == eager.optimizer.param_groups[0]["lr"]
    for one, other in zip(eager.model.parameters(), graph.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for (name, one), other in zip(eager.model.named_buffers(), graph.model.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_graph_step_of_one_batch_a_pass_captures_nothing_in_the_first(digits: Dataset, cuda: FakeCuda) -> None:
    step = make_step(GraphStep, digits)
    step(digits.train.images_NCHW[:BATCH], digits.train.labels_N[:BATCH])
    step(digits.train.images_NCHW[:REST], digits.train.labels_N[:REST])
    assert not cuda.graphs and step.pool() is None
    step(digits.train.images_NCHW[:BATCH], digits.train.labels_N[:BATCH])
    assert [one.num_replays for one in cuda.graphs] == [1] and step.pool() is cuda.graphs[0]
    step.close()
    assert cuda.graphs[0].is_reset and step.execution.mode == "eager"


class WaitsForTheHost(nn.Module):
    """A network that reads a number back, which no capture allows, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        assert float(x_BCHW.sum()) > -1e9
        out: torch.Tensor = self.inner(nn.functional.dropout(x_BCHW.flatten(1)))
        return out


def test_step_that_cannot_be_captured_goes_on_eagerly_as_if_never_tried(digits: Dataset, cuda: FakeCuda) -> None:
    torch.manual_seed(1)
    nets = WaitsForTheHost(), WaitsForTheHost()
    nets[1].load_state_dict(nets[0].state_dict())
    eager, graph = (
        make_step(kind, digits, model=net, optimizer="adamw")
        for kind, net in zip((TrainStep, GraphStep), nets, strict=True)
    )
    eager.rates = graph.rates = None  # torch's fused kernels take numbers on a CPU
    assert train_steps(graph, digits) == train_steps(eager, digits)
    assert graph.execution.mode == "eager" and "not permitted when stream is capturing" in graph.execution.reason
    assert cuda.current is cuda.main and not cuda.graphs


def test_capture_that_leaves_torch_broken_names_the_setting_that_does_without(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 after a failed capture: its stream stays current, and the generator believes that it is captured."""
    cuda = FakeCuda(leaves_stream=True)
    cuda.install(monkeypatch)
    step = make_step(GraphStep, digits, model=WaitsForTheHost(), optimizer="adamw")
    step.rates = None
    with pytest.raises(DeviceLostError, match=r"not permitted .*Offset increment .*; train\.cuda_graph: false trains"):
        train_steps(step, digits)
    assert cuda.current is cuda.main


def test_capture_without_memory_raises_that_and_restores_the_stream(cuda: FakeCuda) -> None:
    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        capture(work, device=CPU)
    assert cuda.current is cuda.main


def test_steps_that_a_budget_measures_leave_a_graph_that_trains_on(digits: Dataset, cuda: FakeCuda) -> None:
    """As in the training loop: measured steps capture the graph, what they changed is restored, training replays it."""
    measured, plain = (make_step(GraphStep, digits) for _ in range(2))
    images_BCHW, labels_B = digits.train.images_NCHW[:BATCH], digits.train.labels_N[:BATCH]
    totals = [measured.totals.loss, measured.totals.num_correct]
    before = copy.deepcopy(measured.model.state_dict())
    with restore_afterwards(measured.model, measured.optimizer, CPU, also=totals):
        measure_steps(5, lambda: measured(images_BCHW, labels_B), device=CPU, num_timed=3)
    assert [one.num_replays for one in cuda.graphs] == [5], "one of the two warm-ups and all timed steps are replays"
    for name, value in measured.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    schedule(measured), schedule(plain)
    assert train_steps(measured, digits) == pytest.approx(train_steps(plain, digits), rel=1e-5)
    # Of the whole batches no further one is captured; of the measured graph all six are replays.
    assert cuda.graphs[0].num_replays == 5 + 6


def test_evaluation_in_a_graph_equals_the_eager_one(digits: Dataset, cuda: FakeCuda) -> None:
    net = FractalBrainNet.for_images(MODEL, digits.info.shape)
    images_NCHW, labels_N = digits.train.images_NCHW, digits.train.labels_N
    made = GraphEvaluation(
        net, images_NCHW, normalise=digits.normalise, dtype=torch.float32, batch_size=50, device=CPU, pool=lambda: None
    )
    expected = evaluate(net, digits, digits.train)
    num_batches = -(-len(labels_N) // 50)
    for _ in range(3):
        found = mean_scores(made(images_NCHW, labels_N), digits.train)
        assert (found.loss, found.accuracy) == pytest.approx(expected, rel=1e-5)
    assert [one.num_replays for one in cuda.graphs] == [3 * num_batches - EAGER_BATCHES]
    made.close()
    assert cuda.graphs[0].is_reset


def test_evaluation_that_cannot_be_captured_says_so(digits: Dataset, cuda: FakeCuda) -> None:
    split = digits.train
    made = GraphEvaluation(
        WaitsForTheHost(), split.images_NCHW, normalise=digits.normalise, dtype=torch.float32, batch_size=20,
        device=CPU, pool=lambda: None,
    )  # fmt: skip
    with pytest.raises(CaptureError, match="could not be captured as a CUDA graph"):
        made(split.images_NCHW, split.labels_N)


@pytest.mark.parametrize(
    ("optimizer", "schedule_name"),
    [("adamw", "one_cycle"), ("adam", "one_cycle"), ("muon", "one_cycle"), ("muon", "cosine")],
)
def test_step_on_a_gpu_reads_nothing_back_to_the_host(
    optimizer: str, schedule_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps on fake tensors of a GPU, the second with the state of the first: reading a value raises.

    The backward pass and torch's fused optimisers, which do not run for a device that is not there, are left out.
    """
    config = TrainConfig(optimizer=optimizer, schedule=schedule_name)  # type: ignore[arg-type]
    model = ModelConfig(fractal_levels=(2, 1), base_channels=8, stem="conv3", drop_path="mixed", pattern_resolution=8)
    with torch.device("meta"):
        net = FractalBrainNet(model, image_size=8).train()
    with fake_gpu(monkeypatch), torch.no_grad():
        _make_fake(net, CUDA)
        made = make_optimizer(net, config)
        rates, totals = DeviceRates(made, CUDA), Totals.on(CUDA)
        x_BCHW, labels_B = torch.empty(32, 3, 8, 8, device=CUDA), torch.zeros(32, dtype=torch.int64, device=CUDA)
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)
        for _ in range(2):
            rates.load()
            logits_BK = autocast_forward(net, x_BCHW, dtype=torch.bfloat16)
            totals.add(nn.functional.cross_entropy(logits_BK.float(), labels_B), logits_BK, labels_B)
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            with rates.inserted():
                made.step()
        with pytest.raises(DataDependentOutputException):
            float(totals.loss)
