"""One suite for every executor: the same events in the same order, stopping between epochs, deaths that are seen."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.errors import DataError, DeviceError
from fbsearch.messages import (
    CannotStart,
    Epoch,
    Event,
    Failed,
    Finished,
    Notice,
    Ready,
    Started,
    Stopped,
    WorkerDied,
    WorkerLost,
)
from fbsearch.workers.executor import Executor, deal, devices_for, num_cpus, num_gpus
from fbsearch.workers.local import InProcessExecutor, ProcessExecutor

DATA = DataConfig(limit=100)


def make_trial(*, epochs: int = 2, learning_rate: float = 0.01) -> TrialConfig:
    model = ModelConfig(fractal_levels=(1,), base_channels=4, stem="conv3")
    return TrialConfig(data=DATA, model=model, train=TrainConfig(epochs=epochs, learning_rate=learning_rate))


def make_processes(data: DataConfig = DATA, num_workers: int = 1) -> Executor:
    return ProcessExecutor(data, devices=["cpu"] * num_workers)


def make_in_process(data: DataConfig = DATA) -> Executor:
    return InProcessExecutor(data, device="cpu")


MAKERS = [
    pytest.param("in_process"),
    pytest.param("processes"),
    pytest.param("ray", marks=pytest.mark.slow),  # the cluster takes ten seconds
]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Executor]:
    """Return the function that makes the executor named by the test's parameter."""
    if request.param == "ray":
        return request.getfixturevalue("make_ray")  # type: ignore[no-any-return]
    return {"in_process": make_in_process, "processes": make_processes}[request.param]


@pytest.fixture
def executor(make: Callable[..., Executor]) -> Iterator[Executor]:
    made = make(DATA)
    made.start()
    yield made
    made.close()


def collect(
    executor: Executor, until: Callable[[Event], bool], *, seconds: float = 180, timeout: float = 0.2
) -> list[Event]:
    """Events up to and with the first that satisfies `until`."""
    found: list[Event] = []
    deadline = time.monotonic() + seconds
    while not any(until(event) for event in found):
        assert time.monotonic() < deadline, f"nothing came; so far {found}"
        found += [event for event in executor.events(timeout=timeout) if not isinstance(event, Notice)]
    return found


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


@pytest.mark.parametrize("make", MAKERS, indirect=True)
def test_executor_gives_the_events_of_a_trial_in_order(executor: Executor) -> None:
    events = collect(executor, lambda e: isinstance(e, Ready))
    assert isinstance(events[-1], Ready)
    assert (events[-1].dataset.num_classes, events[-1].dataset.image_size) == (10, 8)
    for trial in (7, 8):
        executor.submit(0, trial, make_trial())
        events = collect(executor, lambda e: isinstance(e, (Finished, Failed)))
        assert kinds(events) == [Started, Epoch, Epoch, Finished]
        assert {event.trial for event in events} == {trial}  # type: ignore[attr-defined]
        assert [e.stats.epoch for e in events if isinstance(e, Epoch)] == [1, 2]
        assert isinstance(events[2], Epoch) and isinstance(events[3], Finished)
        assert events[3].value == events[2].stats.val_accuracy


def first_epoch(made: Executor) -> tuple[float, float]:
    made.start()
    collect(made, lambda e: isinstance(e, Ready))
    made.submit(0, 0, make_trial(epochs=1))
    epoch = next(e for e in collect(made, lambda e: isinstance(e, Finished)) if isinstance(e, Epoch))
    made.close()
    return epoch.stats.val_accuracy, round(epoch.stats.train_loss, 4)


@pytest.mark.parametrize("make", MAKERS[1:], indirect=True)
def test_executor_same_trial_gives_the_same_numbers_everywhere(make: Callable[..., Executor]) -> None:
    assert first_epoch(make(DATA)) == first_epoch(make_in_process())


@pytest.mark.parametrize("make", MAKERS, indirect=True)
def test_executor_stops_a_trial_between_two_epochs(executor: Executor) -> None:
    collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 0, make_trial(epochs=10_000))
    collect(executor, lambda e: isinstance(e, Epoch))
    executor.stop_trial(0)
    assert isinstance(collect(executor, lambda e: isinstance(e, (Stopped, Finished)))[-1], Stopped)
    executor.submit(0, 1, make_trial(epochs=1))
    assert kinds(collect(executor, lambda e: isinstance(e, Finished))) == [Started, Epoch, Finished]


@pytest.mark.parametrize("make", MAKERS, indirect=True)
def test_executor_a_trial_that_cannot_go_on_fails_and_the_worker_lives(executor: Executor) -> None:
    collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 0, make_trial(learning_rate=1e30))
    failed = collect(executor, lambda e: isinstance(e, Failed))[-1]
    assert isinstance(failed, Failed) and failed.kind == "non_finite_loss"
    too_deep = ModelConfig(fractal_levels=(1,) * 6, base_channels=4, stem="conv3")
    executor.submit(0, 1, make_trial().model_copy(update={"model": too_deep}))
    failed = collect(executor, lambda e: isinstance(e, Failed))[-1]
    assert isinstance(failed, Failed) and failed.kind == "invalid_configuration"
    bug = ModelConfig.model_construct(**ModelConfig().model_dump() | {"activation": "no such function"})
    executor.submit(0, 2, make_trial().model_copy(update={"model": bug}))
    failed = collect(executor, lambda e: isinstance(e, Failed))[-1]
    assert isinstance(failed, Failed) and failed.kind == "error" and "Traceback" in failed.details
    executor.submit(0, 3, make_trial(epochs=1))
    assert kinds(collect(executor, lambda e: isinstance(e, Finished))) == [Started, Epoch, Finished]


