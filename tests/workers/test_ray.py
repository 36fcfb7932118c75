"""Workers on a real Ray cluster: nodes that come and go, a coordinator that is killed, addresses that are wrong."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from optuna.trial import TrialState
from ray_cluster import NODE

from fbsearch.config.models import DataConfig, ModelConfig, TrainConfig, TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.errors import DeviceError
from fbsearch.messages import CannotStart, Epoch, Event, Notice, Ready, Started, WorkerDied
from fbsearch.search.coordinator import Coordinator
from fbsearch.search.state import SearchState
from fbsearch.study.study import create_study
from fbsearch.workers.ray import RayExecutor
from fbsearch.workers.ray_cluster import make_ray_executor, plan

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from ray.cluster_utils import Cluster

DATA = DataConfig(limit=100)
SMALL = {
    "name": "small",
    "data": {"limit": 100},
    "model": {"base_channels": 4, "pattern_resolution": 8, "fractal_levels": [1]},
    "train": {"epochs": 3},
    "space": {"train.learning_rate": {"low": 0.003, "high": 0.05, "log": True}},
    "search": {"pruner": "none", "sampler": "random"},
}


def make_trial(*, epochs: int) -> TrialConfig:
    model = ModelConfig(fractal_levels=(1,), base_channels=4, stem="conv3")
    return TrialConfig(data=DATA, model=model, train=TrainConfig(epochs=epochs))


def collect(executor: RayExecutor, until: Callable[[Event], bool], seconds: float = 240) -> list[Event]:
    found: list[Event] = []
    deadline = time.monotonic() + seconds
    while not any(until(event) for event in found):
        assert time.monotonic() < deadline, f"nothing came; so far {found}"
        found += executor.events(timeout=0.2)
    return found


def ready(events: list[Event]) -> set[int]:
    return {event.worker for event in events if isinstance(event, Ready)}


def actors() -> list[psutil.Process]:
    """The workers on the cluster of this test session; Ray names a process by its actor."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if name_of(process).startswith("ray::RayWorker")]


def name_of(process: psutil.Process) -> str:
    try:
        return process.name() if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.NoSuchProcess:
        return ""


