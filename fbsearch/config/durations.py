"""Seconds as text for people."""


def format_duration(seconds: float) -> str:
    """Return `0.4 s`, `43 s`, `3 min 12 s`, `5 h 20 min` or `2 d`: two units at most."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size - part / 2:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {unit}" + (f" {rest} {below}" if rest else "")
    raise AssertionError(seconds)
