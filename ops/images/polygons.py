"""Polygons that enclose pixels of a picture, as a JSON file gives them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ops.errors import UserError

Point = tuple[float, float]
Polygon = list[Point]
#: Corners of all polygons of a product, and of one file.
MOST_CORNERS = 100_000
_FORM = "a list of polygons, each a list of at least three corners [x, y] in pixels of the picture"


def read_polygons(data: bytes, detector: str) -> list[Polygon]:
    """The polygons of a detector in a JSON file: its own by name, or a list for all detectors.

    Raises UserError if there are none for it, or if they have another form.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"it is not valid JSON ({str(error)[:100]}); give {_FORM}") from None
    if isinstance(content, dict):
        if detector not in content:
            known = ", ".join(sorted(map(str, content))[:10])
            raise UserError(f"it has polygons of {known or 'nothing'}, and none of {detector!r}")
        content = content[detector]
    if not isinstance(content, list) or not content:
        raise UserError(f"it must hold {_FORM}, and not {str(content)[:60]!r}")
    polygons = [_polygon(each) for each in content]
    if (corners := sum(map(len, polygons))) > MOST_CORNERS:
        raise UserError(f"its polygons have {corners:,} corners; at most {MOST_CORNERS:,} are read")
    return polygons


def _polygon(value: Any) -> Polygon:
    if not isinstance(value, list) or len(value) < 3:
        raise UserError(f"it must hold {_FORM}; one of them is {str(value)[:60]!r}")
    return [_point(each) for each in value]


def _point(value: Any) -> Point:
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return float(value[0]), float(value[1])
    raise UserError(f"a corner must be two finite numbers [x, y], not {str(value)[:60]!r}")


def _is_number(value: Any) -> bool:
    # Whole numbers of JSON have any length, and floats may be NaN.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**31 if isinstance(value, int) else math.isfinite(value)


def check_within(polygons: list[Polygon], width: int, height: int) -> None:
    """Check that all corners lie within a picture of this size. Raises UserError."""
    for x, y in (corner for polygon in polygons for corner in polygon):
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(
                f"the corner [{x:g}, {y:g}] lies outside of the picture, which has {width} x "
                f"{height} px; polygons must lie within it, from 0 to {width} and 0 to {height}"
            )


def enclosed(
    polygons: list[Polygon], picture: tuple[int, int], size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """The pixels (height, width) of `size` whose centres any polygon encloses, even-odd.

    Corners are in pixels of a `picture` of this width and height, counted from its upper left
    corner: the first pixel reaches from 0 to 1.
    """
    width, height = size
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        scaled = [(x * width / picture[0], y * height / picture[1]) for x, y in polygon]
        inside |= _fill(scaled, width, height)
    return inside


def _fill(polygon: Polygon, width: int, height: int) -> npt.NDArray[np.bool_]:
    """The pixels whose centres one polygon encloses; each edge toggles those right of it."""
    toggled = np.zeros((height, width + 1), bool)
    for (x, y), (to_x, to_y) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if y == to_y:
            continue
        top, bottom = sorted((y, to_y))
        rows = np.arange(math.ceil(top - 0.5), math.ceil(bottom - 0.5))
        crossing = x + (rows + 0.5 - y) * (to_x - x) / (to_y - y)
        columns = np.ceil(crossing - 0.5).astype(int).clip(0, width)
        toggled[rows, columns] ^= True
    return np.asarray(np.logical_xor.accumulate(toggled[:, :width], axis=1))
