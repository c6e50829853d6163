"""PGM and PPM with all bits, PAM and PFM; PNM of 8 bits and less are Pillow's."""

from __future__ import annotations

import re

import numpy as np

from ops.failure import Failure
from ops.images.formats import pillow_files
from ops.images.formats.depth import Raster, Values, with_alpha
from ops.images.formats.pixel_limit import PixelLimit

_SPACE = rb"(?:\s|#[^\n]*\n)+"
#: Kind, width, height, and the largest value, or the scale of a PFM. One space ends the header.
_HEADER = re.compile(
    rb"(P[2356Ff])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"([-+\d.eE]+)\s"
)
_BITMAP = re.compile(rb"P4" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})\s")
_PAM = re.compile(rb"P7\n(.*?)^ENDHDR *\n", re.DOTALL | re.MULTILINE)
_PAM_LINE = re.compile(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)[ \t]+(.*?)[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(rb"#[^\n]*")
#: Binary files may hold several pictures, one directly after the other.
_NEXT = re.compile(rb"\s*P[1-7Ff]\s")
#: Tuple types of a PAM -> channels.
_TUPLES = {
    b"BLACKANDWHITE": 1,
    b"GRAYSCALE": 1,
    b"RGB": 3,
    b"BLACKANDWHITE_ALPHA": 2,
    b"GRAYSCALE_ALPHA": 2,
    b"RGB_ALPHA": 4,
}


def read(data: bytes, limit: PixelLimit) -> Raster:
    """Decode a file of the Netpbm formats; the largest value in its header gives its depth."""
    if data.startswith(b"P7"):
        return _arbitrary_map(data, limit)
    head = data[:10_000]
    if found := _BITMAP.match(head):
        _check_single(data, found.end() + (int(found[1]) + 7) // 8 * int(found[2]))
        return pillow_files.read(data, ("PPM",), limit)
    found = _HEADER.match(head)
    if found is None:
        return pillow_files.read(data, ("PPM",), limit)
    kind, width, height = found[1], int(found[2]), int(found[3])
    if kind in {b"Pf", b"PF"}:
        return _portable_floats(data[found.end() :], kind, width, height, float(found[4]), limit)
    largest, channels = int(found[4]), 3 if kind in {b"P3", b"P6"} else 1
    if largest > 65535:
        raise Failure("unreadable", f"damaged (its header declares values up to {largest})")
    is_text, size = kind in {b"P2", b"P3"}, 1 if largest <= 255 else 2
    # A text has a digit and a space for each value, but for the last one.
    least = 2 if is_text else size
    limit.allow(width, height, (len(data) - found.end() + is_text) // (least * channels), "PNM")
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    if not is_text:
        values = _samples(data, found.end(), shape, largest)
    elif size == 2:
        values = _words(data[found.end() :], shape, largest)
    return _scaled(values, largest) if size == 2 else pillow_files.read(data, ("PPM",), limit)


def _check_single(data: bytes, end: int) -> None:
    if _NEXT.match(data[end : end + 100]):
        message = "it holds several pictures in a row; a file must hold one image"
        raise Failure("unsupported", message)


def _samples(data: bytes, start: int, shape: tuple[int, ...], largest: int) -> Values:
    """Binary samples in one or two bytes, the high one first. Raises Failure."""
    kind, count = np.dtype(np.uint8 if largest <= 255 else ">u2"), int(np.prod(shape))
    _check_single(data, start + count * kind.itemsize)
    values = np.frombuffer(data, kind, count, start).astype(kind.newbyteorder("="))
    _check_values(values, largest)
    return values.reshape(shape)


def _words(text: bytes, shape: tuple[int, ...], largest: int) -> Values:
    """Samples as decimal numbers between spaces and comments. Raises Failure."""
    count = int(np.prod(shape))
    values = np.array(_COMMENT.sub(b"", text).split(None, count)[:count], np.int64)
    if values.size < count:
        raise Failure("unreadable", f"damaged (it holds {values.size} of {count} values)")
    _check_values(values, largest)
    return values.reshape(shape)


def _check_values(values: Values, largest: int) -> None:
    if values.max() > largest or values.min() < 0:
        message = f"its values run from {values.min()} to {values.max()}, and its header declares"
        raise Failure("unreadable", f"damaged ({message} 0 to {largest})")


def _scaled(values: Values, largest: int) -> Raster:
    """Values with a depth: 8 bits up to 255 as Pillow scales them, otherwise 16 or fewer."""
    depth = largest.bit_length()
    if largest == 65535:
        return Raster(values.astype(np.uint16))
    if largest == 2**depth - 1 and depth > 8:
        return Raster(values.astype(np.uint16), depth)
    kind, white = (np.uint8, 255) if largest <= 255 else (np.uint16, 65535)
    wide = values.astype(np.uint32)  # the product just fits
    return Raster(((wide * white + largest // 2) // largest).astype(kind), white.bit_length())


def _arbitrary_map(data: bytes, limit: PixelLimit) -> Raster:
    """A PAM of grey or RGB, with or without alpha; 0 is black in all of them."""
    found = _PAM.match(data[:10_000])
    fields = dict(_PAM_LINE.findall(found[1])) if found else {}
    if found is None or not fields.keys() >= {b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"}:
        raise Failure("unreadable", "damaged (its header is not that of a PAM file)")
    numbers = [int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")]
    width, height, channels, largest = numbers
    plain = {1: b"GRAYSCALE", 3: b"RGB"}.get(channels, b"")
    kind = fields.get(b"TUPLTYPE", plain)
    if _TUPLES.get(kind) != channels or not 1 <= largest <= 65535:
        name = kind.decode("ascii", "replace")[:40]
        message = f"it is a PAM of {channels} channels {name!r} up to {largest}"
        raise Failure("unsupported", f"{message}; grey and RGB of at most 16 bits are read")
    size = channels * (1 if largest <= 255 else 2)
    limit.allow(width, height, (len(data) - found.end()) // size, "PAM")
    values = _samples(data, found.end(), (height, width, channels), largest)
    scaled = _scaled(values, largest)
    return with_alpha(scaled.values, scaled.depth)


def _portable_floats(
    raster: bytes, kind: bytes, width: int, height: int, scale: float, limit: PixelLimit
) -> Raster:
    """A PFM: rows from the bottom to the top; a negative scale means little-endian."""
    channels = 3 if kind == b"PF" else 1
    limit.allow(width, height, len(raster) // (4 * channels), "PFM")
    _check_single(raster, width * height * channels * 4)
    order = "<f4" if scale < 0 else ">f4"
    values = np.frombuffer(raster, order, width * height * channels).astype(np.float32)
    return Raster(values.reshape((height, width, channels)[: 2 if channels == 1 else 3])[::-1])
