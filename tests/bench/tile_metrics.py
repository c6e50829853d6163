"""Metrics of a detector's scores and maps in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ops.results import metrics
from ops.results.anomaly_map import LEVELS, Map, Scale, upsample


class Metrics(NamedTuple):
    """Metrics of a product; pixel metrics are NaN if there is no mask."""

    image_auroc: float
    pixel_auroc: float
    pro: float
    strict_pro: float
    f1: float
    false_alarms: int
    misses: int


class Pixels:
    """Adds up pixel metrics as `jobs.evaluate` does, from maps at the detector's resolution."""

    def __init__(self, ceiling: float, size: int, sigma: float) -> None:
        """`ceiling` is the detector's; maps are smoothed by `sigma` and rounded to levels."""
        self._scale = Scale(0.0, (4 * ceiling or 1.0) / (LEVELS - 1))
        self._size, self._sigma = size, sigma
        self.histogram = metrics.PixelHistogram()

    def add(self, values: Map, mask: npt.NDArray[np.bool_] | None) -> None:
        """Add a map (h, w) and its mask (H, W)."""
        if mask is not None:
            levels = self._scale.levels(upsample(values, (self._size, self._size), self._sigma))
            self.histogram.add(levels, mask)


def measured(scores: Sequence[float], labels: npt.NDArray[np.bool_], pixels: Pixels) -> Metrics:
    """All metrics of a product. Raises SystemExit unless there are good and defective images."""
    values = np.asarray(scores, dtype=np.float64)
    image, best = metrics.roc(values, labels), metrics.best_f1(values, labels)
    if image is None or best is None:
        raise SystemExit("metrics need good and defective images in the split test")
    roc, pro = pixels.histogram.roc(), pixels.histogram.pro_curve()
    return Metrics(
        image.area(),
        roc.area() if roc else float("nan"),
        pro.area(0.3) if pro else float("nan"),
        pro.area(0.05) if pro else float("nan"),
        best.f1,
        best.false_alarms,
        best.misses,
    )
