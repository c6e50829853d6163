"""How well scores and maps separate defective from good; everything is per product."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label as connected_components
from scipy.stats import rankdata

from ops.maps import LEVELS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_EIGHT = np.ones((3, 3), dtype=int)


def auroc(scores: Floats, labels: Bools) -> float | None:
    """Chance that a defective image scores above a good one, ties at half; None without both."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)
    below = float(ranks[labels].sum()) - positives * (positives + 1) / 2
    return below / (positives * negatives)


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

    Maps are 16-bit images on one scale, so 65,536 bins lose nothing: results are exact for the
    maps as published. Per grey level: good pixels, defective pixels, and the sum over defective
    pixels of 1 / size of their region, which gives PRO (Bergmann et al. 2021, per-region overlap).
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

    def auroc(self) -> float | None:
        """Pixel AUROC over all images taken in, ties at half; None without both kinds."""
        good, bad, _ = self.counts
        if not good.sum() or not bad.sum():
            return None
        below = np.cumsum(good) - good
        return float((bad * (below + good / 2)).sum() / (good.sum() * bad.sum()))

    def pro(self, limit: float = 0.3) -> float | None:
        """Area under per-region overlap over false positive rate up to `limit`, in [0, 1]."""
        good, _, share = self.counts
        if not good.sum() or not self.regions:
            return None
        rate = np.concatenate([[0], np.cumsum(good[::-1])]) / good.sum()
        overlap = np.concatenate([[0], np.cumsum(share[::-1])]) / self.regions
        inside = rate <= limit
        at_limit = np.interp(limit, rate, overlap)
        x, y = np.append(rate[inside], limit), np.append(overlap[inside], at_limit)
        return float(np.trapezoid(y, x) / limit)