def test_in_process_data_that_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        make_in_process(DataConfig(name="folder", root=str(tmp_path / "absent"))).start()


@pytest.mark.parametrize("make", MAKERS[1:], indirect=True)
def test_executor_data_that_cannot_be_loaded_says_so(make: Callable[..., Executor], tmp_path: Path) -> None:
    executor = make(DataConfig(name="folder", root=str(tmp_path / "absent")))
    executor.start()
    event = collect(executor, lambda e: isinstance(e, CannotStart))[0]
    assert isinstance(event, CannotStart) and "absent" in event.message
    executor.close()


def worker_processes() -> list[psutil.Process]:
    return [psutil.Process(child.pid) for child in multiprocessing.active_children()]


def test_processes_a_killed_worker_is_seen_at_once_and_replaced() -> None:
    executor = make_processes()
    executor.start()
    collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 3, make_trial(epochs=10_000))
    collect(executor, lambda e: isinstance(e, Epoch))
    (worker,) = worker_processes()
    os.kill(worker.pid, signal.SIGKILL)
    started = time.monotonic()
    died = collect(executor, lambda e: isinstance(e, WorkerDied), timeout=100)[-1]
    assert time.monotonic() - started < 90, "it is seen when it happens, not when the time is over"
    assert isinstance(died, WorkerDied) and died.kind == "worker_died" and "SIGKILL" in died.message
    collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 4, make_trial(epochs=1))
    assert kinds(collect(executor, lambda e: isinstance(e, Finished))) == [Started, Epoch, Finished]
    executor.close()
    assert not worker_processes()


def test_processes_a_worker_that_never_becomes_ready_is_given_up_after_three_starts() -> None:
    executor = ProcessExecutor(DATA, devices=["cpu"])
    executor.context = multiprocessing.get_context("spawn")  # it starts for seconds
    executor.start()
    found: list[Event] = []
    while not any(isinstance(event, WorkerLost) for event in found):
        for worker in worker_processes():
            worker.kill()
        found += [event for event in executor.events(timeout=0.1) if not isinstance(event, Notice)]
    assert kinds(found) == [WorkerDied, WorkerDied, WorkerLost]
    assert "worker 0 was not ready after 3 starts" in found[-1].message  # type: ignore[attr-defined]
    assert not worker_processes() and not executor.events(timeout=0)
    executor.close()


def test_processes_a_worker_that_is_stopped_can_be_ended_even_while_it_starts() -> None:
    executor = make_processes()
    executor.start()
    (worker,) = worker_processes()
    worker.suspend()
    executor.kill(0, reason="no sign of life")
    died = collect(executor, lambda e: isinstance(e, WorkerDied))[-1]
    assert died == WorkerDied(0, "no sign of life")
    collect(executor, lambda e: isinstance(e, Ready))
    executor.close()


COORDINATOR = """
from fbsearch.config.models import DataConfig
from fbsearch.messages import Ready
from fbsearch.workers.local import ProcessExecutor
executor = ProcessExecutor(DataConfig(limit=100), devices=["cpu"])
executor.start()
while not any(isinstance(event, Ready) for event in executor.events(timeout=1)):
    pass
print("ready", flush=True)
while True:
    executor.events(timeout=100)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process outlives its parent")
def test_processes_a_worker_that_is_stopped_ends_with_its_killed_coordinator() -> None:
    with subprocess.Popen([sys.executable, "-c", COORDINATOR], stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None and coordinator.stdout.readline() == "ready\n"
        children = psutil.Process(coordinator.pid).children()
        (worker,) = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
        worker.suspend()
        coordinator.kill()
    try:
        worker.wait(timeout=60)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


def test_processes_a_worker_that_is_lost_may_still_be_asked_to_stop() -> None:
    executor = ProcessExecutor(DATA, devices=["cpu"])  # not started: it has no process for the worker
    executor.stop_trial(0)
    assert executor.events(timeout=0) == []


def test_deal_spreads_workers_over_all_gpus() -> None:
    assert deal(["cuda:0", "cuda:1"], 5) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.gpu
@pytest.mark.skipif(num_gpus() == 0, reason="needs a CUDA device")
def test_processes_two_workers_share_a_gpu() -> None:
    devices = devices_for("cuda:0", None, workers_per_gpu=2)
    assert devices == ["cuda:0", "cuda:0"]
    executor = ProcessExecutor(DATA, devices=devices)
    executor.start()
    found = collect(executor, lambda e: isinstance(e, Ready))
    while sum(isinstance(event, Ready) for event in found) < 2:
        found += collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 0, make_trial())
    executor.submit(1, 1, make_trial())
    found = collect(executor, lambda e: isinstance(e, (Finished, Failed)))
    while sum(isinstance(event, (Finished, Failed)) for event in found) < 2:
        found += collect(executor, lambda e: isinstance(e, (Finished, Failed)))
    assert {event.trial for event in found if isinstance(event, Finished)} == {0, 1}
    assert all(event.execution.mode == "graph" for event in found if isinstance(event, Epoch) and event.execution)
    executor.close()


def test_devices_for_cpu_and_for_absent_gpus() -> None:
    assert devices_for("cpu", 3) == ["cpu"] * 3
    assert devices_for("cpu", None) == ["cpu"] * num_cpus()
    if num_gpus() == 0:
        assert devices_for("auto", 2) == ["cpu"] * 2
        for wanted in ("cuda", "cuda:0"):
            with pytest.raises(DeviceError, match="no CUDA device here; --device cpu"):
                devices_for(wanted, None)
