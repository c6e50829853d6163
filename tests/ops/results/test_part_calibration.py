"""p-values of parts: exact values by hand, and the promise for exchangeable parts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ops.results.part_calibration import HeldOutParts, PartCalibration

NAN = np.nan
POOLED = PartCalibration(("side", "top"), ((1.0, 2.0), (3.0, 1.0), (None, 4.0), (5.0, None)))


def judged(calibration, *scores):
    found = calibration.judge(np.array(scores, np.float64))
    return found.p_values.tolist(), found.held_out.tolist(), found.worst.tolist()


def test_a_part_is_compared_by_the_views_that_it_has():
    p_values, held_out, worst = judged(
        POOLED, (2.5, 0.0), (9.0, 0.0), (0.0, 0.0), (NAN, 2.0), (4.0, NAN), (NAN, NAN)
    )
    np.testing.assert_array_equal(p_values, [2 / 3, 1 / 3, 1.0, 3 / 4, 2 / 4, NAN])
    assert held_out == [2, 2, 2, 3, 3, 0]
    assert worst == [0, 0, 0, 1, 0, -1]


def test_without_a_held_out_part_of_these_views_there_is_no_p_value():
    alone = PartCalibration(("side", "top"), ((1.0, None),))
    np.testing.assert_array_equal(judged(alone, (1.0, 2.0), (1.0, NAN))[0], [NAN, 1.0])
    none = PartCalibration((), ())
    assert np.isnan(none.judge(np.empty((2, 0))).p_values).all()


def test_views_of_separate_detectors_are_compared_by_their_deviations():
    # The top view's scores are a hundred times as large, and the side view's are what is wrong.
    scores = tuple((1.0 + n / 10, 100.0 + 10 * n) for n in range(9))
    part = (9.0, 141.0)
    standardised = PartCalibration(("side", "top"), scores, standardised=True)
    assert judged(standardised, part) == ([1 / 10], [9], [0])
    assert judged(PartCalibration(("side", "top"), scores), part) == ([5 / 10], [9], [1])


def test_with_one_view_deviations_change_nothing():
    known = tuple((float(n * n),) for n in range(8))
    one = PartCalibration(("",), known, standardised=True)
    asked = [(float(n),) for n in range(-3, 60)]
    assert judged(one, *asked) == judged(PartCalibration(("",), known), *asked)


def test_a_view_in_which_all_are_equal_says_nothing():
    flat = PartCalibration(("a", "b"), ((1.0, 0.0), (1.0, 1.0), (1.0, 2.0)), standardised=True)
    assert judged(flat, (1.0, 1.5)) == ([2 / 4], [3], [1])


def test_many_parts_are_judged_as_one_by_one(monkeypatch):
    monkeypatch.setattr("ops.results.part_calibration._AT_ONCE", 100)
    rng = np.random.default_rng(0)
    known = tuple(map(tuple, rng.normal(size=(12, 3)).tolist()))
    calibration = PartCalibration(("a", "b", "c"), known, standardised=True)
    asked = rng.normal(size=(40, 3))
    asked[rng.random((40, 3)) < 0.2] = NAN
    together = calibration.judge(asked)
    for row, part in enumerate(asked):
        alone = calibration.judge(part[None])
        np.testing.assert_array_equal(alone.p_values, together.p_values[[row]])
        np.testing.assert_array_equal(alone.worst, together.worst[[row]])


@pytest.mark.parametrize("standardised", [False, True])
def test_a_part_among_equals_has_each_rank_equally_often(standardised):
    """Leave one of the parts out, each in turn: their p-values are 1/n, 2/n, ..., 1."""
    rng = np.random.default_rng(1)
    parts = rng.gamma(2.0, size=(20, 3)) * (1.0, 10.0, 100.0)
    p_values = []
    for row, part in enumerate(parts):
        others = tuple(map(tuple, np.delete(parts, row, axis=0).tolist()))
        calibration = PartCalibration(("a", "b", "c"), others, standardised)
        p_values += calibration.judge(part[None]).p_values.tolist()
    np.testing.assert_allclose(sorted(p_values), np.arange(1, 21) / 20)


def test_held_out_rows_become_a_calibration_in_any_order():
    rows = [
        {"product": "bolt", "part": "2", "view": "top", "score": 2.0},
        {"product": "bolt", "part": "1", "view": "top", "score": 1.0},
        {"product": "bolt", "part": "1", "view": "top", "score": 3.0},
        {"product": "bolt", "part": "2", "view": "side", "score": 4.0},
        {"product": "nut", "part": "1", "view": None, "score": 5.0},
        {"product": "nut", "part": None, "view": "top", "score": 9.0},
    ]
    expected = {
        "bolt": PartCalibration(("side", "top"), ((None, 3.0), (4.0, 2.0)), True),
        "nut": PartCalibration(("",), ((5.0,),), True),
    }
    for order in (rows, rows[::-1]):
        parts = HeldOutParts("separate")
        for row in order:
            parts.add(row)
        assert parts.calibrations() == expected
    stored = json.loads(json.dumps(expected["bolt"].to_json()))
    assert PartCalibration.from_json(stored) == expected["bolt"]
    with pytest.raises(ValueError, match="for each of 2 views"):
        PartCalibration.from_json(stored | {"scores": [[1.0]]})
