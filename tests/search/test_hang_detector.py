"""Which worker hangs: what is usual, what is too long, and what is not counted."""

import dataclasses

import pytest

from fbsearch.messages import Epoch, EpochStats, Finished, Notice, Started, WorkerDied
from fbsearch.search.hang_detector import MAX_START_SECONDS, MIN_EPOCHS, MIN_SECONDS, Silence

STATS = EpochStats(1, 1.0, 0.5, 1.0, 0.5, 0.01, 1.0, 0.9, 0.1, 100.0, 10.0)


def give_epochs(silence: Silence, worker: int, *, seconds: float, flops: int = 1000, count: int = MIN_EPOCHS) -> None:
    silence.submit(worker)
    silence.hear(Started(worker, 0, 10, flops))
    for _ in range(count):
        silence.hear(Epoch(worker, 0, dataclasses.replace(STATS, seconds=seconds)))


def hangs_after(silence: Silence, worker: int) -> float | None:
    """After how many seconds of silence the worker hangs, looked at each second."""
    for now in range(20_000):
        if worker in dict(silence.look(float(now))):
            return now
    return None


def test_silence_with_a_timeout_ends_a_trial_after_it_and_says_so() -> None:
    silence = Silence(trial_timeout=30)
    silence.submit(0)
    assert hangs_after(silence, 0) == 31
    assert dict(silence.look(20_000)) == {0: "no epoch for 30 seconds"}


def test_silence_without_a_timeout_is_10_of_the_trials_own_epochs_and_at_least_a_minute() -> None:
    silence = Silence()
    give_epochs(silence, 0, seconds=20)
    give_epochs(silence, 1, seconds=0.1)
    assert (silence.limit(0), silence.limit(1)) == (200, MIN_SECONDS)


def test_silence_before_the_first_epoch_is_measured_by_the_others_and_by_size() -> None:
    silence = Silence()
    silence.submit(1)
    assert silence.limit(1) is None and hangs_after(silence, 1) is None
    give_epochs(silence, 0, seconds=20, flops=1000)
    silence.submit(1)
    assert silence.limit(1) == 200
    silence.hear(Started(1, 1, 10, 50_000))
    assert silence.limit(1) == pytest.approx(10_000)


def test_silence_ends_with_every_event_and_with_the_trial() -> None:
    silence = Silence(trial_timeout=3)
    silence.submit(0)
    for now in range(10):
        assert not dict(silence.look(float(now)))
        silence.hear(Epoch(0, 0, STATS))
    silence.hear(Finished(0, 0, 0.5))
    assert hangs_after(silence, 0) is None


def test_silence_of_a_starting_worker_ends_with_a_notice() -> None:
    silence = Silence(trial_timeout=1)
    silence.start([0])
    assert hangs_after(silence, 0) == MAX_START_SECONDS + 1
    silence.hear(Notice(0, "5000 of 60000 images"))
    assert hangs_after(silence, 0) == MAX_START_SECONDS + 1
    silence.hear(WorkerDied(0, None, "killed"))
    assert silence.limit(0) == MAX_START_SECONDS


def test_silence_while_nobody_looked_is_not_counted() -> None:
    silence = Silence(trial_timeout=30)
    silence.submit(0)
    for now in (0.0, 1.0, 10_000.0, 10_001.0):  # the coordinator was stopped and went on
        assert not dict(silence.look(now))
