"""Shapes of labelling tools beside the boxes of regions."""

from __future__ import annotations

import pytest

from pipelines.labelling.shapes import region_of

REGIONS = {1: (0.0, 0.0, 10.0, 10.0), 2: (8.0, 0.0, 10.0, 10.0)}


@pytest.mark.parametrize(
    ("box", "number"),
    [
        ((0.4, -0.4, 10, 10), 1),
        ((8, 0, 10, 10), 2),
        ((3, 0, 10, 10), 1),  # 70 / 130 of region 1, 50 / 150 of region 2
        ((0, 0, 10, 20), 1),  # a half
        ((0, 0, 10, 21), None),
        ((10, 10, 5, 5), None),
        ((4, 4, 0, 0), None),
        ((5, 5, -3, -3), None),
    ],
)
def test_the_region_that_overlaps_by_a_half_is_meant(box, number):
    assert region_of(box, REGIONS) == number


def test_an_image_without_regions_has_none():
    assert region_of((0, 0, 1, 1), {}) is None
