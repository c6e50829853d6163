"""Drift of the scores between two runs: of their distributions, and image by image."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy import stats

from ops.results.metrics import Floats

#: The Kolmogorov-Smirnov test is exact for samples of up to this many scores.
_EXACT = 1000
_BINS = 10


class Drift(NamedTuple):
    """How far two samples differ in distribution; None if a sample is empty."""

    ks: float | None = None
    """Kolmogorov-Smirnov distance: the largest difference of the distribution functions, 0 to 1."""
    ks_p: float | None = None
    """Its two-sided p-value. It is too large where both runs scored the same images."""
    wasserstein: float | None = None
    """Wasserstein-1 distance: how far scores moved on average, in units of the score."""
    psi: float | None = None
    """Population stability index over the deciles of the first sample."""


class Agreement(NamedTuple):
    """Rank correlations of two runs over the same images, -1 to 1; None if all scores are equal."""

    spearman: float | None = None
    kendall: float | None = None
    """Kendall's tau-b, which accounts for ties."""


def drift_between(before: Floats, after: Floats) -> Drift:
    """Drift from one sample (N,) to another (M,)."""
    if not len(before) or not len(after):
        return Drift()
    method = "exact" if max(len(before), len(after)) <= _EXACT else "asymp"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # scipy warns where it falls back to the asymptotic test
        test = stats.ks_2samp(before, after, method=method)
    return Drift(
        float(test.statistic),
        float(test.pvalue),
        float(stats.wasserstein_distance(before, after)),
        population_stability_index(before, after),
    )


def population_stability_index(before: Floats, after: Floats) -> float:
    """Population stability index: sum over bins of (q - p) ln(q / p).

    p and q are the shares of two samples (N,) and (M,) in the bins, which are the deciles of
    `before`. Half a count is added to each bin, so that none is empty. As a rule of thumb, 0.1 is a
    slight and 0.25 a marked shift (Siddiqi, Credit Risk Scorecards, 2006).
    """
    edges = np.unique(np.quantile(before, np.arange(1, _BINS) / _BINS))
    p, q = (_shares(sample, edges) for sample in (before, after))
    return float(((q - p) * np.log(q / p)).sum())


def _shares(sample: Floats, edges: Floats) -> Floats:
    """Shares (bins,) of a sample in the bins (-inf, e0], (e0, e1], ..., (e_last, inf)."""
    bins = np.searchsorted(edges, sample, side="left")
    counts = np.bincount(bins, minlength=len(edges) + 1) + 0.5
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def chance_of_flagged(flagged: int, images: int, promised: float, held_out: int) -> float:
    """The probability that at least `flagged` of `images` good images exceed a threshold.

    The threshold is a held-out score that guarantees the rate `promised`, a multiple of
    1 / (held_out + 1). Over calibrations, the number of images above it has a beta-binomial
    distribution (Vovk 2012; Bates et al. 2023). 1 without held-out images.
    """
    above = round(promised * (held_out + 1))
    if not 0 < above <= held_out or not flagged:
        return 1.0
    return float(stats.betabinom.sf(flagged - 1, images, above, held_out + 1 - above))


def agreement(before: Floats, after: Floats) -> Agreement:
    """Rank correlations of two scores (N,) of the same images."""
    if len(before) < 2 or np.ptp(before) == 0 or np.ptp(after) == 0:
        return Agreement()
    spearman, kendall = stats.spearmanr(before, after), stats.kendalltau(before, after)
    return Agreement(float(spearman.statistic), float(kendall.statistic))


def adjusted_p_values(p_values: list[float | None]) -> list[float | None]:
    """P-values adjusted for many tests, so that a limit on them bounds the false discovery rate.

    Benjamini and Hochberg 1995. None stays None and does not count as a test.
    """
    known = [value for value in p_values if value is not None]
    adjusted = iter(stats.false_discovery_control(known) if known else ())
    return [None if value is None else float(next(adjusted)) for value in p_values]
