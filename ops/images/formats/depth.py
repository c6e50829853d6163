"""The scale of decoded values: which number is white, and which numbers a picture cannot have.

Nothing here clips or wraps a value: what does not fit the scale is a `Failure`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ops.failure import Failure

Values = npt.NDArray[Any]
#: Pixels of a band.
_BAND = 2**20


class Raster(NamedTuple):
    """What a reader takes from a file: values as they are stored, and how they are meant."""

    values: Values
    """(H, W) grey or (H, W, 3) RGB: integers or floating point, as they lie in the file."""
    depth: int | None = None
    """Bits per sample that the format declares; None for containers of 16 bits and more, which hold
    pictures of any depth, and for floating point."""
    alpha: Values | None = None
    """(H, W), not multiplied into the values; its full scale is that of the values."""
    white_is_zero: bool = False
    orientation: int = 1
    """How to turn the picture upright: 1 to 8, as in EXIF."""
    largest: int | None = None
    """Tag MaxSampleValue of a TIFF."""
    note: str = ""
    """What was left out of the file without harm to the pixels."""


def largest_value(depth: int) -> int:
    """White, in a picture of this depth."""
    return int(2**depth - 1)


def of_container(values: Values, setting: int | None, largest: int | None) -> int:
    """The depth of integers in a container of 16 bits or more.

    `setting` is the model's `bit_depth`; `largest` is tag MaxSampleValue of a TIFF. Writers use it
    for the depth as well as for the largest value of the picture (TIFF 6.0, section 8), which says
    nothing about the scale; so only 2 ** n - 1 with 8 < n <= 16 that no value exceeds is a depth.
    Raises Failure if a value does not fit the depth, or if the depth is unknown.
    """
    low, high = int(values.min()), int(values.max())
    _check_integers(values.dtype, low, high, setting)
    declared = _declared(largest, high)
    if setting is not None:
        if high > largest_value(setting):
            limit = f"the {largest_value(setting)} of --decode.bit_depth {setting}"
            raise Failure("unsupported", f"its values reach {high}, more than {limit}")
        if declared is not None and declared not in {setting, 16}:
            rule = f"declares {declared} bits, but --decode.bit_depth is {setting}"
            raise Failure("unsupported", f"its tag MaxSampleValue ({largest}) {rule}")
        return setting
    if largest is None or max(high, largest) >= 2**15:
        return 16
    if declared is None and largest < high:
        message = f"its values reach {high}, more than its tag MaxSampleValue ({largest}) declares"
        raise Failure("unsupported", f"{message}; --decode.bit_depth gives their scale")
    if declared is None:
        remedy = "--decode.bit_depth gives one scale to all pictures"
        message = f"its tag MaxSampleValue ({largest}) is not a bit depth, so its scale is unknown"
        raise Failure("unsupported", f"{message}; {remedy}")
    return declared


def _declared(largest: int | None, high: int) -> int | None:
    if largest is None or largest < high:
        return None
    depth = largest.bit_length()
    return depth if 8 < depth <= 16 and largest == largest_value(depth) else None


def _check_integers(dtype: np.dtype[Any], low: int, high: int, setting: int | None) -> None:
    if low < 0 or (dtype.kind == "i" and dtype.itemsize == 1):
        message = f"its values are signed and run from {low} to {high}, so black is unknown"
        raise Failure("unsupported", f"{message}; 0 must be black")
    if high > 65535:
        message = f"its values run from {low} to {high}; at most 16 bits (65535) are supported"
        raise Failure("unsupported", message)
    if dtype.kind == "i" and dtype.itemsize == 2 and setting is None:
        message = "its values are signed 16-bit integers, so white is unknown"
        raise Failure("unsupported", f"{message}; --decode.bit_depth gives it")


def parse_range(text: str) -> tuple[float, float]:
    """Black and white of floating-point pictures, from `0,1`. Raises ValueError."""
    black, white = (float(word) for word in text.split(","))
    if not (black < white and math.isfinite(white - black)):  # also if one is not finite
        raise ValueError(text)
    return black, white


def to_levels(values: Values, limits: tuple[float, float] | None) -> npt.NDArray[np.uint16]:
    """Floating-point values as levels of 16 bits, rounded; black and white are 0 and 65535.

    Raises Failure without limits, and if a value lies outside of them.
    """
    if limits is None:
        message = "its pixels are floating point, so their black and white levels are unknown"
        raise Failure("unsupported", f"{message}; --decode.range 0,1 gives them")
    black, white = limits
    low, high = float(values.min()), float(values.max())
    if not (black <= low and high <= white):  # also if one is not a number
        found = "contain NaN" if math.isnan(low) else f"run from {low:g} to {high:g}"
        limit = f"outside of --decode.range {black:g},{white:g}"
        raise Failure("unsupported", f"its values {found}, {limit}")
    out = np.empty(values.shape, np.uint16)
    for rows in bands(*values.shape[:2]):
        levels = values[rows].astype(np.float64)
        levels -= black
        levels *= 65535 / (white - black)
        out[rows] = np.rint(levels, out=levels)
    return out


def over_black(values: Values, alpha: Values, full: int) -> Values:
    """Colours (H, W) or (H, W, 3) blended with black; `full` is an opaque alpha, at most 65535."""
    out = np.empty_like(values)
    for rows in bands(*values.shape[:2]):  # rounded; the sum just fits into 32 bits
        weight = alpha[rows].astype(np.uint32)
        weight = weight if values.ndim == 2 else weight[..., None]
        out[rows] = (values[rows] * weight + full // 2) // full
    return out


def bands(height: int, width: int) -> Iterator[slice]:
    """Rows of a picture, a part at a time, for computations that take more memory than it has."""
    step = max(1, _BAND // max(1, width))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def with_alpha(values: Values, depth: int | None) -> Raster:
    """Decoded samples (H, W) or (H, W, channels); an even number of channels ends with alpha.

    Raises Failure for more than four channels.
    """
    channels = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in {2, 3} or not 1 <= channels <= 4:
        message = f"an array of {values.shape} is not a picture of at most 4 channels"
        raise Failure("unsupported", message)
    if values.ndim == 2:
        return Raster(values, depth)
    alpha = values[..., -1] if channels in {2, 4} else None
    colours = values[..., 0] if channels <= 2 else values[..., :3]
    return Raster(colours, depth, alpha)