def wait_until(done: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_ray_with_too_little_room_runs_what_fits_and_fills_the_place_of_the_dead(
    make_ray: Callable[..., RayExecutor],
) -> None:
    executor = make_ray(DATA, num_workers=2, seconds_to_place=1)
    executor.start()
    events = collect(executor, lambda e: isinstance(e, Notice) and "1 of 2 workers wait" in e.text)
    if not any(isinstance(event, Ready) for event in events):
        events += collect(executor, lambda e: isinstance(e, Ready))
    (first,) = ready(events)
    executor.submit(first, 3, make_trial(epochs=10_000))
    collect(executor, lambda e: isinstance(e, Epoch))
    (actor,) = actors()
    os.kill(actor.pid, signal.SIGKILL)
    died = collect(executor, lambda e: isinstance(e, WorkerDied))[-1]
    assert isinstance(died, WorkerDied) and (died.worker, died.kind) == (first, "worker_died")
    (second,) = ready(collect(executor, lambda e: isinstance(e, Ready)))
    executor.submit(second, 4, make_trial(epochs=10_000))
    collect(executor, lambda e: isinstance(e, Started))
    executor.kill(second, reason="no sign of life")
    died = collect(executor, lambda e: isinstance(e, WorkerDied))[-1]
    assert isinstance(died, WorkerDied) and (died.worker, died.kind) == (second, "worker_died")
    executor.close()
    wait_until(lambda: not actors())


@pytest.mark.slow
def test_ray_another_version_on_a_node_is_refused_with_the_name_of_the_node(
    make_ray: Callable[..., RayExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_ray(DATA)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.7")
    executor.start()
    event = collect(executor, lambda e: isinstance(e, CannotStart))[-1]
    assert isinstance(event, CannotStart)
    assert event.message.startswith("node 127.0.0.1: fbsearch ") and "0.0.7 here" in event.message
    executor.close()


class Saboteur:
    """Removes a node once all workers train, and adds another when that was noticed; then a few more trials."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.node = cluster.add_node(**{**NODE, "num_cpus": 2})
        self.lost: list[WorkerDied] = []
        self.back: set[int] = set()
        self.is_removed = False

    def __call__(self, state: SearchState, event: Event | None) -> None:
        if isinstance(event, Epoch) and len(state.running) == 3 and not self.is_removed:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.is_removed = True
        elif isinstance(event, WorkerDied):
            self.lost.append(event)
            if len(self.lost) == 2:
                self.cluster.add_node(**{**NODE, "num_cpus": 2})
        elif isinstance(event, Started) and event.worker in {died.worker for died in self.lost} - self.back:
            self.back.add(event.worker)
            if len(self.back) == 2:
                state.num_trials = state.num_finished + 5


@pytest.mark.slow
def test_ray_a_lost_node_costs_its_running_trials_and_a_new_one_is_used(
    make_ray: Callable[..., RayExecutor], ray_cluster: "Cluster", storage: "RDBStorage"
) -> None:
    # Long enough that all three train at the same moment, however slow the machine is.
    config = StudyConfig.model_validate(SMALL | {"train": {"epochs": 60}, "search": {"pruner": "none"}})
    saboteur = Saboteur(ray_cluster)
    study = create_study(storage, config)
    executor = make_ray(config.data, num_workers=3)
    state = Coordinator(study, config, executor, num_trials=100_000, show=saboteur).run()
    for node in set(ray_cluster.worker_nodes):
        ray_cluster.remove_node(node)
    # Two at least: where a machine is overloaded a third worker may not answer in time, and is taken for lost, too.
    assert state.end == "finished" and len(saboteur.back) >= 2
    assert len(saboteur.lost) >= 2 and {died.kind for died in saboteur.lost} == {"node_lost"}
    trials = study.get_trials()
    by_state = {kind: [trial for trial in trials if trial.state == kind] for kind in TrialState}
    assert len(by_state[TrialState.COMPLETE]) == state.num_trials
    assert {trial.number for trial in by_state[TrialState.FAIL]} == {died.trial for died in saboteur.lost} - {None}
    assert not by_state[TrialState.RUNNING] and not by_state[TrialState.WAITING]
    for trial in by_state[TrialState.COMPLETE]:
        assert [stats["epoch"] for stats in trial.user_attrs["history"]] == list(range(1, 61))


def fbsearch(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """The command, started in a folder with the study file `small.yaml`."""
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return subprocess.Popen(
        [sys.executable, "-m", "fbsearch", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
    )  # fmt: skip


@pytest.mark.slow
def test_ray_a_killed_coordinator_takes_its_workers_along_and_the_same_command_goes_on(
    ray_cluster: "Cluster", tmp_path: Path
) -> None:
    command = ["run", "small.yaml", "--trials", "3", "--ray", ray_cluster.address, "--workers", "1"]
    first = fbsearch(tmp_path, *command)
    assert first.stdout is not None
    assert any("is ready on cpu" in line for line in first.stdout)
    assert len(actors()) == 1
    first.kill()
    first.communicate()
    wait_until(lambda: not actors())
    second = fbsearch(tmp_path, *command)
    output, _ = second.communicate(timeout=400)
    assert second.returncode == 0 and "3 trials finished" in output, output


@pytest.mark.slow
def test_ray_local_listens_on_loopback_alone_and_dies_with_the_coordinator(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    run = fbsearch(tmp_path, "run", "small.yaml", "--trials", "500", "--ray", "local", "--workers", "1", env=env)
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if "[1/500]" in line:
            break
    else:
        raise AssertionError("".join(lines))
    coordinator = psutil.Process(run.pid)
    family = [coordinator, *coordinator.children(recursive=True)]
    assert len(family) > 5
    listening = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not (tmp_path / ".ray").exists(), "its token is for itself, not for a file"
    assert len(lines) <= 5, "Ray says nothing on the terminal"
    # Ray's two agents find out by themselves, after about a minute; whatever trains or hands out work goes at once.
    agents = ("ray::DashboardA", "ray::RuntimeEnv")
    family = [process for process in family if not name_of(process).startswith(agents)]
    run.kill()
    run.wait()
    run.stdout.close()
    wait_until(lambda: not any(name_of(process) for process in family))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://127.0.0.1:10001", "without ://"),
        ("somewhere", "HOST:PORT"),
        ("127.0.0.1:1", "nothing answers there (Connection refused)"),
    ],
)
def test_ray_wrong_address_is_said_in_words(address: str, says: str) -> None:
    options: dict[str, Any] = {"device": "auto", "workers": 1, "gpus_per_worker": None}
    with pytest.raises(DeviceError, match=re.escape(says)) as refused:
        make_ray_executor(DATA, address=address, **options)
    assert f"--ray {address}" in str(refused.value) and "ray start --head" in str(refused.value)


def test_ray_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DeviceError, match=r"pip install 'fbsearch\[ray\]'"):
        make_ray_executor(DATA, address="auto", device="auto", workers=None, gpus_per_worker=None)


@pytest.mark.parametrize(
    ("resources", "options", "planned"),
    [
        ({"CPU": 8.0}, {"device": "auto"}, (8, 0)),
        ({"CPU": 32.0, "GPU": 8.0}, {"device": "auto"}, (8, 1)),
        ({"CPU": 32.0, "GPU": 8.0}, {"device": "auto", "gpus": 0.1}, (32, 0.1)),
        ({"CPU": 32.0, "GPU": 3.0}, {"device": "auto", "gpus": 0.1}, (30, 0.1)),
        ({"CPU": 32.0, "GPU": 8.0}, {"device": "cpu"}, (32, 0)),
        ({"CPU": 4.0}, {"device": "cuda", "workers": 32}, (32, 1)),
    ],
)
def test_plan_fills_the_cluster(
    resources: dict[str, float], options: dict[str, Any], planned: tuple[int, float]
) -> None:
    assert plan(resources, **{"workers": None, "gpus": None} | options) == planned


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cpu", "gpus": 0.5}, "contradicts --device cpu"),
        ({"device": "cuda", "gpus": 0}, "contradicts --device cuda"),
        ({"device": "auto", "gpus": 1.5}, "whole"),
        ({"device": "cuda"}, "no room for a worker"),
    ],
)
def test_plan_that_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DeviceError, match=says):
        plan({"CPU": 8.0}, **{"workers": None, "gpus": None} | options)
