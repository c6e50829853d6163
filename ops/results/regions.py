"""Regions: the connected parts of an anomaly map above a product's pixel threshold.

The threshold is conformal over pictures (see `ops.results.calibration`): of good pictures, at most
the given share has any region at all, because it is taken from the largest map values of held-out
good pictures. The p-value of a region compares its largest value with the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects, label

from ops.errors import SettingError
from ops.images.resize import Geometry
from ops.results.anomaly_map import Map
from ops.results.calibration import Calibration

#: Regions of a picture that are kept; the others, whose largest values are lower, are counted.
MOST = 1000
#: Pixels that share a corner belong together.
_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_Numbers = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RegionSettings:
    """Which regions of anomaly maps are recorded; `jobs.fit` has the rate alone (0.01)."""

    false_alarm_rate: float = 0.0
    """Share of good images that may have any region; it sets each product's pixel threshold. 0 =
    that of the model's fit."""
    min_area: float = 0.0
    """Smaller regions, in pixels of the original picture, are left out and counted."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        if not 0 <= self.false_alarm_rate < 1:
            raise SettingError(
                f"regions.false_alarm_rate {self.false_alarm_rate} must lie in (0, 1); 0 = the "
                "model's"
            )
        if not 0 <= self.min_area < np.inf:
            raise SettingError(f"regions.min_area {self.min_area} must be at least 0 and finite")

    def under(self, rate: float) -> RegionSettings:
        """The settings with the rate of a model where they leave it open."""
        return RegionSettings(self.false_alarm_rate or rate, self.min_area)


class Region(NamedTuple):
    """A region in pixels of the picture, whose first pixel covers [0, 1)."""

    number: int
    """From 1, by falling largest value."""
    box_x: int
    box_y: int
    box_width: int
    box_height: int
    area: float
    centroid_x: float
    """In the coordinates of peaks: 0 is the centre of the first pixel."""
    centroid_y: float
    largest: float
    mean: float
    p_value: float
    touches_border: bool
    """Whether it reaches the border of what the map shows, and so may go on beyond it."""


class Found(NamedTuple):
    """The regions of one picture, and how many were left out."""

    regions: list[Region]
    hidden: int


@dataclass(frozen=True)
class RegionRules:
    """What counts as a region, by detector."""

    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """Map values above it belong to regions; None or absent = no regions are looked for."""
    peaks: Mapping[str, Calibration] = field(default_factory=dict)
    """The largest map values of held-out good pictures."""
    min_area: float = 0.0

    @classmethod
    def of(cls, peaks: Mapping[str, Calibration], settings: RegionSettings) -> RegionRules:
        """The rules for detectors whose held-out pictures had these largest map values."""
        rate = settings.false_alarm_rate
        limits = {name: values.threshold(rate) for name, values in peaks.items()}
        return cls(limits, peaks, settings.min_area)

    def find(self, values: Map, where: Geometry, size: tuple[int, int], name: str) -> Found | None:
        """The regions of a picture's map (h, w) by the detector `name`; None without a threshold.

        `size`: width and height of the picture.
        """
        threshold = self.thresholds.get(name)
        if threshold is None:
            return None
        above = values > np.float32(threshold)
        if not above.any():
            return Found([], 0)
        measured = _Measured.of(values, above, where, size)
        order = np.lexsort((np.arange(len(measured.largest)), -measured.largest))
        shown = order[measured.area[order] >= self.min_area][:MOST]
        p_values = self.peaks[name].p_values(measured.largest[shown])
        regions = [
            measured.region(int(one), number, p_value)
            for number, (one, p_value) in enumerate(zip(shown, p_values.tolist(), strict=True), 1)
        ]
        return Found(regions, len(order) - len(regions))


class _Measured(NamedTuple):
    """All regions of a map, in the order in which they were labelled."""

    boxes: _Integers
    """(N, 4): left, top, right and bottom, in pixels of the picture."""
    area: _Numbers
    centroids: _Numbers
    """(N, 2): x and y."""
    largest: _Numbers
    mean: _Numbers
    touches: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        values: Map,
        above: npt.NDArray[np.bool_],
        where: Geometry,
        size: tuple[int, int],
    ) -> _Measured:
        """Measure the regions of the pixels `above`, of which there is at least one."""
        labels, count = label(above, _NEIGHBOURS)
        rows, columns = np.nonzero(above)
        of = labels[rows, columns] - 1
        inside = values[rows, columns].astype(np.float64)
        pixels = np.bincount(of, minlength=count)
        largest = np.full(count, -np.inf)
        np.maximum.at(largest, of, inside)
        places = [np.bincount(of, at, count) / pixels for at in (columns, rows)]
        edges = np.array(
            [(x.start, y.start, x.stop, y.stop) for y, x in find_objects(labels)], np.int64
        ).reshape(-1, 4)
        height, width = values.shape
        return cls(
            _boxes(edges, where, size),
            pixels.astype(np.float64) * (where.step_x * where.step_y),
            _centroids(places, where, size),
            largest,
            np.minimum(np.bincount(of, inside, count) / pixels, largest),
            (edges[:, :2] == 0).any(axis=1) | (edges[:, 2:] == (width, height)).any(axis=1),
        )

    def region(self, one: int, number: int, p_value: float) -> Region:
        """One of the regions."""
        left, top, right, bottom = self.boxes[one].tolist()
        x, y = self.centroids[one].tolist()
        return Region(
            number,
            left,
            top,
            right - left,
            bottom - top,
            float(self.area[one]),
            x,
            y,
            float(self.largest[one]),
            float(self.mean[one]),
            p_value,
            bool(self.touches[one]),
        )


def _boxes(edges: _Integers, where: Geometry, size: tuple[int, int]) -> _Integers:
    """Boxes in pixels of the picture from edges between pixels of the map; never empty."""
    scaled = (edges + np.tile((where.left, where.top), 2)) * np.tile(where[:2], 2)
    low = np.clip(np.rint(scaled[:, :2]), 0, np.array(size) - 1)
    high = np.clip(np.rint(scaled[:, 2:]), low + 1, size)
    return np.concatenate([low, high], axis=1).astype(np.int64)


def _centroids(places: list[_Numbers], where: Geometry, size: tuple[int, int]) -> _Numbers:
    """Centroids (N, 2) in pixels of the picture from those in pixels of the map."""
    at = (np.stack(places, axis=1) + 0.5 + (where.left, where.top)) * where[:2] - 0.5
    return np.clip(at, 0, np.array(size) - 1.0)
