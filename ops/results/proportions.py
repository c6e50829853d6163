"""Shares of counted things, with what chance leaves open of them."""

from __future__ import annotations

from scipy import stats


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share of which `hits` out of `trials` were seen.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22 (1927), 209-212. It stays within [0, 1] and is not empty at
    0 of n. Raises ValueError without trials, or with more hits than trials.
    """
    if not 0 <= hits <= trials or not trials:
        raise ValueError(f"{hits} of {trials} is no share")
    found = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
