"""Shares of counted things, with what chance leaves open of them."""

from __future__ import annotations

import math

#: Of a standard normal distribution, which lies within +- this value with probability 0.95.
_Z = 1.959963984540054


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share of which `hits` out of `trials` were seen.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), 209-212: the shares p for which `hits` lies within
    1.96 standard deviations of `trials` * p. It stays within [0, 1] and is not empty at 0 of n.
    Raises ValueError without trials, or with more hits than trials.
    """
    if not 0 <= hits <= trials or not trials:
        raise ValueError(f"{hits} of {trials} is no share")
    share, square = hits / trials, _Z * _Z
    centre = share + square / (2 * trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    low = 0.0 if hits == 0 else (centre - half) / scale
    return low, 1.0 if hits == trials else (centre + half) / scale
