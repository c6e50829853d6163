"""Metrics of a detector's scores and maps in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass
class Answers:
    """Scores and maps of images, one after the other, and the CPU seconds that they took."""

    scores: list[float]
    maps: list[Map]
    seconds: float

    @classmethod
    def none(cls) -> Answers:
        """Of no image yet."""
        return cls([], [], 0.0)


def measured(
    answers: Answers,
    labels: npt.NDArray[np.bool_],
    masks: Sequence[npt.NDArray[np.bool_] | None],
    span: tuple[float, float],
    sigma: float,
) -> Metrics:
    """All metrics of a product, those of pixels as `jobs.evaluate` adds them up.

    Maps are enlarged to their masks (H, W), smoothed by `sigma`, and rounded to grey levels of the
    span. Raises SystemExit unless there are good and defective images.
    """
    values = np.asarray(answers.scores, dtype=np.float64)
    image, best = metrics.roc(values, labels), metrics.best_f1(values, labels)
    if image is None or best is None:
        raise SystemExit("metrics need good and defective images in the split test")
    low, high = span
    scale = Scale(low, (high - low or 1.0) / (LEVELS - 1))
    histogram = metrics.PixelHistogram()
    for each, mask in zip(answers.maps, masks, strict=True):
        if mask is not None:
            size = mask.shape[1], mask.shape[0]
            histogram.add(scale.levels(upsample(each, size, sigma)), mask)
    roc, pro = histogram.roc(), histogram.pro_curve()
    return Metrics(
        image.area(),
        roc.area() if roc else float("nan"),
        pro.area(0.3) if pro else float("nan"),
        pro.area(0.05) if pro else float("nan"),
        best.f1,
        best.false_alarms,
        best.misses,
    )
