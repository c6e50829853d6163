"""Whether a figure of the last night is one that earlier nights let expect."""

from __future__ import annotations

import numpy as np
from scipy import optimize, stats

from ops.results.metrics import Floats


def prediction_p_value(
    earlier: Floats, variances: Floats, last: float, variance: float
) -> float | None:
    """Two-sided p-value of a night's figure under the distribution of earlier nights.

    Figures (N,) of earlier nights vary around a common mean: by `variances` (N,), which are those
    of sampling the images of a night, and between nights by an unknown variance. That is a
    random-effects meta-analysis, whose prediction for a further night has a t distribution
    (Higgins, Thompson and Spiegelhalter 2009). They take N - 2 degrees of freedom; N - 1, as here,
    is exact where sampling adds nothing to the variance between nights. The latter is that of Paule
    and Mandel 1982. None if nothing varied, which predicts nothing.
    """
    floor = 1e-9 * float(variances.mean() + earlier.var())  # no night determines all
    if not floor:
        return None
    known = np.maximum(variances, floor)
    between = _variance_between(earlier, known)
    weights = 1 / (known + between)
    mean = float(np.average(earlier, weights=weights))
    spread = between + max(variance, floor) + 1 / float(weights.sum())
    return float(2 * stats.t.sf(abs(last - mean) / np.sqrt(spread), len(earlier) - 1))


def _variance_between(values: Floats, variances: Floats) -> float:
    """The variance at which the weighted sum of squared deviations is its expectation, N - 1."""

    def excess(between: float) -> float:
        weights = 1 / (variances + between)
        mean = np.average(values, weights=weights)
        return float((weights * (values - mean) ** 2).sum()) - (len(values) - 1)

    if excess(0.0) <= 0:
        return 0.0
    # There the sum is at most 1, as no weight exceeds the inverse of this variance.
    return float(optimize.brentq(excess, 0.0, float(((values - values.mean()) ** 2).sum())))


def share_as_angle(part: int, whole: int) -> tuple[float, float]:
    """A share of images as an angle, whose variance does not depend on the share, and the variance.

    The arcsine transform of Anscombe 1948 for binomial counts.
    """
    angle = float(np.arcsin(np.sqrt((part + 3 / 8) / (whole + 3 / 4))))
    return angle, 1 / (4 * whole + 2)


def median_variance(q25: float, q75: float, count: int) -> float:
    """The sampling variance of the median of roughly normal values, from their quartiles.

    pi / 2 times the variance of the mean, with the quartiles 1.349 standard deviations apart.
    """
    return float(np.pi / 2 * ((q75 - q25) / 1.349) ** 2 / count)
