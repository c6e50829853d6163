"""Regions of drawn maps: where they are, how large, and how often good pictures have one."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from ops.errors import SettingError
from ops.images.resize import Geometry, InputSettings, geometry, map_size
from ops.results import region_table
from ops.results.calibration import Calibration
from ops.results.regions import MOST, RegionRules, RegionSettings

ONE_TO_ONE = Geometry(1.0, 1.0, 0.0, 0.0)
INPUTS = {
    "squash": (InputSettings(size=64), (200, 120)),
    "crop": (InputSettings(size=64, fit="crop", short_side=80), (200, 120)),
    "tile": (InputSettings(size=64, fit="tile", scale=0.5), (400, 300)),
    "tile with a coarse map": (InputSettings(size=64, fit="tile", map_pixels=5000), (400, 300)),
}


def rules(held=(1.0, 2.0, 3.0), rate=0.25, min_area=0.0):
    return RegionRules.of({"nut": Calibration.of(held)}, RegionSettings(rate, min_area))


def found(values, where=ONE_TO_ONE, size=None, **more):
    height, width = values.shape
    return rules(**more).find(values.astype(np.float32), where, size or (width, height), "nut")


def overlap(one, other):
    """Intersection over union of boxes (left, top, width, height)."""
    sides = [
        max(0, min(a + c, b + d) - max(a, b))
        for a, b, c, d in zip(one[:2], other[:2], one[2:], other[2:], strict=True)
    ]
    inside = math.prod(sides)
    return inside / (math.prod(one[2:]) + math.prod(other[2:]) - inside)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("planted", [(90, 40, 30, 24), (70, 60, 24, 40)])
def test_a_planted_region_is_found_in_pixels_of_the_picture(name, planted):
    settings, size = INPUTS[name]
    where, (columns, rows) = geometry(*size, settings), map_size(*size, settings)
    x = (np.arange(columns) + 0.5 + where.left) * where.step_x
    y = (np.arange(rows) + 0.5 + where.top) * where.step_y
    left, top, width, height = planted
    inside = ((x >= left) & (x < left + width)) & ((y >= top) & (y < top + height))[:, None]
    (region,) = found(np.where(inside, 5.0, 0.5), where, size).regions
    assert overlap(region[1:5], planted) > 0.5
    assert region.area == pytest.approx(inside.sum() * where.step_x * where.step_y)
    assert abs(region.centroid_x - (left + width / 2 - 0.5)) <= where.step_x
    assert abs(region.centroid_y - (top + height / 2 - 0.5)) <= where.step_y
    assert not region.touches_border


def test_regions_are_numbered_by_falling_value_and_measured_exactly():
    values = np.zeros((10, 20))
    values[2:4, 3:6] = 4.0
    values[4, 6] = 6.0  # a corner joins it to the first
    values[8:, 15:] = 7.0
    first, second = found(values).regions
    assert first == (1, 15, 8, 5, 2, 10.0, 17.0, 8.5, 7.0, 7.0, 0.25, True)
    assert second[:6] == (2, 3, 2, 4, 3, 7.0)
    assert (second.largest, second.mean) == (6.0, pytest.approx(30 / 7))
    assert not second.touches_border


def test_p_values_are_those_among_the_largest_values_of_held_out_maps():
    values = np.zeros((3, 9))
    values[1, 1], values[1, 4], values[1, 7] = 1.5, 2.5, 3.5
    regions = found(values, held=(1.0, 2.0, 3.0), rate=0.75).regions
    assert [(r.largest, r.p_value) for r in regions] == [(3.5, 0.25), (2.5, 0.5), (1.5, 0.75)]


def test_a_map_at_the_threshold_has_no_region_and_one_without_threshold_is_not_searched():
    assert found(np.full((4, 4), 3.0)) == ([], 0)
    assert rules(held=()).find(np.ones((4, 4), np.float32), ONE_TO_ONE, (4, 4), "nut") is None
    assert rules().find(np.ones((4, 4), np.float32), ONE_TO_ONE, (4, 4), "bolt") is None


def test_small_and_surplus_regions_are_counted():
    values = np.zeros((4, 9))
    values[1:3, 1:3], values[1, 5] = 5.0, 9.0
    kept, hidden = found(values, min_area=4.0)
    assert ([(r.number, r.largest) for r in kept], hidden) == ([(1, 5.0)], 1)
    many = np.zeros((2, 2 * MOST + 6))
    many[0, ::2] = 5.0
    kept, hidden = found(many)
    assert (len(kept), hidden) == (MOST, 3)


def test_boxes_of_enlarged_pictures_are_never_empty_and_lie_within():
    where = geometry(5, 3, InputSettings(size=64))
    values = np.zeros((64, 64))
    values[0, 0] = values[63, 63] = values[20, 40] = 5.0
    for region in found(values, where, (5, 3)).regions:
        assert min(region.box_width, region.box_height) >= 1
        assert 0 <= region.box_x <= 5 - region.box_width
        assert 0 <= region.box_y <= 3 - region.box_height
        assert 0 <= region.centroid_x <= 4
        assert 0 <= region.centroid_y <= 2


@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_good_pictures_have_regions_at_the_rate_that_was_asked_for(rate):
    """Smoothed noise; each draw has held-out and good pictures of its own."""
    random = np.random.default_rng(3)
    draws, held, good, alarms = 40, 199, 50, 0
    for _ in range(draws):
        maps = random.normal(size=(held + good, 8, 8)).astype(np.float32)
        maps = (maps + np.roll(maps, 1, 1) + np.roll(maps, 1, 2)) / 3
        judge = rules(maps[:held].max(axis=(1, 2)).tolist(), rate)
        alarms += sum(
            bool(judge.find(one, ONE_TO_ONE, (8, 8), "nut").regions) for one in maps[held:]
        )
    low, high = binom.interval(0.999, draws * good, rate)
    # Pictures of a draw share a threshold, whose own rate varies by a Beta distribution.
    spread = 3.3 * math.sqrt(draws * good**2 * rate * (1 - rate) / (held + 2))
    assert low - spread <= alarms <= high + spread


def test_settings_out_of_range_are_refused():
    for rate, area in ((-0.1, 0.0), (1.0, 0.0), (0.1, -1.0), (0.1, math.inf)):
        with pytest.raises(SettingError, match=r"regions\."):
            RegionSettings(rate, area)
    assert RegionSettings().under(0.05) == RegionSettings(0.05)
    assert RegionSettings(0.2, 3).under(0.05) == RegionSettings(0.2, 3)


def test_regions_leave_the_rows_of_their_images_in_order():
    values = np.zeros((3, 9))
    values[1, 1], values[1, 4] = 5.0, 9.0
    lists = [
        [r._asdict() for r in found(values).regions],
        None,
        [],
        [found(values).regions[0]._asdict()],
    ]
    rows = pa.table(
        {
            "image_id": ["a", "b", "c", "d"],
            "model_id": ["m"] * 4,
            "run_id": ["r"] * 4,
            "regions": pa.array(lists, region_table.LIST),
        }
    )
    for part in (rows, pa.concat_tables([rows.slice(0, 1), rows.slice(1)])):
        table = region_table.unnested(part)
        assert table.schema.equals(region_table.SCHEMA)
        assert table["image_id"].to_pylist() == ["a", "a", "d"]
        assert table["number"].to_pylist() == [1, 2, 1]
        assert table["largest"].to_pylist() == [9.0, 5.0, 9.0]
    assert len(region_table.unnested(rows.slice(1, 2))) == 0
    assert region_table.unnested(rows.slice(3))["box_x"].to_pylist() == [4]
