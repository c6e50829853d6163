"""How well scores and maps separate defective from good; everything is per product."""

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
    """Points of a curve from (0, 0) that never falls, x and y in [0, 1]; straight between them."""

    x: Floats
    y: Floats

    def area(self, limit: float = 1.0) -> float:
        """Mean height for x up to `limit`, which is cut at exactly."""
        inside = self.x <= limit
        x, y = self.x[inside], self.y[inside]
        end = np.interp(limit, self.x, self.y)
        return float(np.trapezoid(np.append(y, end), np.append(x, limit)) / limit)

    def area_error(self, limit: float = 1.0) -> float:
        """How far `area` may be off if between two points the curve rose in another way.

        Whatever way stays inside of their rectangle, and the straight one halves it; `limit` may
        cut one rectangle, of which most then lies above the straight way.
        """
        inside = self.x <= limit
        x, y = self.x[inside], self.y[inside]
        found = float((np.diff(x) * np.diff(y)).sum()) / 2
        if x[-1] < limit:
            above = self.y[len(x)] - (y[-1] + np.interp(limit, self.x, self.y)) / 2
            found += float((limit - x[-1]) * above)
        return found / limit

    def thinned(self, step: float = 0.001) -> Curve:
        """Few enough points to draw: none is farther than `step` from those left."""
        cell = np.floor((self.x + self.y) / step)
        first = np.unique(cell, return_index=True)[1]
        last = np.append(first[1:] - 1, len(cell) - 1)
        kept = np.union1d(first, last)
        return Curve(self.x[kept], self.y[kept])


def roc(scores: Floats, labels: Bools) -> Curve | None:
    """Share of defective images found over share of good ones called defective.

    Its area is the chance that a defective image scores above a good one, ties at half (Hanley and
    McNeil 1982). None without both kinds.
    """
    if labels.all() or not labels.any():
        return None
    start = np.unique(-scores, return_inverse=True)[1]  # descending, equal scores together
    hits, alarms = np.bincount(start, weights=labels), np.bincount(start, weights=~labels)
    return _rising(alarms, hits, float(hits.sum()))


def _rising(x: npt.NDArray[Any], y: npt.NDArray[Any], top: float) -> Curve:
    """The curve of two running sums; where nothing was added there is no point."""
    added = (x > 0) | (y > 0)
    x, y = np.cumsum(x[added]), np.cumsum(y[added])
    return Curve(np.concatenate([[0.0], x / x[-1]]), np.concatenate([[0.0], y / top]))


class Threshold(NamedTuple):
    """Scores of at least `threshold` are called defective; with errors counted at it."""

    threshold: float
    f1: float
    false_alarms: int
    misses: int


def best_f1(scores: Floats, labels: Bools) -> Threshold | None:
    """The F1-optimal threshold among the scores; the larger on ties. An oracle: it sees labels."""
    if not labels.any():
        return None
    values, start = np.unique(-scores, return_inverse=True)  # descending
    hits = np.cumsum(np.bincount(start, weights=labels, minlength=len(values)))
    called = np.cumsum(np.bincount(start, minlength=len(values)))
    positives = labels.sum()
    f1 = 2 * hits / (called + positives)
    best = int(np.argmax(f1))  # the first, so the largest threshold
    alarms, misses = called[best] - hits[best], positives - hits[best]
    return Threshold(float(-values[best]), float(f1[best]), int(alarms), int(misses))


def count_regions(mask: Bools) -> int:
    """Connected defects of a mask, neighbours at corners included."""
    return int(connected_components(mask, structure=_EIGHT)[1])


class PixelHistogram:
    """Pixel metrics of any number of maps in fixed memory, merged by addition.

    Maps are 16-bit images on one scale, so 65,536 bins lose nothing: the curves are exact for the
    maps as published, with `roc().area()` the AUROC (ties at half) and `pro_curve().area(0.3)` PRO
    (Bergmann et al. 2021, per-region overlap). Against the maps before they were rounded to grey
    levels each area is off by at most its `area_error`.

    Per grey level: good pixels, defective pixels, and the sum over defective pixels of 1 / size of
    their region.
    """

    def __init__(self) -> None:
        """Empty."""
        self.counts = np.zeros((3, LEVELS))
        self.regions = 0
        self.images = 0

    def add(self, levels: npt.NDArray[np.uint16], mask: Bools) -> None:
        """Take in one map (h, w) and its mask (h, w)."""
        labels, regions = connected_components(mask, structure=_EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=regions + 1).astype(np.float64)
        share = 1 / sizes[labels[mask]]
        self.counts[0] += np.bincount(levels[~mask], minlength=LEVELS)
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
        """Share of defective pixels found over that of good ones; None without both kinds."""
        good, bad, _ = self.counts[:, ::-1]
        if not good.sum() or not bad.sum():
            return None
        return _rising(good, bad, float(bad.sum()))

    def pro_curve(self) -> Curve | None:
        """Mean share of a region that is found, over that of good pixels; None without both."""
        good, _, share = self.counts[:, ::-1]
        if not good.sum() or not self.regions:
            return None
        return _rising(good, share, self.regions)
