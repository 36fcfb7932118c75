"""Intervals of shares."""

import pytest

from fbsearch.winners.intervals import wilson_interval


# Published values of Wilson's interval: 15 of 148 (Newcombe, 1998), and the closed forms at the ends.
@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [
        (81 / 263, 263, (0.2553, 0.3662)),
        (15 / 148, 148, (0.0624, 0.1605)),
        (0.0, 20, (0.0, 0.1611)),
        (1.0, 29, (0.8830, 1.0)),
    ],
)
def test_wilson_interval_is_the_published_one(share: float, count: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(share, count) == pytest.approx(expected, abs=5e-5)
