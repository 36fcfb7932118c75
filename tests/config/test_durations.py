"""Seconds as text for people."""

import pytest

from fbsearch.config.durations import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.25, "0.2 s"),
        (45.4, "45 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (60, "1 min"),
        (450, "7 min 30 s"),
        (3599.7, "1 h"),
        (3661, "1 h 1 min"),
        (5400, "1 h 30 min"),
        (86400, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_duration_in_words(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
