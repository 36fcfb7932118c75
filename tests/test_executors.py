"""One suite for every executor: the same events in the same order, stopping between epochs, deaths that are seen."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fbsearch.config import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.errors import DataError, DeviceError, SearchError
from fbsearch.events import CannotStart, Epoch, Event, Failed, Finished, Notice, Ready, Started, Stopped, WorkerDied
from fbsearch.executors import Executor, InProcessExecutor, ProcessExecutor, devices_for, num_cpus, num_gpus

DATA = DataConfig(limit=100)


def make_trial(*, epochs: int = 2, learning_rate: float = 0.01) -> TrialConfig:
    model = ModelConfig(fractal_levels=(1,), base_channels=4, stem="conv3")
    return TrialConfig(data=DATA, model=model, train=TrainConfig(epochs=epochs, learning_rate=learning_rate))


def make_processes(data: DataConfig = DATA, num_workers: int = 1) -> Executor:
    return ProcessExecutor(data, devices=["cpu"] * num_workers)


def make_in_process(data: DataConfig = DATA) -> Executor:
    return InProcessExecutor(data, device="cpu")


@pytest.fixture(params=[make_in_process, make_processes])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made: Executor = request.param()
    made.start()
    yield made
    made.close()


def collect(executor: Executor, until: Callable[[Event], bool], seconds: float = 60) -> list[Event]:
    """Events up to and with the first that satisfies `until`."""
    found: list[Event] = []
    deadline = time.monotonic() + seconds
    while not any(until(event) for event in found):
        assert time.monotonic() < deadline, f"nothing came; so far {found}"
        found += [event for event in executor.events(timeout=0.2) if not isinstance(event, Notice)]
    return found


def kinds(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


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


def test_executor_same_trial_gives_the_same_numbers_everywhere() -> None:
    found = []
    for make in (make_in_process, make_processes):
        executor = make()
        executor.start()
        collect(executor, lambda e: isinstance(e, Ready))
        executor.submit(0, 0, make_trial(epochs=1))
        epoch = next(e for e in collect(executor, lambda e: isinstance(e, Finished)) if isinstance(e, Epoch))
        found.append((epoch.stats.val_accuracy, round(epoch.stats.train_loss, 4)))
        executor.close()
    assert found[0] == found[1]


def test_executor_stops_a_trial_between_two_epochs(executor: Executor) -> None:
    collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 0, make_trial(epochs=10_000))
    collect(executor, lambda e: isinstance(e, Epoch))
    executor.stop_trial(0)
    assert isinstance(collect(executor, lambda e: isinstance(e, (Stopped, Finished)))[-1], Stopped)
    executor.submit(0, 1, make_trial(epochs=1))
    assert kinds(collect(executor, lambda e: isinstance(e, Finished))) == [Started, Epoch, Finished]


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


def test_executor_data_that_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    absent = DataConfig(name="folder", root=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="absent"):
        make_in_process(absent).start()
    executor = make_processes(absent)
    executor.start()
    event = collect(executor, lambda e: isinstance(e, CannotStart))[0]
    assert isinstance(event, CannotStart) and "absent" in event.message
    executor.close()


def worker_processes() -> list[psutil.Process]:
    # Not the resource tracker that multiprocessing starts beside them.
    children = psutil.Process().children()
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


def test_processes_a_killed_worker_is_seen_at_once_and_replaced() -> None:
    executor = make_processes()
    executor.start()
    collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 3, make_trial(epochs=10_000))
    collect(executor, lambda e: isinstance(e, Epoch))
    (worker,) = worker_processes()
    os.kill(worker.pid, signal.SIGKILL)
    started = time.monotonic()
    died = collect(executor, lambda e: isinstance(e, WorkerDied))[-1]
    assert time.monotonic() - started < 2
    assert isinstance(died, WorkerDied) and died.trial == 3 and "SIGKILL" in died.message
    collect(executor, lambda e: isinstance(e, Ready))
    executor.submit(0, 4, make_trial(epochs=1))
    assert kinds(collect(executor, lambda e: isinstance(e, Finished))) == [Started, Epoch, Finished]
    executor.close()
    assert not worker_processes()


def test_processes_a_worker_that_never_becomes_ready_ends_the_search() -> None:
    executor = make_processes()
    executor.start()
    with pytest.raises(SearchError, match="died 3 times before it was ready"):
        for _ in range(200):
            for worker in worker_processes():
                worker.kill()
            executor.events(timeout=0.1)
    executor.close()


def test_devices_for_cpu_and_for_absent_gpus() -> None:
    assert devices_for("cpu", 3) == ["cpu"] * 3
    assert devices_for("cpu", None) == ["cpu"] * num_cpus()
    if num_gpus() == 0:
        assert devices_for("auto", 2) == ["cpu"] * 2
        for wanted in ("cuda", "cuda:0"):
            with pytest.raises(DeviceError, match="no CUDA device here; --device cpu"):
                devices_for(wanted, None)
