"""The hang detector: the usual epoch, the limits, and the time that is not counted."""

import dataclasses

import pytest

from fbsearch.bench.search import DIGITS
from fbsearch.messages import Epoch, EpochStats, Notice, Ready, Started
from fbsearch.search.hang_detector import FIRST_SECONDS, MAX_START_SECONDS, MIN_EPOCHS, MIN_SECONDS, HangDetector

STATS = EpochStats(1, 1.0, 0.5, 1.0, 0.5, 0.01, 1.0, 0.9, 0.1, 100.0, 10.0)


def give_epochs(
    detector: HangDetector, worker: int, *, seconds: float, flops: int = 1000, count: int = MIN_EPOCHS
) -> None:
    detector.watch(worker)
    detector.hear(Started(worker, 0, 10, flops))
    for _ in range(count):
        detector.hear(Epoch(worker, 0, dataclasses.replace(STATS, seconds=seconds)))


def hangs_after(detector: HangDetector, worker: int) -> float | None:
    """After how many seconds of silence the worker hangs, looked at each second."""
    for now in range(20_000):
        if worker in detector.find_hung(float(now)):
            return now
    return None


def test_silence_with_a_timeout_ends_a_trial_after_it_and_says_so() -> None:
    detector = HangDetector(trial_timeout=30)
    detector.watch(0)
    assert hangs_after(detector, 0) == 31
    assert detector.find_hung(20_000) == {0: "no epoch for 30 seconds"}


def test_silence_without_a_timeout_is_10_of_the_trials_own_epochs_and_at_least_a_minute() -> None:
    detector = HangDetector()
    give_epochs(detector, 0, seconds=20)
    give_epochs(detector, 1, seconds=0.1)
    assert (detector.limit(0), detector.limit(1)) == (200, MIN_SECONDS)


def test_silence_before_the_first_epoch_is_measured_by_the_others_and_by_size() -> None:
    detector = HangDetector()
    detector.watch(1)
    give_epochs(detector, 0, seconds=20, flops=1000)
    detector.watch(1)
    assert detector.limit(1) == 200
    detector.hear(Started(1, 1, 10, 50_000))
    assert detector.limit(1) == pytest.approx(10_000)


def test_silence_before_any_epoch_ends_after_an_hour_or_what_a_very_slow_machine_takes() -> None:
    detector = HangDetector()
    detector.watch(0, is_starting=True)
    detector.hear(Ready(0, "cpu", DIGITS, {}, seconds=1.0))
    detector.watch(0)
    assert hangs_after(detector, 0) == FIRST_SECONDS + 1
    detector.watch(0)
    detector.hear(Started(0, 0, 10, flops=10**11))
    assert detector.limit(0) == 3 * 1150 * 100
    give_epochs(detector, 0, seconds=1, count=MIN_EPOCHS - 1)
    detector.watch(1)
    assert detector.limit(1) == FIRST_SECONDS


def test_silence_ends_with_every_event_and_with_the_trial() -> None:
    detector = HangDetector(trial_timeout=3)
    detector.watch(0)
    for now in range(10):
        assert not detector.find_hung(float(now))
        detector.hear(Epoch(0, 0, STATS))
    detector.forget(0)
    assert hangs_after(detector, 0) is None


def test_silence_of_a_starting_worker_ends_with_a_notice() -> None:
    detector = HangDetector(trial_timeout=1)
    detector.watch(0, is_starting=True)
    assert hangs_after(detector, 0) == MAX_START_SECONDS + 1
    detector.hear(Notice(0, "5000 of 60000 images"))
    assert hangs_after(detector, 0) == MAX_START_SECONDS + 1
    detector.watch(0, is_starting=True)
    assert detector.limit(0) == MAX_START_SECONDS


def test_silence_while_nobody_looked_is_not_counted() -> None:
    detector = HangDetector(trial_timeout=30)
    detector.watch(0)
    for now in (0.0, 1.0, 10_000.0, 10_001.0):  # the coordinator was stopped and went on
        assert not detector.find_hung(now)
