"""The samples of a page of a TIFF: checks that its strips or tiles hold them all, and decodes them.

Sections are those of TIFF 6.0 (Adobe, 1992).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tifffile

from ops.failure import Failure
from ops.images.formats.depth import Values
from ops.images.formats.pixel_limit import PixelLimit

_NONE, _PACKBITS, _LZW, _DEFLATE = 1, 32773, 5, {8, 32946}
#: Encoders that write no integers of another depth than they were given.
_OF_IMAGES = {6, 7, 33003, 33005, 33007, 34712, 34887, 34892, 34934, 50001, 50002, 52546}
_HORIZONTAL, _FLOATING = 2, 3
#: LZW, deflate, LZMA and Zstandard; libtiff ignores the tag of others, and tifffile does not.
_PREDICTED, _FAX = {_LZW, *_DEFLATE, 34925, 50000}, {2, 3, 4}
#: SampleFormat (section 19).
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
#: The most bytes that one byte decodes to: a run of 128 from two bytes (section 9); a code of 12
#: bits is a string of at most 3,840 bytes (section 13); deflate 1032 : 1. Others have no bound.
_EXPANSION = {_NONE: 1, _PACKBITS: 64, _LZW: 2560, **dict.fromkeys(_DEFLATE, 1032)}
_MOST_SAMPLES = 8
#: Bytes of strips or tiles that are read at a time.
_BUFFER = 2**22
_YCBCR = 6


def check_layout(page: tifffile.TiffPage, size: int, limit: PixelLimit) -> None:
    """Refuse what cannot be decoded rightly, before memory is allocated.

    `size` is that of the file. Raises Failure (unreadable, unsupported, too_large).
    """
    width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
    _check_samples(page)
    bits = width * height * samples * page.bitspersample
    if page.photometric == _YCBCR and samples == 3:
        bits = bits * 3 // 8  # colours are those of at most 4 x 4 pixels
    stored = sum(page.databytecounts)
    if page.compression in _EXPANSION and width * height > 0:
        capacity = stored * _EXPANSION[page.compression] * 8 * width * height // max(1, bits)
    else:
        capacity = 2**62
    if page.is_tiled and not 0 < page.tilewidth * page.tilelength <= 4 * max(2**20, width * height):
        what = f"its tiles of {page.tilewidth} x {page.tilelength}"
        raise Failure("unreadable", f"damaged ({what} do not suit {width} x {height} pixels)")
    limit.allow(width, height, capacity, "TIFF")
    _check_segments(page, size)


def _check_samples(page: tifffile.TiffPage) -> None:
    bits: Any = page.bitspersample  # a tuple if samples differ
    form = page.sampleformat
    if not isinstance(bits, int):
        if max(bits) > 64 or min(bits) < 1:
            raise Failure("unreadable", f"damaged (its samples have {bits} bits)")
        raise Failure("unsupported", f"it is a TIFF whose samples differ in depth: {bits}")
    if not 1 <= bits <= 64:
        raise Failure("unreadable", f"damaged (its samples have {bits} bits)")
    if page.planarconfig not in {1, 2}:
        raise Failure("unreadable", f"damaged (its planar configuration is {page.planarconfig})")
    if form not in {_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED} or page.dtype is None:
        message = f"a TIFF of {bits}-bit samples of format {int(form)}"
        raise Failure("unsupported", f"it is {message}; integers and floating point are read")
    if not 1 <= page.samplesperpixel <= _MOST_SAMPLES:
        message = f"a TIFF of {page.samplesperpixel} samples a pixel"
        raise Failure("unsupported", f"it is {message}; at most {_MOST_SAMPLES} are read")
    if page.compression not in tifffile.TIFF.DECOMPRESSORS and page.compression != _NONE:
        name = str(page.compression)
        raise Failure("unsupported", f"it is a TIFF of compression {name}, which is not read")
    _check_predictor(page)


def _check_predictor(page: tifffile.TiffPage) -> None:
    predictor = int(page.predictor)
    if predictor == 1 or page.compression in _OF_IMAGES | _FAX:
        return
    if page.compression not in _PREDICTED:
        message = "its compression takes no predictor, and readers disagree about its tag Predictor"
        raise Failure("unsupported", message)
    is_float = page.sampleformat == _FLOAT
    if predictor != (_FLOATING if is_float else _HORIZONTAL) and (is_float, predictor) != (True, 2):
        message = f"a TIFF of predictor {predictor}, which is not read for its kind of samples"
        raise Failure("unsupported", f"it is {message}")


def _check_segments(page: tifffile.TiffPage, size: int) -> None:
    """Refuse a page whose strips or tiles are too few, empty, or not within the file."""
    if page.is_tiled:
        across = math.ceil(page.imagewidth / page.tilewidth)
        needed = across * math.ceil(page.imagelength / page.tilelength)
    else:
        needed = math.ceil(page.imagelength / max(1, page.rowsperstrip))
    if page.planarconfig == 2:
        needed *= page.samplesperpixel
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) < needed or len(counts) < needed:
        found = min(len(offsets), len(counts))
        raise Failure("unreadable", f"damaged (it holds {found} of {needed} strips or tiles)")
    whole = sum(
        start > 0 and count > 0 and start + count <= size
        for start, count in zip(offsets[:needed], counts[:needed], strict=True)
    )
    if whole < needed:
        raise Failure("unreadable", f"damaged (it holds {whole} of {needed} strips or tiles)")


def decode(page: tifffile.TiffPage) -> Values:
    """All samples of a page that was checked: (H, W, samples), in the byte order of the machine."""
    if page.bitspersample == 1:  # for differences, which booleans do not have
        page.dtype = page._dtype = np.dtype(np.uint8)
    values = _decoded(page)
    if values.size == 0 or values.shape[2] != page.samplesperpixel:
        raise Failure("unreadable", f"damaged (it holds an array of {values.shape})")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _within_depth(page, values)


def _decoded(page: tifffile.TiffPage) -> Values:
    """All rows, also of a page whose last strip was filled up to the length of the others."""
    try:
        return _pixels(page)
    except Exception:
        height = page.imagelength
        missing = -height % max(1, page.rowsperstrip)
        if page.is_tiled or not missing or page.compression in {_NONE, *_OF_IMAGES}:
            raise
        planes, depth, _, width, samples = page.shaped
        page.imagelength = height + missing
        page.shaped = (planes, depth, height + missing, width, samples)
        vars(page).pop("decode", None)  # made for the former length
        vars(page).pop("hash", None)
        return _pixels(page)[:height]


def _pixels(page: tifffile.TiffPage) -> Values:
    """Rows (H, W, samples), of which nothing is held but a few strips or tiles beside them."""
    planes, _, height, width, samples = page.shaped
    if planes == 1:
        values: Values = page.asarray(squeeze=False, maxworkers=1, buffersize=_BUFFER)
        return values.reshape(height, width, samples)
    out = np.zeros((height, width, planes), page.dtype)
    page.init_decode()
    for part, (plane, _, top, left, _), _ in page.segments(maxworkers=1, buffersize=_BUFFER):
        assert part is not None  # empty ones were refused
        place = out[top:, left:, plane]
        place[: part.shape[1], : part.shape[2]] = part[0, : len(place), : place.shape[1], 0]
    return out


def _within_depth(page: tifffile.TiffPage, values: Values) -> Values:
    bits: Any = page.bitspersample
    if values.dtype.kind != "u" or bits == 8 * values.dtype.itemsize:
        return values
    if page.predictor == _HORIZONTAL and page.compression not in _OF_IMAGES:
        values &= values.dtype.type(2**bits - 1)  # differences were summed in a wider type
        return values
    if int(values.max()) >> bits:
        message = f"its values reach {values.max()}, more than {bits} bits"
        raise Failure("unsupported", message)
    return values
