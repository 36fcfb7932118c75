"""A worker whose GPU fails. There is none here: fakes at torch's edge stand for what CUDA does, each test says what."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from forked import ForkedContext, ForkedProcess

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.errors import DeviceLostError
from fbsearch.messages import Ending, Event, Failed, FailureKind, Finished, Ready, WorkerDied
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import check_gpu, is_out_of_memory
from fbsearch.workers.executor import Executor
from fbsearch.workers.local import ProcessExecutor
from fbsearch.workers.worker import Worker

DATA = DataConfig(limit=100)
ASSERTION = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
FATAL_SEED = 666


def make_trial(seed: int = 0) -> TrialConfig:
    model = ModelConfig(fractal_levels=(1,), base_channels=4, stem="conv3")
    return TrialConfig(data=DATA, model=model, train=TrainConfig(epochs=1), seed=seed)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError(ASSERTION), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
    ],
)
def test_is_out_of_memory_knows_the_texts_of_cuda_and_its_libraries(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def lose_gpu() -> None:
    """Make torch act as after a device-side assertion: no later CUDA call succeeds."""

    def raises(*_: object) -> None:
        raise RuntimeError(ASSERTION)

    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = raises  # type: ignore[assignment]
    torch.cuda.empty_cache = raises


@pytest.fixture
def keep_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what `lose_gpu` changes."""
    for name in ("is_initialized", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cuda, name))


def test_check_gpu_raises_only_where_no_cuda_call_succeeds(keep_torch: None) -> None:
    check_gpu(ValueError("of a process that uses no GPU"))
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = lambda *_: None
    check_gpu(ValueError("of a trial, which the GPU outlives"))
    lose_gpu()
    with pytest.raises(DeviceLostError, match="can no longer be used by this process after RuntimeError: CUDA error"):
        check_gpu(RuntimeError(ASSERTION))


def test_run_that_loses_the_gpu_gives_no_end_and_touches_the_gpu_no_more(keep_torch: None) -> None:
    worker = Worker(0, DATA, device="cpu", say=lambda _: None)
    worker.device = torch.device("cuda", 99)  # moving the network there fails, here and on any machine
    lose_gpu()
    events: list[Event] = []
    with pytest.raises(DeviceLostError):
        for event in worker.run(0, make_trial()):
            events.append(event)
    assert not any(isinstance(event, (Failed, Finished)) for event in events)


def test_run_frees_memory_after_the_network_is_gone(keep_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`empty_cache` gives back what no tensor holds: at its call the failed trial's network must be gone."""
    worker = Worker(0, DATA, device="cpu", say=lambda _: None)
    worker.device = torch.device("cuda", 99)
    num_alive: list[int] = []

    def count() -> None:
        num_alive.append(sum(type(one) is FractalBrainNet for one in gc.get_objects()))

    gc.collect()
    count()
    torch.cuda.empty_cache = count
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    *_, last = worker.run(0, make_trial())
    assert isinstance(last, Failed) and last.kind == FailureKind.ERROR
    assert len(num_alive) == 2 and num_alive[0] == num_alive[1]


class _LostProcess(ForkedProcess):
    """A worker process in which FATAL_SEED stands for a trial that runs into a device-side assertion."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> None:
        super().__init__(target=_serve_until_fatal, args=(target, args), **options)


class _LostContext(ForkedContext):
    Process = _LostProcess  # type: ignore[assignment]


def _serve_until_fatal(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    seed_all = torch.manual_seed

    def manual_seed(seed: int) -> Any:
        if seed == FATAL_SEED:
            lose_gpu()
            raise RuntimeError(ASSERTION)
        return seed_all(seed)

    torch.manual_seed = manual_seed
    target(*args)


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = ProcessExecutor(DATA, devices=["cpu"])
    context = _LostContext()
    context.set_forkserver_preload(["fbsearch.workers.worker"])
    made.context = context
    made.start()
    yield made
    made.close()


@pytest.mark.slow
def test_processes_a_worker_that_lost_its_gpu_is_replaced_before_it_gets_another_trial(executor: Executor) -> None:
    def collect(kind: type[Event]) -> list[Event]:
        found: list[Event] = []
        for _ in range(1000):
            found += executor.events(timeout=0.2)
            if any(isinstance(event, kind) for event in found):
                return found
        pytest.fail(f"no {kind.__name__} came, but {found}")

    collect(Ready)
    executor.submit(0, 1, make_trial(FATAL_SEED))
    found = collect(WorkerDied)
    assert [type(event) for event in found[-2:]] == [Ending, WorkerDied]
    assert isinstance(found[-1], WorkerDied) and "device-side assert triggered" in found[-1].message
    assert "\n" not in found[-1].message, "CUDA's advice is left out"
    collect(Ready)
    executor.submit(0, 2, make_trial())
    assert isinstance(collect(Finished)[-1], Finished)
