"""The worker pool: every transition of a worker, with an executor that gives the events that a test puts in."""

import dataclasses
from collections.abc import Iterator

import optuna
import pytest

from fbsearch.config.models import TrialConfig
from fbsearch.config.study_file import StudyConfig
from fbsearch.messages import (
    CannotStart,
    DatasetInfo,
    Epoch,
    EpochStats,
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
from fbsearch.search.hang_detector import MAX_START_SECONDS
from fbsearch.search.worker_pool import State, WorkerPool
from fbsearch.study.running_trial import RunningTrial

DIGITS = DatasetInfo(10, 1, 8, 100, 20, 20, tuple("0123456789"))
STATS = EpochStats(1, 1.0, 0.5, 1.0, 0.5, 0.01, 1.0, 0.9, 0.1, 100.0, 10.0)


class ScriptedExecutor:
    """An executor whose events are put in by the test, and that notes its calls."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.calls: list[tuple[str, int] | tuple[str, int, int | str]] = []
        self.due: list[Event] = []

    def start(self) -> None:
        self.calls.append(("start", self.num_workers))

    def submit(self, worker: int, trial: int, config: TrialConfig) -> None:
        self.calls.append(("submit", worker, trial))

    def stop_trial(self, worker: int) -> None:
        self.calls.append(("stop_trial", worker))

    def kill(self, worker: int, *, reason: str) -> None:
        self.calls.append(("kill", worker, reason))

    def events(self, *, timeout: float) -> list[Event]:
        events, self.due = self.due, []
        return events

    def close(self) -> None:
        self.calls.append(("close", self.num_workers))


class Pool:
    """A pool that has been started, its executor, and a study to take trials from."""

    def __init__(self, num_workers: int, *, trial_timeout: float | None = None) -> None:
        self.executor = ScriptedExecutor(num_workers)
        self.pool = WorkerPool(self.executor, trial_timeout=trial_timeout)
        self.study = optuna.create_study()
        self.config = StudyConfig().trial({}, seed=0)
        self.clock = 0.0
        self.pool.start()
        self.pool.kill_hung(self.clock)

    def give(self, *events: Event) -> list[tuple[Event, RunningTrial | None]]:
        """Let workers say something; what the pool makes of it."""
        self.executor.due += events
        return list(self.pool.events(timeout=0))

    def ready(self, worker: int, device: str = "cpu") -> None:
        self.give(Ready(worker, device, DIGITS, {}, seconds=1.0))

    def submit(self, worker: int, *, alone: bool = False) -> RunningTrial:
        running = RunningTrial(self.study.ask(), self.config, worker)
        self.pool.submit(running, alone=alone)
        return running

    @property
    def states(self) -> list[State]:
        return [worker.state for worker in self.pool.workers.values()]

    def hung_after(self, seconds: int) -> list[object]:
        """The workers killed in so many seconds of silence. The first look after an event begins to count."""
        before = len(self.executor.calls)
        for _ in range(seconds):
            self.clock += 1
            self.pool.kill_hung(self.clock)
        return list(self.executor.calls[before:])


@pytest.fixture
def one() -> Iterator[Pool]:
    """A pool of one worker that is idle."""
    pool = Pool(1, trial_timeout=30)
    pool.ready(0)
    yield pool


def test_pool_worker_starts_is_ready_and_trains_one_trial_after_another() -> None:
    pool = Pool(1)
    assert pool.states == ["starting"] and pool.pool.find_idle() is None and pool.pool.workers[0].device == ""
    pool.give(Notice(0, "5000 of 60000 images"))
    assert pool.states == ["starting"]
    pool.ready(0)
    assert pool.states == ["idle"] and pool.pool.find_idle() == 0 and pool.pool.workers[0].device == "cpu"
    for number in (0, 1):
        running = pool.submit(0)
        assert pool.states == ["busy"] and pool.pool.running == {0: running} and pool.pool.find_idle() is None
        assert pool.executor.calls[-1] == ("submit", 0, number)
        started, epoch = Started(0, number, 10, 1000), Epoch(0, number, STATS)
        assert pool.give(started, epoch) == [(started, running), (epoch, running)] and pool.states == ["busy"]
        finished = Finished(0, number, 0.5)
        assert pool.give(finished) == [(finished, running)]
        assert pool.states == ["idle"] and not pool.pool.running
    pool.pool.close()
    assert [call[0] for call in pool.executor.calls] == ["start", "submit", "submit", "close"]


def test_pool_worker_whose_trial_failed_is_idle_and_the_event_comes_with_its_trial(one: Pool) -> None:
    running = one.submit(0)
    failed = Failed(0, 0, "error", "a bug")
    assert one.give(failed) == [(failed, running)]
    assert one.states == ["idle"] and not one.pool.running


def test_pool_worker_that_cannot_start_stays_starting() -> None:
    pool = Pool(1)
    event = CannotStart(0, "absent")
    assert pool.give(event) == [(event, None)]
    assert pool.states == ["starting"]


def test_pool_submit_to_a_worker_that_is_not_idle_is_refused(one: Pool) -> None:
    one.submit(0)
    with pytest.raises(AssertionError, match="idle"):
        one.submit(0)


def test_pool_gives_trials_to_the_worker_that_has_been_idle_for_longest() -> None:
    pool = Pool(3)
    for worker in (2, 0, 1):
        pool.ready(worker)
    assert pool.pool.find_idle() == 2
    pool.submit(2)
    pool.give(Finished(2, 0, 0.5))
    assert pool.pool.find_idle() == 0


# A trial that is stopped.


@pytest.mark.parametrize("end", [Stopped(0, 0), Finished(0, 0, 0.5), Failed(0, 0, "error", "a bug")])
def test_pool_stopped_trial_is_no_longer_running_and_its_worker_is_idle_after_the_end(one: Pool, end: Event) -> None:
    """Whether it had stopped, or had come to its end before it was told to."""
    running = one.submit(0)
    one.pool.stop(running)
    assert one.states == ["stopping"] and not one.pool.running and one.pool.find_idle() is None
    assert one.executor.calls[-1] == ("stop_trial", 0)
    late = Epoch(0, 0, STATS)
    assert one.give(late) == [(late, None)] and one.states == ["stopping"]
    assert one.give(end) == [(end, None)]
    assert one.states == ["idle"] and one.pool.find_idle() == 0


def test_pool_stop_of_a_trial_that_has_ended_leaves_the_next_trial_alone(one: Pool) -> None:
    first = one.submit(0)
    one.give(Finished(0, 0, 0.5))
    one.pool.stop(first)
    assert one.states == ["idle"]
    second = one.submit(0)
    one.pool.stop(first)
    assert one.states == ["busy"] and one.pool.running == {0: second}
    assert not any(call[0] == "stop_trial" for call in one.executor.calls)


# A trial that needs its device alone.


def alone_waiting() -> tuple[Pool, RunningTrial]:
    """Workers 0 to 2 share a GPU, 3 has another; 0 waits to have it alone, 1 is busy, 2 and 3 are idle."""
    pool = Pool(4)
    for worker in range(4):
        pool.ready(worker, "cuda:1" if worker == 3 else "cuda:0")
    pool.submit(1)
    return pool, pool.submit(0, alone=True)


def test_pool_trial_alone_waits_for_the_others_of_its_device_which_get_no_trial() -> None:
    pool, running = alone_waiting()
    assert pool.states == ["waiting", "busy", "idle", "idle"] and pool.pool.running[0] is running
    assert pool.executor.calls[-1] == ("submit", 1, 0)
    assert pool.pool.find_idle() == 3, "the other device is free"
    pool.submit(3)
    assert pool.pool.find_idle() is None
    pool.give(Finished(1, 0, 0.5))
    assert pool.states == ["busy", "idle", "idle", "busy"] and pool.executor.calls[-1] == ("submit", 0, 1)
    assert pool.pool.find_idle() is None, "it is alone still"
    pool.give(Finished(0, 1, 0.5))
    assert pool.pool.find_idle() == 2


def test_pool_trial_alone_waits_for_a_trial_that_is_stopping() -> None:
    pool, _ = alone_waiting()
    pool.pool.stop(pool.pool.running[1])
    assert pool.states[:2] == ["waiting", "stopping"]
    pool.give(Stopped(1, 0))
    assert pool.states[:2] == ["busy", "idle"]


def test_pool_trial_alone_is_handed_out_when_the_other_worker_dies() -> None:
    pool, _ = alone_waiting()
    pool.give(WorkerDied(1, "killed"))
    assert pool.states[:2] == ["busy", "starting"]


def test_pool_trial_alone_that_is_stopping_keeps_its_device(one: Pool) -> None:
    pool, running = alone_waiting()
    pool.give(Finished(1, 0, 0.5))
    pool.pool.stop(running)
    assert pool.states[:3] == ["stopping", "idle", "idle"] and pool.pool.find_idle() == 3
    pool.give(Stopped(0, 1))
    assert pool.pool.find_idle() is not None


def test_pool_trial_alone_on_a_free_device_is_handed_out_at_once(one: Pool) -> None:
    one.submit(0, alone=True)
    assert one.states == ["busy"] and one.executor.calls[-1] == ("submit", 0, 0)


def test_pool_waiting_trial_that_is_stopped_was_never_handed_out() -> None:
    pool, running = alone_waiting()
    pool.pool.stop(running)
    assert pool.states == ["idle", "busy", "idle", "idle"] and pool.executor.calls[-1] == ("submit", 1, 0)
    pool.submit(2)
    assert pool.states[2] == "busy", "nobody waits for the device"


# Workers that die.


def test_pool_worker_that_dies_is_starting_in_every_state_and_gives_its_trial_back() -> None:
    cases: dict[State, bool] = {"starting": False, "idle": False, "busy": True, "stopping": False}
    for state, has_trial in cases.items():
        pool = Pool(1)
        if state != "starting":
            pool.ready(0)
        running = pool.submit(0) if state in ("busy", "stopping") else None
        if running is not None and state == "stopping":
            pool.pool.stop(running)
        assert pool.states == [state]
        [(event, given)] = pool.give(WorkerDied(0, "killed"))
        assert (event, given) == (WorkerDied(0, "killed", trial=0), running) if has_trial else (event, None)
        assert isinstance(event, WorkerDied) and event.trial == (0 if has_trial else None)
        assert pool.states == ["starting"] and not pool.pool.running and pool.pool.workers[0].device == ""
        pool.ready(0)
        assert pool.states == ["idle"]


def test_pool_waiting_worker_that_dies_gives_its_trial_back_and_frees_the_device() -> None:
    pool, running = alone_waiting()
    [(event, given)] = pool.give(WorkerDied(0, "the node was lost", kind="node_lost"))
    assert given is running and event == WorkerDied(0, "the node was lost", kind="node_lost", trial=1)
    assert pool.states[0] == "starting" and pool.pool.find_idle() == 2


def test_pool_is_lost_when_its_last_worker_is() -> None:
    pool = Pool(2)
    pool.give(WorkerLost(0, "absent"))
    assert pool.states == ["lost", "starting"] and not pool.pool.is_lost
    pool.ready(1)
    assert pool.pool.find_idle() == 1
    pool.give(WorkerDied(1, "killed"))
    assert not pool.pool.is_lost
    pool.give(WorkerLost(1, "absent"))
    assert pool.states == ["lost", "lost"] and pool.pool.is_lost
    assert not pool.hung_after(2 * int(MAX_START_SECONDS)), "nothing is expected from them"


def test_pool_worker_that_died_while_the_database_was_away_is_sent_nothing(one: Pool) -> None:
    """Its death has been received, but not handled, when a trial is asked for it."""
    one.executor.due += [WorkerDied(0, "killed"), Ready(0, "cpu", DIGITS, {}, seconds=1.0)]
    one.pool.receive(timeout=0)
    assert one.pool.has_events
    running = one.submit(0)
    assert not any(call[0] == "submit" for call in one.executor.calls)
    [(died, given), (ready, nothing)] = one.give()
    assert died == WorkerDied(0, "killed", trial=0) and given is running
    assert isinstance(ready, Ready) and nothing is None and one.states == ["idle"] and not one.pool.has_events
    one.submit(0)
    assert one.executor.calls[-1] == ("submit", 0, 1)


def test_pool_state_changes_as_each_event_is_given_and_not_before(one: Pool) -> None:
    """Who shows an event sees the state that belongs to it."""
    one.submit(0)
    one.executor.due += [Epoch(0, 0, STATS), Finished(0, 0, 0.5)]
    assert [(type(event), *one.states) for event, _ in one.pool.events(timeout=0)] == [
        (Epoch, "busy"),
        (Finished, "idle"),
    ]


# Workers that hang.


def test_pool_trial_that_hangs_is_killed_once_and_dies_as_hung(one: Pool) -> None:
    running = one.submit(0)
    assert one.hung_after(60) == [("kill", 0, "no epoch for 30 seconds")]
    assert one.states == ["busy"] and one.pool.running == {0: running}, "until it is known to be dead"
    [(event, given)] = one.give(WorkerDied(0, "no epoch for 30 seconds"))
    assert given is running and event == WorkerDied(0, "no epoch for 30 seconds", kind="hung", trial=0)


def test_pool_trial_that_ended_before_its_worker_was_killed_does_not_make_the_next_one_hung(one: Pool) -> None:
    one.submit(0)
    assert one.hung_after(32) != []
    one.give(Finished(0, 0, 0.5))
    one.submit(0)
    [(event, _)] = one.give(WorkerDied(0, "no epoch for 30 seconds"))
    assert event == WorkerDied(0, "no epoch for 30 seconds", kind="worker_died", trial=1)


def test_pool_worker_that_hangs_while_starting_is_killed_and_costs_no_trial() -> None:
    pool = Pool(1, trial_timeout=30)
    assert not pool.hung_after(int(MAX_START_SECONDS))
    assert [call[0] for call in pool.hung_after(2)] == ["kill"]
    [(event, running)] = pool.give(WorkerDied(0, "no sign of life"))
    assert (event, running) == (WorkerDied(0, "no sign of life"), None)
    pool.ready(0)
    pool.submit(0)
    [(event, _)] = pool.give(WorkerDied(0, "killed"))
    assert dataclasses.replace(event, trial=None) == WorkerDied(0, "killed"), "it had not hung this time"


def test_pool_worker_that_does_not_stop_is_killed_and_costs_no_trial(one: Pool) -> None:
    one.pool.stop(one.submit(0))
    assert [call[0] for call in one.hung_after(32)] == ["kill"]
    [(event, running)] = one.give(WorkerDied(0, "no epoch for 30 seconds"))
    assert (event, running) == (WorkerDied(0, "no epoch for 30 seconds"), None)


def test_pool_idle_and_waiting_workers_never_hang() -> None:
    pool = Pool(2, trial_timeout=30)
    pool.ready(0)
    pool.ready(1)
    assert not pool.hung_after(1000)
    pool.submit(1)
    pool.submit(0, alone=True)
    assert pool.states == ["waiting", "busy"]
    assert pool.hung_after(32) == [("kill", 1, "no epoch for 30 seconds")]
    pool.give(Finished(1, 0, 0.5))
    assert not pool.hung_after(30), "its silence counts from when it was handed out"


def test_pool_worker_whose_event_is_not_handled_yet_does_not_hang(one: Pool) -> None:
    one.submit(0)
    assert not one.hung_after(30)
    one.executor.due.append(Epoch(0, 0, STATS))
    one.pool.receive(timeout=0)
    assert not one.hung_after(10)
