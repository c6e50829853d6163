"""JPEG 2000: of 8 bits by Pillow, of other depths with all their bits by OpenJPEG."""

from __future__ import annotations

import struct

import imagecodecs

from ops.failure import Failure
from ops.images.formats import pillow_files
from ops.images.formats.depth import Raster, with_alpha
from ops.images.formats.pixel_limit import PixelLimit

_CODESTREAM = b"\xff\x4f\xff\x51"
#: Enumerated colour spaces that are RGB or grey (ISO/IEC 15444-1, table I.10).
_PLAIN_SPACES = {16, 17}


def read(data: bytes, limit: PixelLimit) -> Raster:
    """Decode a JP2 file or a bare codestream."""
    start = data.find(_CODESTREAM)
    if start < 0 or start + 42 > len(data):
        raise Failure("unreadable", "damaged (its codestream is missing)")
    # Segment SIZ (ISO/IEC 15444-1, A.5.1).
    right, low, left, top = struct.unpack_from(">4I", data, start + 8)
    (channels,) = struct.unpack_from(">H", data, start + 40)
    components = data[start + 42 : start + 42 + 3 * channels]
    if len(components) < 3 * max(1, channels):
        raise Failure("unreadable", "damaged (its header ends early)")
    if set(components[::3]) == {7}:  # depth - 1; the highest bit means signed
        return pillow_files.read(data, ("JPEG2000",), limit)
    if {components[at : at + 3] for at in range(0, len(components), 3)} != {components[:3]}:
        raise Failure("unsupported", "it is a JPEG 2000 whose channels differ in depth or size")
    depth, signed = (components[0] & 0x7F) + 1, components[0] >> 7
    if signed or depth > 16 or components[1:3] != b"\1\1" or channels > 4:
        message = f"a JPEG 2000 of {channels} {'signed ' * signed}channels of {depth} bits"
        raise Failure("unsupported", f"it is {message}; at most 4 of 16 bits are read")
    _check_colours(data[:start], channels, depth)
    limit.allow(right - left, low - top, kind="JPEG 2000")
    values = imagecodecs.jpeg2k_decode(data, numthreads=1)
    if values.shape[:2] != (low - top, right - left):
        raise Failure("unreadable", f"damaged (it holds {values.shape[:2]} pixels)")
    return with_alpha(values, None if depth == 16 else depth)


def _check_colours(boxes: bytes, channels: int, depth: int) -> None:
    """Refuse palettes and colours that are not RGB; boxes lie before the codestream."""
    what = None
    if b"pclr" in boxes:
        what = "a palette"
    colr = boxes.find(b"colr")
    if colr >= 0 and boxes[colr + 4 : colr + 5] == b"\1":
        (space,) = struct.unpack_from(">I", boxes, colr + 7)
        what = what or (None if space in _PLAIN_SPACES else f"colours of space {space}")
    elif channels == 4:
        what = what or "four channels of unknown colours"
    if what:
        raise Failure("unsupported", f"it is a JPEG 2000 of {depth} bits with {what}")
