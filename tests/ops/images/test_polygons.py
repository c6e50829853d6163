"""Polygons in JSON: which pixels they enclose, and what is refused."""

import json

import numpy as np
import pytest
from matplotlib.path import Path

from ops.errors import UserError
from ops.images import polygons
from ops.images.polygons import check_within, enclosed, read_polygons

SQUARE = [[2, 1], [6, 1], [6, 4], [2, 4]]


def test_a_rectangle_encloses_the_pixels_between_its_sides():
    found = enclosed([[(2, 1), (6, 1), (6, 4), (2, 4)]], (8, 6), (8, 6))
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:6] = True
    assert np.array_equal(found, expected)
    turned = [[(6, 4), (2, 4), (2, 1), (6, 1)]]
    assert np.array_equal(enclosed(turned, (8, 6), (8, 6)), expected)
    whole = [[(0, 0), (8, 0), (8, 6), (0, 6)]]
    assert enclosed(whole, (8, 6), (8, 6)).all()
    assert np.array_equal(
        enclosed([[(4, 2), (12, 2), (12, 8), (4, 8)]], (16, 12), (8, 6)), expected
    )


@pytest.mark.parametrize("seed", range(6))
def test_pixels_are_enclosed_if_their_centres_are(seed):
    corners = np.random.default_rng(seed).uniform(0, 40, (9, 2)) * [1, 0.75]
    # A fan around the centre, so that no side crosses another: there, rules of filling differ.
    middle = corners.mean(axis=0)
    corners = corners[np.argsort(np.arctan2(*(corners - middle).T))]
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    inside = Path(corners).contains_points(np.column_stack([x.ravel(), y.ravel()]))
    found = enclosed([list(map(tuple, corners))], (40, 30), (40, 30))
    assert np.array_equal(found, inside.reshape(30, 40))


def test_several_polygons_are_joined_and_one_that_crosses_itself_is_even_odd():
    one, other = [(0, 0), (4, 0), (4, 4), (0, 4)], [(2, 2), (6, 2), (6, 6), (2, 6)]
    assert enclosed([one, other], (6, 6), (6, 6)).sum() == 16 + 16 - 4
    assert enclosed([one + one], (6, 6), (6, 6)).sum() == 0
    ring = [*one, (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
    assert enclosed([ring], (6, 6), (6, 6)).sum() == 16 - 4


def test_a_file_names_detectors_or_holds_the_polygons_of_all():
    data = json.dumps({"bolt": [SQUARE], "nut/top": [SQUARE, SQUARE]}).encode()
    assert read_polygons(data, "bolt") == [[(2, 1), (6, 1), (6, 4), (2, 4)]]
    assert len(read_polygons(data, "nut/top")) == 2
    assert len(read_polygons(json.dumps([SQUARE]).encode(), "nut")) == 1
    with pytest.raises(UserError, match=r"has polygons of bolt, nut/top, and none of '\.\./x'"):
        read_polygons(data, "../x")


HOSTILE = {
    "no JSON": (b"PNG", "not valid JSON"),
    "bytes": (b"\xff\xfe\x00", "not valid JSON"),
    "deep": (b"[" * 100_000, "not valid JSON|corner"),
    "number": (b"7", "it must hold a list of polygons"),
    "nothing": (b"[]", "it must hold a list of polygons"),
    "nobody": (b"{}", "it has polygons of nothing, and none of 'bolt'"),
    "one polygon": (json.dumps(SQUARE).encode(), "at least three corners"),
    "two corners": (b"[[[0, 0], [1, 1]]]", "at least three corners"),
    "NaN": (b"[[[0, 0], [1, NaN], [1, 1]]]", r"two finite numbers \[x, y\], not '\[1, nan\]'"),
    "infinite": (b"[[[0, 0], [1, 1e999], [1, 1]]]", "two finite numbers"),
    "long": (b"[[[0, 0], [1, 1" + b"0" * 400 + b"], [1, 1]]]", "two finite numbers"),
    "text": (b'[[[0, 0], ["1", 2], [1, 1]]]', "two finite numbers"),
    "truth": (b"[[[0, 0], [true, 2], [1, 1]]]", "two finite numbers"),
    "three": (b"[[[0, 0], [1, 2, 3], [1, 1]]]", "two finite numbers"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_list_of_polygons_is_refused_with_the_form(kind):
    data, sentence = HOSTILE[kind]
    with pytest.raises(UserError, match=sentence):
        read_polygons(data, "bolt")


def test_too_many_corners_are_refused(monkeypatch):
    monkeypatch.setattr(polygons, "MOST_CORNERS", 7)
    with pytest.raises(UserError, match="have 8 corners; at most 7 are read"):
        read_polygons(json.dumps([SQUARE, SQUARE]).encode(), "bolt")


def test_corners_outside_of_the_picture_are_refused():
    check_within([[(0, 0), (8, 0), (8, 6)]], 8, 6)
    for corner in [(8.5, 0), (0, 6.1), (-0.1, 3)]:
        with pytest.raises(UserError, match="lies outside of the picture, which has 8 x 6 px"):
            check_within([[(0, 0), (8, 0), corner]], 8, 6)
