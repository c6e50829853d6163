"""PGM and PPM with all bits, and PFM; those of 8 bits and less are Pillow's."""

from __future__ import annotations

import re

import numpy as np

from ops.failure import Failure
from ops.images.formats import pillow_files
from ops.images.formats.depth import Raster, Values
from ops.images.formats.pixel_limit import PixelLimit

_SPACE = rb"(?:\s|#[^\n]*\n)+"
#: Kind, width, height, and the largest value, or the scale of a PFM. One space ends the header.
_HEADER = re.compile(
    rb"(P[2356Ff])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"([-+\d.eE]+)\s"
)


def read(data: bytes, limit: PixelLimit) -> Raster:
    """Decode a file of the Netpbm formats; the largest value in its header gives its depth."""
    found = _HEADER.match(data[:10_000])
    if found is None:
        return pillow_files.read(data, ("PPM",), limit)
    kind, width, height = found[1], int(found[2]), int(found[3])
    if kind in {b"Pf", b"PF"}:
        return _portable_floats(data[found.end() :], kind, width, height, float(found[4]), limit)
    largest = int(found[4])
    if largest <= 255:
        return pillow_files.read(data, ("PPM",), limit)
    if largest > 65535:
        raise Failure("unreadable", f"damaged (its header declares values up to {largest})")
    channels = 3 if kind in {b"P3", b"P6"} else 1
    limit.allow(width, height, (len(data) - found.end()) // (2 * channels) + 1, "PNM")
    count = width * height * channels
    if kind in {b"P5", b"P6"}:
        values: Values = np.frombuffer(data, ">u2", count, found.end()).astype(np.uint16)
    else:
        words = data[found.end() :].split(None, count)[:count]
        values = np.array(words, np.int64)
    if values.size < count or values.max() > largest or values.min() < 0:
        raise Failure("unreadable", f"damaged (it lacks values from 0 to {largest})")
    return _scaled(values.reshape((height, width, channels)[: 2 if channels == 1 else 3]), largest)


def _scaled(values: Values, largest: int) -> Raster:
    depth = largest.bit_length()
    if largest == 65535:
        return Raster(values.astype(np.uint16))
    if largest == 2**depth - 1:
        return Raster(values.astype(np.uint16), depth)
    wide = values.astype(np.uint32)  # the product just fits
    return Raster(((wide * 65535 + largest // 2) // largest).astype(np.uint16), 16)


def _portable_floats(
    raster: bytes, kind: bytes, width: int, height: int, scale: float, limit: PixelLimit
) -> Raster:
    """A PFM: rows from the bottom to the top; a negative scale means little-endian."""
    channels = 3 if kind == b"PF" else 1
    limit.allow(width, height, len(raster) // (4 * channels), "PFM")
    order = "<f4" if scale < 0 else ">f4"
    values = np.frombuffer(raster, order, width * height * channels).astype(np.float32)
    return Raster(values.reshape((height, width, channels)[: 2 if channels == 1 else 3])[::-1])
