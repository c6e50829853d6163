"""JPEG XL: size and depth by its header, pixels by libjxl."""

from __future__ import annotations

from typing import NamedTuple

import imagecodecs

from ops.failure import Failure
from ops.images.formats.depth import Raster, with_alpha
from ops.images.formats.pixel_limit import PixelLimit

_MARK = b"\xff\x0a"
#: Width : height (ISO/IEC 18181-1, SizeHeader).
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    is_float: bool
    orientation: int = 1


def orientation(data: bytes) -> int:
    """How the stored picture lies, 1 to 8; libjxl turns it upright."""
    return _header(_codestream(data)).orientation


def read(data: bytes, limit: PixelLimit) -> Raster:
    """Decode a still image; libjxl turns it upright."""
    header = _header(_codestream(data))
    limit.allow(header.width, header.height, kind="JPEG XL")
    values = imagecodecs.jpegxl_decode(data, numthreads=1)
    if sorted(values.shape[:2]) != sorted((header.height, header.width)):
        raise Failure("unsupported", "it is a JPEG XL animation; a file must hold one image")
    if header.is_float != (values.dtype.kind == "f"):
        raise Failure("unreadable", f"damaged (it holds {values.dtype} values)")
    depth = None if header.is_float or header.depth >= 16 else header.depth
    return with_alpha(values, depth)


def _codestream(data: bytes) -> bytes:
    """The bare file, or the first part of the codestream in its boxes (ISO/IEC 18181-2)."""
    if data.startswith(_MARK):
        return data
    at = 0
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if name in {b"jxlc", b"jxlp"}:  # a part begins with its number
            return data[at + head + 4 * (name == b"jxlp") :]
        if length < head:
            break
        at += length
    raise Failure("unreadable", "damaged (its codestream is missing)")


class _Bits:
    """Reads fields of a header, the lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self._number, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next field of so many bits."""
        if count > self._left:
            raise Failure("unreadable", "damaged (its header ends early)")
        self._left -= count
        value = self._number & ((1 << count) - 1)
        self._number >>= count
        return value

    def choose(self, *ways: tuple[int, int]) -> int:
        """One of four ways to code a number: how many bits it has, and what is added to them."""
        bits, offset = ways[self.take(2)]
        return self.take(bits) + offset


def _header(codestream: bytes) -> _Header:
    """SizeHeader and the first fields of ImageMetadata (ISO/IEC 18181-1, annex D)."""
    if not codestream.startswith(_MARK):
        raise Failure("unreadable", "damaged (its codestream is missing)")
    bits = _Bits(codestream[2:64])
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio]
        width = height * across // down
    else:
        width = _side(bits, small)
    if bits.take(1):  # all other fields have their defaults
        return _Header(width, height, 8, False)
    turn = 1
    if bits.take(1):
        turn += bits.take(3)
        if turn >= 5:  # lies on its side
            width, height = height, width
        if bits.take(1):
            raise Failure("unsupported", "it is a JPEG XL with a size of its own for displays")
        if bits.take(1) or bits.take(1):
            raise Failure("unsupported", "it is a JPEG XL with a preview, or an animation")
    if bits.take(1):
        return _Header(width, height, bits.choose((0, 32), (0, 16), (0, 24), (6, 1)), True, turn)
    return _Header(width, height, bits.choose((0, 8), (0, 10), (0, 12), (6, 1)), False, turn)


def _side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return bits.choose((9, 1), (13, 1), (18, 1), (30, 1))
