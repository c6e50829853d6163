"""How well scores and maps separate defective from good, for one product."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label as connected_components

from ops.results.anomaly_map import LEVELS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_EIGHT = np.ones((3, 3), dtype=int)


class Curve(NamedTuple):
    """A non-decreasing curve from (0, 0), x and y in [0, 1], linear between its points."""

    x: Floats
    y: Floats

    def area(self, limit: float = 1.0) -> float:
        """Mean height for x in [0, limit], with the height at `limit` interpolated."""
        inside = self.x <= limit
        x, y = self.x[inside], self.y[inside]
        end = np.interp(limit, self.x, self.y)
        return float(np.trapezoid(np.append(y, end), np.append(x, limit)) / limit)

    def area_error(self, limit: float = 1.0) -> float:
        """A bound on the error of `area`, whatever the true curve is between its points.

        Between two points the true curve stays within their rectangle, which the straight line
        halves. A rectangle that `limit` cuts may lie above the line by more than half.
        """
        inside = self.x <= limit
        x, y = self.x[inside], self.y[inside]
        error = float((np.diff(x) * np.diff(y)).sum()) / 2
        if x[-1] < limit:
            above = self.y[len(x)] - (y[-1] + np.interp(limit, self.x, self.y)) / 2
            error += float((limit - x[-1]) * above)
        return error / limit

    def thinned(self, step: float = 0.001) -> Curve:
        """A curve of few points, for plots: every point lies within `step` of one that is left."""
        cell = np.floor((self.x + self.y) / step)
        first = np.unique(cell, return_index=True)[1]
        last = np.append(first[1:] - 1, len(cell) - 1)
        rows = np.union1d(first, last)
        return Curve(self.x[rows], self.y[rows])


def roc(scores: Floats, labels: Bools) -> Curve | None:
    """The ROC curve of images: true positive rate over false positive rate.

    Its area is the probability that a defective image scores above a good one, where ties count
    half (Hanley and McNeil 1982). None unless there are good and defective images.
    """
    if labels.all() or not labels.any():
        return None
    rank = np.unique(-scores, return_inverse=True)[1]  # descending; equal scores share a rank
    hits, alarms = np.bincount(rank, weights=labels), np.bincount(rank, weights=~labels)
    return _cumulated(alarms, hits, float(hits.sum()))


def _cumulated(x: npt.NDArray[Any], y: npt.NDArray[Any], top: float) -> Curve:
    """The curve of two cumulated sums: x over its total, y over `top`. Zero steps are left out."""
    added = (x > 0) | (y > 0)
    x, y = np.cumsum(x[added]), np.cumsum(y[added])
    return Curve(np.concatenate([[0.0], x / x[-1]]), np.concatenate([[0.0], y / top]))


class Threshold(NamedTuple):
    """A threshold, and the errors if images that reach it are called defective."""

    threshold: float
    f1: float
    false_alarms: int
    misses: int


def best_f1(scores: Floats, labels: Bools) -> Threshold | None:
    """The score that as a threshold has the highest F1, the largest on ties. It uses the labels."""
    if not labels.any():
        return None
    values, rank = np.unique(-scores, return_inverse=True)  # descending
    hits = np.cumsum(np.bincount(rank, weights=labels, minlength=len(values)))
    called = np.cumsum(np.bincount(rank, minlength=len(values)))
    positives = labels.sum()
    f1 = 2 * hits / (called + positives)
    best = int(np.argmax(f1))  # the first, so the largest threshold
    alarms, misses = called[best] - hits[best], positives - hits[best]
    return Threshold(float(-values[best]), float(f1[best]), int(alarms), int(misses))


def average_precision(scores: Floats, labels: Bools) -> float | None:
    """The area under the steps of precision over recall, with equal scores taken together.

    None unless there are defective images.
    """
    if not labels.any():
        return None
    rank = np.unique(-scores, return_inverse=True)[1]  # descending
    added = np.bincount(rank, weights=labels)
    precision = np.cumsum(added) / np.cumsum(np.bincount(rank))
    return float((added * precision).sum() / labels.sum())


def count_regions(mask: Bools) -> int:
    """The number of 8-connected regions of a mask (h, w)."""
    return int(connected_components(mask, structure=_EIGHT)[1])


class RegionHits(NamedTuple):
    """How the regions of a map lie to those of a mask."""

    hit: int
    """Regions of the mask that one of the map touches."""
    false: int
    """Regions of the map that touch none of the mask."""


def compare_regions(above: Bools, mask: Bools, least: float = 0.0) -> RegionHits:
    """Compare 8-connected regions of a map's pixels `above` a threshold with those of a mask.

    Both are (h, w). Regions of the map of less than `least` pixels do not count.
    """
    found, count = connected_components(above, structure=_EIGHT)
    counts = np.bincount(found.ravel(), minlength=count + 1) >= least
    counts[0] = False
    drawn, _ = connected_components(mask, structure=_EIGHT)
    touched = np.unique(found[mask])
    hit = np.unique(drawn[mask & counts[found]])
    return RegionHits(len(hit), int(counts.sum() - counts[touched].sum()))


class PixelThreshold(NamedTuple):
    """The lowest grey level of pixels that are called defective, and the F1 of pixels there."""

    level: int
    f1: float


class PixelHistogram:
    """Pixel metrics of any number of maps, in fixed memory; histograms merge by addition.

    Maps are 16-bit images on one scale, so 65,536 bins make the curves exact for the stored maps:
    `roc().area()` is the pixel AUROC (ties count half), `pro_curve().area(0.3)` is the per-region
    overlap (Bergmann et al. 2021). Compared with the maps before rounding to grey levels, each
    area is off by at most its `area_error`.

    Per grey level the histogram holds the number of good pixels, the number of defective pixels,
    and the sum of 1 / (size of the region) over defective pixels.
    """

    def __init__(self) -> None:
        """Empty."""
        self.counts = np.zeros((3, LEVELS))
        self.regions = 0
        self.images = 0

    def add(self, levels: npt.NDArray[np.uint16], mask: Bools, inside: Bools | None = None) -> None:
        """Add the grey levels (h, w) and the mask (h, w) of one image.

        `inside` (h, w) are the pixels that count; without it all do. The mask must lie within it.
        """
        labels, regions = connected_components(mask, structure=_EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=regions + 1).astype(np.float64)
        share = 1 / sizes[labels[mask]]
        good = ~mask if inside is None else inside & ~mask
        self.counts[0] += np.bincount(levels[good], minlength=LEVELS)
        self.counts[1] += np.bincount(levels[mask], minlength=LEVELS)
        self.counts[2] += np.bincount(levels[mask], weights=share, minlength=LEVELS)
        self.regions += int(regions)
        self.images += 1

    def merge(self, other: PixelHistogram) -> None:
        """Add another histogram."""
        self.counts += other.counts
        self.regions += other.regions
        self.images += other.images

    def roc(self) -> Curve | None:
        """The ROC curve of pixels; None unless there are good and defective pixels."""
        good, bad, _ = self.counts[:, ::-1]
        if not good.sum() or not bad.sum():
            return None
        return _cumulated(good, bad, float(bad.sum()))

    def pro_curve(self) -> Curve | None:
        """Mean overlap of regions over the false positive rate; None if either is undefined."""
        good, _, share = self.counts[:, ::-1]
        if not good.sum() or not self.regions:
            return None
        return _cumulated(good, share, self.regions)

    def best_f1(self) -> PixelThreshold | None:
        """The grey level with the highest F1 of pixels, the largest on ties. It uses the masks.

        None unless there are defective pixels.
        """
        f1 = self._f1()
        if f1 is None:
            return None
        level = LEVELS - 1 - int(np.argmax(f1[::-1]))  # the largest of equal ones
        return PixelThreshold(level, float(f1[level]))

    def f1_at(self, level: int) -> float | None:
        """F1 of pixels if those of a grey level or above are called defective.

        A level above all grey levels calls none. None unless there are defective pixels.
        """
        f1 = self._f1()
        return None if f1 is None else float(f1[max(0, level)]) if level < LEVELS else 0.0

    def _f1(self) -> Floats | None:
        """F1 by the lowest grey level that is called defective."""
        good, bad, _ = self.counts
        if not bad.sum():
            return None
        hits = np.cumsum(bad[::-1])[::-1]
        called = np.cumsum((good + bad)[::-1])[::-1]
        return np.asarray(2 * hits / (called + bad.sum()))
