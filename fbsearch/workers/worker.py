"""Train one TrialConfig after another, and report each trial as a stream of events.

A worker runs many trials: it sets up the device and loads the data once. It never waits for an answer; before every
step it checks for a request to stop. The same `Worker` runs in a process or in the coordinator (`--workers 0`). Where a
trial leaves its GPU unusable for the process, the worker ends before it is given another one.
"""

import gc
import importlib
import importlib.metadata
import platform
import sys
import time
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection

import torch

from fbsearch.config.models import DataConfig, LimitsConfig, TrialConfig
from fbsearch.data.dataset import VALIDATION_BATCH, load_dataset
from fbsearch.errors import DeviceLostError, FbsearchError, TrialError
from fbsearch.messages import (
    CannotStart,
    Ending,
    Epoch,
    EpochStats,
    Event,
    Execution,
    Failed,
    FailureKind,
    Finished,
    Notice,
    Ready,
    Started,
    Stopped,
    kept_epoch,
)
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import (
    check_gpu,
    choose_device,
    choose_dtype,
    describe_error,
    is_out_of_memory,
    prepare_device,
)
from fbsearch.training.loop import train
from fbsearch.training.requirements import estimate_memory, measure_cost
from fbsearch.training.step import describe_execution
from fbsearch.workers.attention import take_attention
from fbsearch.workers.samples import take_samples
from fbsearch.workers.tensorboard import curves

VERSIONED = ("fbsearch", "torch", "numpy")


class Worker:
    """A device and a loaded data set on which trials are trained, one at a time."""

    def __init__(self, number: int, data: DataConfig, *, device: str, say: Callable[[Notice], None]) -> None:
        """Set up the device and load the data; `say` gets the progress. DeviceError or DataError if that fails."""
        started = time.perf_counter()
        # The first optimiser of a process imports this (3 s): do it before the first trial.
        importlib.import_module("torch._dynamo")
        self.number = number
        self.device = choose_device(device)
        prepare_device(self.device)
        self.data = load_dataset(
            data, device=self.device, with_test=False, on_progress=lambda text: say(Notice(number, text))
        )
        self.ready = Ready(
            worker=number,
            device=_device_name(self.device),
            dataset=self.data.info,
            versions={"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in VERSIONED},
            seconds=time.perf_counter() - started,
            samples=take_samples(self.data),
        )

    def run(
        self, trial: int, config: TrialConfig, *, stop_requested: Callable[[], bool] = lambda: False
    ) -> Generator[Event, None, None]:
        """Yield the events of one trial, from Started to Finished, Stopped or Failed.

        `stop_requested` is called before every training step; if it is true the trial ends with Stopped. Closing the
        generator ends the trial between two epochs, without an event. Raise DeviceLostError, and give no event, where
        the process can no longer use its GPU.
        """
        try:
            yield from self._train(trial, config, stop_requested)
        except DeviceLostError:
            raise
        except TrialError as error:
            yield Failed(self.number, trial, error.kind, str(error))
        except FbsearchError as error:
            yield Failed(self.number, trial, FailureKind.INVALID_CONFIGURATION, str(error))
        except Exception as error:  # a bug fails the trial, with its traceback; the worker goes on
            check_gpu(error)
            kind = FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.ERROR
            yield Failed(self.number, trial, kind, describe_error(error), traceback.format_exc())
        finally:
            # The frame of `_train`, which held the network, is gone. After DeviceLostError no CUDA call succeeds.
            if not isinstance(sys.exception(), DeviceLostError):
                self._free()

    def _train(
        self, trial: int, config: TrialConfig, stop_requested: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        """Yield the events of a trial that no error ends."""
        torch.manual_seed(config.seed)
        yield (started := self._gate(trial, config))
        check_limits(started, config.limits)
        model = FractalBrainNet.for_images(config.model, self.data.info.shape)
        history = []
        executions: list[Execution] = []
        with curves(config, trial=trial) as write_curves:
            for stats in train(
                model.to(self.device), config, self.data, stop_requested=stop_requested, on_execution=executions.append
            ):
                history.append(stats)
                write_curves(stats)
                execution = executions.pop() if executions else None
                if execution is not None and execution.reason:
                    yield Notice(self.number, f"trial {trial}: {describe_execution(execution)}")
                yield Epoch(self.number, trial, stats, execution)
        if stop_requested():
            yield Stopped(self.number, trial)
        else:
            attention = take_attention(model, self.data)
            yield Finished(self.number, trial, final_value(history, config), attention)

    def _gate(self, trial: int, config: TrialConfig) -> Started:
        """Measure the cost of a configuration. Memory takes 0.2 to 0.5 s: only where it is limited or a goal."""
        shape = self.data.info.shape
        cost = measure_cost(config.model, shape)
        memory_mib = None
        if config.limits.memory_mib is not None or "memory" in config.goals:
            dtype = choose_dtype(config.train.precision, self.device)
            batch = min(VALIDATION_BATCH, self.data.info.num_val)
            memory_mib = estimate_memory(config, shape, device=self.device, dtype=dtype, validation_batch=batch)
        return Started(self.number, trial, cost.num_parameters, cost.flops, memory_mib)

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def final_value(history: list[EpochStats], config: TrialConfig) -> float:
    """Return the value of the first goal, with the weights that a run with these epochs has kept."""
    return float(getattr(kept_epoch(history, keep_best=config.train.keep_best), config.goals[0]))


def check_limits(started: Started, limits: LimitsConfig) -> None:
    """Raise TrialError of the kind `over_limits`, naming each limit, if a cost is over a limit."""
    over = [
        f"{started.costs[key]:,.0f} {key} of at most {getattr(limits, key):,.0f}"
        for key, excess in limits.excess(started.costs).items()
        if excess > 0
    ]
    if over:
        raise TrialError(f"over search.limits: {', '.join(over)}", kind=FailureKind.OVER_LIMITS)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda:{device.index or 0} {torch.cuda.get_device_name(device)}"
    return f"cpu {platform.machine()}"


def serve(connection: Connection, number: int, data: DataConfig, device: str, num_threads: int) -> None:
    """Run a worker until the process is killed: read (trial, TrialConfig), or None to stop the trial; send events.

    Raise DeviceLostError, after Ending was sent, where the process must end: it can no longer use its GPU.
    """
    torch.set_num_threads(num_threads)
    try:
        worker = Worker(number, data, device=device, say=connection.send)
    except FbsearchError as error:
        connection.send(CannotStart(number, str(error)))
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        text = f"--device {device}: no memory is left for this worker ({describe_error(error)}); start fewer workers"
        connection.send(CannotStart(number, text))
        return
    connection.send(worker.ready)
    try:
        while True:
            message = connection.recv()
            if message is not None:  # None: "stop" for a trial that had just ended
                _serve_trial(connection, worker, *message)
    except DeviceLostError as error:
        connection.send(Ending(number, str(error)))
        raise


def _serve_trial(connection: Connection, worker: Worker, trial: int, config: TrialConfig) -> None:
    for event in worker.run(trial, config, stop_requested=connection.poll):
        if isinstance(event, Stopped):
            message = connection.recv()
            assert message is None, "a trial was sent to a busy worker"
        connection.send(event)
