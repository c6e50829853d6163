"""How far the scores of two runs lie apart: as distributions, and image by image."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy import stats

from ops.results.metrics import Floats

#: Up to this many scores on both sides the test is exact.
_EXACT = 1000
_BINS = 10


class Drift(NamedTuple):
    """How two samples differ in distribution; None where a sample is empty."""

    ks: float | None = None
    """Kolmogorov-Smirnov distance: the largest gap of the distribution functions, 0 to 1."""
    ks_p: float | None = None
    """Its two-sided p-value; images that both runs scored make it err towards no drift."""
    wasserstein: float | None = None
    """Wasserstein-1 distance: how far scores moved on average, in their own unit."""
    psi: float | None = None
    """Population stability index over the first sample's tenths."""


class Agreement(NamedTuple):
    """How alike two runs rank the same images, -1 to 1; None if one of them ranks nothing."""

    spearman: float | None = None
    kendall: float | None = None
    """Kendall's tau-b, which takes ties into account."""


def drift_between(before: Floats, after: Floats) -> Drift:
    """Drift from one sample (N,) to another (M,), by scipy's tests."""
    if not len(before) or not len(after):
        return Drift()
    method = "exact" if max(len(before), len(after)) <= _EXACT else "asymp"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where exactness fails, it says asymptotic
        test = stats.ks_2samp(before, after, method=method)
    return Drift(
        float(test.statistic),
        float(test.pvalue),
        float(stats.wasserstein_distance(before, after)),
        stability(before, after),
    )


def stability(before: Floats, after: Floats) -> float:
    """Population stability index: sum over bins of (q - p) ln(q / p), of two samples (N,), (M,).

    Bins are the tenths of `before`; half a score is added to each, so that none is empty. As a
    rule of thumb, 0.1 is a slight and 0.25 a marked shift (Siddiqi, Credit Risk Scorecards, 2006).
    """
    edges = np.unique(np.quantile(before, np.arange(1, _BINS) / _BINS))
    p, q = (_shares(sample, edges) for sample in (before, after))
    return float(((q - p) * np.log(q / p)).sum())


def _shares(sample: Floats, edges: Floats) -> Floats:
    """Shares (bins,) of a sample in (-inf, e0], (e0, e1], ..., (e_last, inf)."""
    bins = np.searchsorted(edges, sample, side="left")
    counts = np.bincount(bins, minlength=len(edges) + 1) + 0.5
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def agreement(before: Floats, after: Floats) -> Agreement:
    """Rank correlations of two scores (N,) each of the same images."""
    if len(before) < 2 or np.ptp(before) == 0 or np.ptp(after) == 0:
        return Agreement()
    spearman, kendall = stats.spearmanr(before, after), stats.kendalltau(before, after)
    return Agreement(float(spearman.statistic), float(kendall.statistic))


def discoveries(p_values: list[float | None]) -> list[float | None]:
    """P-values of many tests, adjusted such that a limit on them bounds the false discovery rate.

    Benjamini and Hochberg 1995; None stays None and counts as no test.
    """
    known = [value for value in p_values if value is not None]
    adjusted = iter(stats.false_discovery_control(known) if known else ())
    return [None if value is None else float(next(adjusted)) for value in p_values]
