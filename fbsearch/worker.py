"""A worker: takes TrialConfigs, trains them one after another, gives events. Knows nothing of Optuna.

It lives through many trials: the device is set up and the data set loaded once. It never waits for an answer; whether
to stop is looked up before every step. The same `Worker` runs in a process or in the coordinator (`--workers 0`).
"""

import gc
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection

import torch

from fbsearch.config import DataConfig, TrialConfig
from fbsearch.cost import measure_cost
from fbsearch.data import load_dataset
from fbsearch.errors import FbsearchError, TrialError
from fbsearch.events import CannotStart, Epoch, Event, Failed, Finished, Notice, Ready, Started, Stopped
from fbsearch.model import FractalBrainNet
from fbsearch.tensorboard import curves
from fbsearch.train import choose_device, final_accuracy, train

VERSIONED = ("fbsearch", "torch", "numpy")


class Worker:
    """One slot of a search: a device and a data set that stay, and trials that come and go."""

    def __init__(self, number: int, data: DataConfig, *, device: str, say: Callable[[Notice], None]) -> None:
        """Set up the device and load the data. DeviceError and DataError where that cannot be done."""
        started = time.perf_counter()
        # The first optimiser of a process imports this (3 s). Better while nobody waits than in the first trial.
        importlib.import_module("torch._dynamo")
        self.number = number
        self.device = choose_device(device)
        # The same numbers for the same seed; on the networks here the deterministic kernels cost nothing noticeable.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # The test split is not for a search: it is not even loaded.
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
        )

    def run(
        self, trial: int, config: TrialConfig, *, stop_requested: Callable[[], bool] = lambda: False
    ) -> Generator[Event, None, None]:
        """The events of one trial, from Started to Finished, Stopped or Failed.

        The trial ends with Stopped soon after `stop_requested` is true: it is asked before every training step.
        Closing the generator stops the trial too, between two epochs and without an event.
        """
        try:
            torch.manual_seed(config.seed)
            info = self.data.info
            shape = {"num_classes": info.num_classes, "in_channels": info.in_channels, "image_size": info.image_size}
            cost = measure_cost(config.model, **shape)
            yield Started(self.number, trial, cost.num_parameters, cost.flops)
            model = FractalBrainNet(config.model, **shape)
            history = []
            with curves(config, trial=trial) as write_curves:
                for stats in train(model.to(self.device), config, self.data, stop_requested=stop_requested):
                    history.append(stats)
                    write_curves(stats)
                    yield Epoch(self.number, trial, stats)
            if stop_requested():
                yield Stopped(self.number, trial)
            else:
                yield Finished(self.number, trial, final_accuracy(history, config.train))
        except TrialError as error:
            yield Failed(self.number, trial, error.kind, str(error))
        except FbsearchError as error:
            yield Failed(self.number, trial, "invalid_configuration", str(error))
        except Exception as error:  # a trial's bug must not take the worker down: it is recorded with its traceback
            kind = "out_of_memory" if is_out_of_memory(error) else "error"
            message = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            yield Failed(self.number, trial, kind, message, traceback.format_exc())
        finally:
            self._free()

    def _free(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error is that a device or the machine had no memory left; torch's CPU allocator says it in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda:{device.index or 0} {torch.cuda.get_device_name(device)}"
    return f"cpu {platform.machine()}"


def serve(connection: Connection, number: int, data: DataConfig, device: str, num_threads: int) -> None:
    """Be a worker process: read (trial, TrialConfig) or None ("stop the trial"), send events, until killed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(num_threads)
    try:
        worker = Worker(number, data, device=device, say=connection.send)
    except FbsearchError as error:
        connection.send(CannotStart(number, str(error)))
        return
    connection.send(worker.ready)
    while True:
        message = connection.recv()
        if message is not None:  # None: "stop" for a trial that had just ended
            _serve_trial(connection, worker, *message)


def _serve_trial(connection: Connection, worker: Worker, trial: int, config: TrialConfig) -> None:
    for event in worker.run(trial, config, stop_requested=connection.poll):
        if isinstance(event, Stopped):
            message = connection.recv()
            assert message is None, "a trial was sent to a busy worker"
        connection.send(event)


def _die_with_parent() -> None:
    """End this process the moment the coordinator is gone, even when that was killed and could not say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
