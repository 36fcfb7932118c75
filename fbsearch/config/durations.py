"""Seconds as text for people, and from people."""

import re

from fbsearch.errors import ConfigError


def format_duration(seconds: float) -> str:
    """Return `0.4 s`, `43 s`, `3 min 12 s`, `5 h 20 min` or `2 d`: two units at most."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size - part / 2:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {unit}" + (f" {rest} {below}" if rest else "")
    raise AssertionError(seconds)


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `30m`, `2h` or `1h30m`. Raise ConfigError for other text, and for 0."""
    found = re.fullmatch(r"(?=.)(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?|(\d{1,8})", text.strip(), flags=re.ASCII)
    hours, minutes, *seconds = (int(part or 0) for part in (found.groups() if found else "000"))
    total = 3600 * hours + 60 * minutes + sum(seconds)
    if total == 0:
        raise ConfigError(f"{text!r} is no time; write 90 or 90s, 30m, 2h, or 1h30m")
    return float(total)
