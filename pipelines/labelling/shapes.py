"""Which region of an image a shape of a labelling tool is."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.labelling.statements import Box

RegionsOfImage = dict[int, Box]
#: Intersection over union of two boxes that are taken for the same.
_SAME = 0.5


def region_of(box: Box, regions: Mapping[int, Box]) -> int | None:
    """The number of the region whose box overlaps most; None if none overlaps by a half.

    Tools round boxes and keep no number of a region.
    """
    overlaps = {number: _overlap(box, other) for number, other in regions.items()}
    best = max(overlaps, key=lambda number: overlaps[number], default=None)
    return best if best is not None and overlaps[best] >= _SAME else None


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union; 0 for a box without area."""
    sides = [
        min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis])
        for axis in (0, 1)
    ]
    if min(sides) <= 0:
        return 0.0
    shared = sides[0] * sides[1]
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)
