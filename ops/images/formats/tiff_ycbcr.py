"""YCbCr in a TIFF that is not compressed as JPEG: brightness, and colours of fewer pixels.

Sections are those of TIFF 6.0 (Adobe, 1992).
"""

from __future__ import annotations

import math
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from ops.failure import Failure
from ops.images.formats import tiff_samples
from ops.images.formats.depth import Raster, Values

_COEFFICIENTS, _SUBSAMPLING, _REFERENCE = 529, 530, 532
#: Luma of red, green and blue; black and white of each channel (section 21 and libtiff).
_LUMA = (299, 1000, 587, 1000, 114, 1000)
_FULL_RANGE = (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)
#: Compressions of bytes that know nothing of pixels: LZW, deflate, PackBits, LZMA, Zstandard.
_OF_BYTES = {1, 5, 8, 32946, 32773, 34925, 50000}


def subsampling(page: tifffile.TiffPage) -> tuple[int, int]:
    """Pixels across and down that share a colour; without a tag 2 and 2 (section 21)."""
    across, down = page.tags.valueof(_SUBSAMPLING, (2, 2))
    if across not in {1, 2, 4} or down not in {1, 2, 4}:
        raise Failure("unreadable", f"damaged (its colours are subsampled {across} x {down})")
    return int(across), int(down)


def read(page: tifffile.TiffPage) -> Raster:
    """RGB of a checked page of 8 bits. Raises Failure."""
    shared = subsampling(page)
    if page.samplesperpixel != 3 or page.compression not in _OF_BYTES:
        message = f"{page.samplesperpixel} samples of YCbCr in compression {page.compression}"
        raise Failure("unsupported", f"it is a TIFF of {message}; 3 are read, or JPEG")
    if shared == (1, 1):
        return Raster(_to_rgb(page, tiff_samples.decode(page)), 8)
    if page.planarconfig == 2 or page.predictor != 1:
        message = "it is a TIFF of subsampled YCbCr in planes or with a predictor"
        raise Failure("unsupported", f"{message}, which is not read")
    return Raster(_to_rgb(page, _unpacked(page, *shared)), 8)


def _unpacked(page: tifffile.TiffPage, across: int, down: int) -> Values:
    """All pixels (H, W, 3): each colour is repeated for those that share it."""
    height, width = page.imagelength, page.imagewidth
    tall, wide = page.rowsperstrip, width
    if page.is_tiled:
        tall, wide = page.tilelength, page.tilewidth
    out = np.zeros((height, width, 3), np.uint8)
    columns = math.ceil(width / wide)
    for number in range(columns * math.ceil(height / tall)):
        top, left = number // columns * tall, number % columns * wide
        rows = tall if page.is_tiled else min(tall, height - top)
        units = _units(page, number, across, down, (rows, tall), wide)
        part = out[top : top + tall, left : left + wide]
        bright = units[..., :-2].reshape(*units.shape[:2], down, across).swapaxes(1, 2)
        part[..., 0] = bright.reshape(down * units.shape[0], -1)[: part.shape[0], : part.shape[1]]
        colours = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
        part[..., 1:] = colours[: part.shape[0], : part.shape[1]]
    return out


def _units(
    page: tifffile.TiffPage, number: int, across: int, down: int, rows: tuple[int, int], wide: int
) -> Values:
    """Data units (down, across, samples) of a strip or tile: brightness of each pixel, Cb, Cr.

    `rows`: those that it must hold, and those of a strip that is filled up.
    """
    start, count = page.dataoffsets[number], page.databytecounts[number]
    handle: Any = page.parent.filehandle
    handle.seek(start)
    packed = handle.read(count)
    if page.fillorder == 2:
        packed = imagecodecs.bitorder_decode(packed)
    data = (
        packed if page.compression == 1 else tifffile.TIFF.DECOMPRESSORS[page.compression](packed)
    )
    units, size = math.ceil(wide / across), across * down + 2
    for high in rows:
        if len(data) == (needed := math.ceil(high / down) * units * size):
            return np.frombuffer(data, np.uint8).reshape(-1, units, size)
    message = f"{len(data)} bytes, and colours subsampled {across} x {down} need {needed}"
    raise Failure("unreadable", f"damaged (a strip or tile holds {message})")


def _to_rgb(page: tifffile.TiffPage, samples: Values) -> Values:
    """RGB (H, W, 3) of 8 bits by the coefficients and the black and white of the page.

    The samples are replaced, row by row.
    """
    red, green, blue = _fractions(page, _COEFFICIENTS, _LUMA)
    black_y, white_y, zero_b, white_b, zero_r, white_r = _fractions(page, _REFERENCE, _FULL_RANGE)
    spans = white_y - black_y, white_b - zero_b, white_r - zero_r
    if 0 in spans or 0 in (red, green, blue):
        raise Failure("unreadable", "damaged (its YCbCr coefficients or its white are 0)")
    for values in samples:
        y = (values[:, 0] - black_y) * (255 / spans[0])
        r = (values[:, 2] - zero_r) * (127 / spans[2]) * (2 - 2 * red) + y
        b = (values[:, 1] - zero_b) * (127 / spans[1]) * (2 - 2 * blue) + y
        g = (y - red * r - blue * b) / green
        values[:] = np.rint(np.stack([r, g, b], axis=-1)).clip(0, 255)
    return samples


def _fractions(page: tifffile.TiffPage, tag: int, default: tuple[int, ...]) -> list[float]:
    """Values of a tag of rational numbers."""
    words = page.tags.valueof(tag, default)
    if len(words) != len(default) or 0 in words[1::2]:
        raise Failure("unreadable", f"damaged (its tag {tag} is {words})")
    return [up / low for up, low in zip(words[::2], words[1::2], strict=True)]
