"""Intervals of shares: of the scores of trials and of retrained networks."""

import math

# The standard normal quantile of a two-sided 95% interval.
Z = 1.959964


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Return the 95% interval of a share counted on `count` independent cases (Wilson, 1927)."""
    centre = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, (centre - half) / (1 + Z**2 / count)), min(1.0, (centre + half) / (1 + Z**2 / count))
