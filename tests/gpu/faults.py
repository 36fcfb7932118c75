"""Part C: faults (no memory, a killed worker, a lost context), teams of processes, and the winner of part B."""

import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu.commands import Command, read_study, wait_until, workers_of, write_study
from gpu.harness import Setting, Step

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.data.dataset import load_dataset
from fbsearch.errors import FbsearchError
from fbsearch.messages import Event, Failed, Finished, Ready, WorkerDied
from fbsearch.network.model import FractalBrainNet
from fbsearch.training.devices import choose_device, prepare_device
from fbsearch.training.distributed import Team
from fbsearch.training.loop import train
from fbsearch.workers.local import ProcessExecutor

DATA = DataConfig(limit=100)
MODEL = ModelConfig(fractal_levels=(1,), base_channels=4, stem="conv3")
FATAL_SEED = 666
WINNER_SECONDS, CIFAR_GOAL = 270, 0.93
LEFT_GIB = 4


def train_winner(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """Train the winner of part B on all training images, and score the test images once."""
    folder = setting.output / "winner"
    shutil.rmtree(folder, ignore_errors=True)
    options: list[object] = ["--seeds", 1, "--device", setting.device, "--output", folder]
    options += setting.small(["--epochs", 1], ["--seconds", WINNER_SECONDS])
    started = time.monotonic()
    Command(setting, folder, "train", setting.winner, *options).wait()
    (result,) = folder.rglob("result.json")
    found = yaml.safe_load(result.read_text())
    measured = {"test_accuracy": found["accuracy"], "seconds_of_all": time.monotonic() - started}
    return setting.tiny or measured["test_accuracy"] >= CIFAR_GOAL, measured


def run_out_of_memory(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """A study beside a process that holds the GPU: what does not fit is tried alone, then infeasible; N stays N."""
    folder, num_trials = setting.output / "no-memory", setting.small(2, 8)
    space = {"model.base_channels": {"choices": setting.small([4, 8], [8, 512])}}
    path = write_study(
        folder, name="no-memory", data={"limit": setting.small(60, 1000), "image_size": setting.small(8, 64)},
        train={"epochs": 1, "batch_size": setting.small(16, 256)}, space=space, search={"sampler": "random"},
        model={"fractal_levels": setting.small([1], [3, 3]), "dynamics": "all", "stem": "conv3"},
    )  # fmt: skip
    with _Holder(setting.device):
        command = ["run", path, "--trials", num_trials, "--workers", setting.small(1, 2), "--device", setting.device]
        Command(setting, folder, *command, "--storage", f"sqlite:///{folder}/fbsearch.db").wait()
    measured = read_study(folder)
    kinds = {text.partition(":")[0] for text in measured["failures"]}
    return measured["num_finished"] == num_trials and (setting.tiny or kinds == {"out_of_memory"}), measured


class _Holder:
    """A process that holds all memory of a GPU but LEFT_GIB while the context lasts."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> None:
        context = multiprocessing.get_context("fork" if self._device == "cpu" else "spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_hold, args=(theirs, self._device), daemon=True)
        self._process.start()
        self._ours.recv()

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _hold(connection: Any, name: str) -> None:
    device, held = choose_device(name), []
    if device.type == "cuda":
        num_bytes = torch.cuda.mem_get_info(device)[0] - LEFT_GIB * 2**30
        held.append(torch.empty(num_bytes, dtype=torch.uint8, device=device))
    connection.send(len(held))
    time.sleep(3600)


def kill_worker(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """SIGKILL a worker in the middle of a search; the search ends with all its trials, one attempt more."""
    folder, num_trials = setting.output / "killed", setting.small(2, 20)
    train_settings = {"epochs": setting.small(12, 20), "batch_size": 16}
    path = write_study(
        folder, name="killed", data={"limit": 60}, train=train_settings, search={"pruner": "none"},
        space={"train.learning_rate": {"choices": [0.001, 0.002, 0.003, 0.004]}},
        model={"fractal_levels": [1], "base_channels": 4, "stem": "conv3"},
    )  # fmt: skip
    workers = setting.small(1, 2)
    command = ["run", path, "--trials", num_trials, "--workers", workers, "--device", setting.device]
    running = Command(setting, folder, *command, "--storage", f"sqlite:///{folder}/fbsearch.db")
    assert wait_until(lambda: _has_epochs(folder), seconds=90)
    workers_of(running)[-1].kill()
    running.wait()
    measured = read_study(folder)
    num_died = sum(count for text, count in measured["failures"].items() if "SIGKILL" in text)
    return measured["num_finished"] == num_trials and num_died == 1, measured


def _has_epochs(folder: Path) -> bool:
    try:
        return bool(read_study(folder)["num_epochs"])
    except FbsearchError:  # the search has not created its study yet
        return False


def lose_context(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """A device-side assertion in one trial: its worker is replaced before another trial is handed over.

    On a CPU the same fault is an ordinary exception, which fails the trial and no worker.
    """
    executor = ProcessExecutor(DATA, devices=[setting.device])
    executor.context = _FaultyContext()
    executor.start()
    events = _collect(executor, Ready)
    executor.submit(0, 1, _trial(FATAL_SEED))
    events += _collect(executor, (WorkerDied, Failed))
    died = isinstance(events[-1], WorkerDied)
    if died:
        events += _collect(executor, Ready)
    executor.submit(0, 2, _trial(0))
    events += _collect(executor, (Finished, Failed, WorkerDied))
    executor.close()
    reason = next(event.message for event in events if isinstance(event, (WorkerDied, Failed)))
    measured = {"events": [type(event).__name__ for event in events], "reason": reason}
    return isinstance(events[-1], Finished) and died == setting.on_gpu, measured


def _trial(seed: int) -> TrialConfig:
    return TrialConfig(data=DATA, model=MODEL, train=TrainConfig(epochs=1), seed=seed)


def _collect(executor: ProcessExecutor, kinds: Any) -> list[Event]:
    found: list[Event] = []
    assert wait_until(
        lambda: found.extend(executor.events(timeout=0.1)) or any(isinstance(event, kinds) for event in found),
        seconds=90,
    ), found
    return found


class _FaultyProcess(multiprocessing.get_context("fork").Process):  # type: ignore[misc]
    """A worker in which the trial of FATAL_SEED asks for the loss of a class that does not exist."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> None:
        super().__init__(target=_serve_faulty, args=(target, args), **options)


class _FaultyContext(multiprocessing.context.ForkContext):
    Process = _FaultyProcess


def _serve_faulty(target: Callable[..., None], args: tuple[Any, ...]) -> None:
    seed_all = torch.manual_seed

    def manual_seed(seed: int) -> Any:
        if seed == FATAL_SEED:
            device = "cuda" if torch.cuda.is_initialized() else "cpu"
            logits_BK, labels_B = torch.zeros(4, 10, device=device), torch.full((4,), 1000, device=device)
            torch.nn.functional.cross_entropy(logits_BK, labels_B).item()
        return seed_all(seed)

    torch.manual_seed = manual_seed
    target(*args)


def train_in_teams(setting: Setting) -> tuple[bool, dict[str, Any]]:
    """One process of a team with the GPU's own library, and two with gloo on one GPU: the same losses twice."""
    losses = {}
    for backend, num_processes in (("nccl" if setting.on_gpu else "gloo", 1), ("gloo", 2)):
        losses[f"{backend} {num_processes}"] = _train_team(setting, backend, num_processes)
    first, second = (values[0] for values in losses.values())
    return all(value == value and value < 10 for value in (first[-1], second[-1])), {"losses": losses}


def _train_team(setting: Setting, backend: str, num_processes: int) -> list[list[float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork" if setting.tiny else "spawn")
    pipes = [context.Pipe() for _ in range(num_processes)]
    processes = []
    for rank, (_, theirs) in enumerate(pipes):
        args = (theirs, rank, num_processes, backend, port, setting.device)
        processes.append(context.Process(target=_train_rank, args=args, daemon=True))
        processes[-1].start()
    found = []
    for ours, _ in pipes:
        assert ours.poll(90), "a process of the team gave no result"
        found.append(ours.recv())
    for process in processes:
        process.join(30)
    return found


def _train_rank(connection: Any, rank: int, num_processes: int, backend: str, port: int, device_name: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = choose_device(device_name)
    prepare_device(device)
    options = {"device_id": torch.device("cuda", torch.cuda.current_device())} if backend == "nccl" else {}
    torch.distributed.init_process_group(backend, rank=rank, world_size=num_processes, **options)
    data = load_dataset(DATA, device=device)
    config = TrialConfig(data=DATA, model=MODEL, train=TrainConfig(epochs=2, batch_size=32, cuda_graph=False))
    torch.manual_seed(0)
    net = FractalBrainNet.for_images(MODEL, data.info.shape).to(device)
    wrapped = torch.nn.parallel.DistributedDataParallel(net) if num_processes == 1 else net
    losses = [stats.train_loss for stats in train(wrapped, config, data, team=Team(rank, num_processes))]
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    connection.send(losses)


STEPS = [
    Step("no memory", run_out_of_memory, 90, {"failures": "out_of_memory alone, then infeasible"}),
    Step("killed worker", kill_worker, 60, {"failures": "worker_died once"}),
    Step("lost context", lose_context, 60, {"events": "WorkerDied, Ready, Finished: no innocent attempt lost"}),
    Step("teams", train_in_teams, 60, {"losses": "alike"}),
    Step("winner", train_winner, 330, {"test_accuracy": "0.90-0.94"}),
]
