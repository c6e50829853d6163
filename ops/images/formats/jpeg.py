"""JPEG files: of 8 bits by Pillow, and those that it does not read: deep, lossless, JPEG-LS.

Where libjpeg meets the end mark too early, it fills the rest of the image with grey, and does not
report its warning. A file that lost bytes, or whose header has a wrong size, would be scored with a
grey area; so each file is decoded from data that make the decoder fail, or that differ.
"""

from __future__ import annotations

import io
import math
import random
import struct
from collections.abc import Iterator
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image

from ops.failure import Failure
from ops.images.formats import pillow_files
from ops.images.formats.depth import Raster, Values
from ops.images.formats.pixel_limit import PixelLimit

#: At least one bit for each block of 8 x 8 (ITU-T T.81, F.1.2 and G.1.2).
_PIXELS_PER_BYTE = 8 * 64
#: Huffman-coded frames of one scan (ITU-T T.81, table B.1): baseline and extended sequential.
_SEQUENTIAL = {0xC0, 0xC1}
_LOSSLESS, _LS = {0xC3, 0xCB}, 0xF7  # ITU-T T.81, table B.1; ITU-T T.87, table C.1
_START, _SCAN, _END = 0xD8, 0xDA, b"\xff\xd9"
#: Bits of 1, with which encoders fill the last byte, are not a code. A decoder may read ahead into
#: them, and decodes at most three blocks from them.
_PADDING = b"\xff\x00" * 16
#: What follows the data of a scan that is not whole decodes to other pixels than grey.
_NOISE = bytes(random.Random(0).choices(range(255), k=4096))  # noqa: S311 - the same every time


class _Segment(NamedTuple):
    kind: int
    start: int
    stop: int


class _Frame(NamedTuple):
    """The header of a frame (ITU-T T.81, B.2.2)."""

    kind: int
    depth: int
    height: int
    width: int
    channels: int


def read(data: bytes, limit: PixelLimit, least_side: int | None = None) -> Raster:
    """Decode a JPEG of any depth. Metadata that Pillow refuses are left out with a note.

    With `least_side` one of 8 bits is decoded at 1/2, 1/4 or 1/8 of its size, which saves most of
    the time, if its longer side then still has so many pixels.
    """
    segments = list(_segments(data))
    frame = _frame(data, segments)
    if frame is not None and (frame.depth != 8 or frame.kind in {*_LOSSLESS, _LS}):
        return _uncommon(data, frame, limit)
    try:
        return _by_pillow(data, segments, limit, least_side)
    except Failure:
        raise
    except Exception:
        without = _without_metadata(data, segments)
        if without is None:
            raise
        raster = _by_pillow(without, list(_segments(without)), limit, least_side)
    return raster._replace(note="its metadata are damaged and were not used")


def _by_pillow(
    data: bytes, segments: list[_Segment], limit: PixelLimit, least_side: int | None
) -> Raster:
    unended = without_end_mark(data, segments)
    with Image.open(io.BytesIO(data if unended is None else unended), formats=["JPEG"]) as image:
        pillow_files.check(image, data, limit, len(data) * _PIXELS_PER_BYTE)
        if image.format == "JPEG" or unended is None:
            return _raster_of(image, least_side)
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:  # previews follow its end mark
        return _raster_of(image, least_side)


def _raster_of(image: Image.Image, least_side: int | None) -> Raster:
    if least_side is not None:
        longer = max(image.size)
        fraction = next((n for n in (8, 4, 2) if math.ceil(longer / n) >= least_side), 1)
        # The decoder takes fewer coefficients of each block.
        image.draft(None, (max(1, image.width // fraction), max(1, image.height // fraction)))
    return pillow_files.raster_of(image)


def _uncommon(data: bytes, frame: _Frame, limit: PixelLimit) -> Raster:
    if not 2 <= frame.depth <= 16 or frame.channels not in {1, 3}:
        message = f"a JPEG of {frame.channels} channels of {frame.depth} bits"
        raise Failure("unsupported", f"it is {message}; 1 or 3 channels of 2 to 16 bits are read")
    limit.allow(frame.width, frame.height, kind="JPEG")
    values: Values
    if frame.kind == _LS:
        values = imagecodecs.jpegls_decode(data)
    elif frame.kind in _LOSSLESS:
        values = imagecodecs.jpegsof3_decode(data)
    else:
        end = data.rfind(_END)
        if end < 0:
            raise Failure("unreadable", "damaged (its end is missing)")
        values = imagecodecs.jpeg8_decode(data)
        if not np.array_equal(values, imagecodecs.jpeg8_decode(data[:end] + _NOISE + _END)):
            raise Failure("unreadable", "damaged (its data end before its last row)")
    shape = (frame.height, frame.width, 3)[: 2 if frame.channels == 1 else 3]
    if values.shape != shape:
        raise Failure("unreadable", f"damaged (it holds {values.shape}, and declares {shape})")
    return Raster(values, None if frame.depth == 16 else frame.depth, orientation=orientation(data))


def orientation(data: bytes) -> int:
    """The orientation in the EXIF data of a file; 1 without."""
    for segment in _segments(data):
        content = data[segment.start + 4 : segment.stop]
        if segment.kind == 0xE1 and content.startswith(b"Exif\0\0"):
            exif = Image.Exif()
            try:
                exif.load(content)
                return int(exif.get(0x0112, 1))
            except Exception:  # damaged data make Pillow raise anything
                return 1
    return 1


def without_end_mark(data: bytes, segments: list[_Segment] | None = None) -> bytes | None:
    """The file up to its end mark, then padding; None unless it has a single sequential scan."""
    start = _only_scan(data, list(_segments(data)) if segments is None else segments)
    end = data.find(_END, start)  # within a scan, no marker code follows 0xFF
    if start < 0 or end < 0 or data.find(b"\xff\xda", start, end) >= 0:
        return None
    return data[:end] + _PADDING


def _only_scan(data: bytes, segments: list[_Segment]) -> int:
    """Offset of the data of the first scan; -1 if its frame is not sequential."""
    frame = _frame(data, segments)
    if frame is None or frame.kind not in _SEQUENTIAL:
        return -1
    return next((s.stop for s in segments if s.kind == _SCAN), -1)


def _frame(data: bytes, segments: list[_Segment]) -> _Frame | None:
    found = None
    for kind, start, stop in segments:
        # 0xC0 to 0xCF are frames but for three tables.
        if kind == _LS or (0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}):
            if stop - start < 10:
                return None
            depth, height, width, channels = struct.unpack_from(">BHHB", data, start + 4)
            found = _Frame(kind, depth, height, width, channels)
    return found


def _without_metadata(data: bytes, segments: list[_Segment]) -> bytes | None:
    """The file without comments and application data, but for those that change colours."""
    dropped = [s for s in segments if s.kind == 0xFE or 0xE1 <= s.kind <= 0xED]
    if not dropped:
        return None
    kept, at = [], 0
    for segment in dropped:
        kept.append(data[at : segment.start])
        at = segment.stop
    return b"".join([*kept, data[at:]])


def _segments(data: bytes) -> Iterator[_Segment]:
    """The segments up to the first scan's header; ends where the bytes are no marker."""
    at = 2
    while at + 4 <= len(data):
        mark, kind, length = struct.unpack_from(">BBH", data, at)
        if mark == 0xFF and kind in {0xFF, _START}:  # a fill byte; a SPIFF header ends like this
            at += 1 if kind == 0xFF else 2
            continue
        if mark != 0xFF or length < 2:
            return
        yield _Segment(kind, at, at + 2 + length)
        at += 2 + length
        if kind == _SCAN:
            return
