"""The PNG file of an anomaly map: 16-bit grey levels, with scale and geometry as text."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ops.errors import UserError
from ops.images.resize import Geometry, InputSettings, geometry
from ops.results.anomaly_map import Map, Scale

#: Width and height in pixels.
Size = tuple[int, int]
_TEXT = ("offset", "scale", "geometry", "model_id")


def encode(values: Map, scale: Scale, where: Geometry, model_id: str) -> bytes:
    """A map (h, w) as a 16-bit grey PNG; its text chunks hold scale, geometry and model_id."""
    levels = scale.levels(values)
    height, width = levels.shape
    texts = (
        repr(scale.offset),
        repr(scale.scale),
        " ".join(repr(float(n)) for n in where),
        model_id,
    )
    parts = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))]
    for name, text in zip(_TEXT, texts, strict=True):
        parts.append(_chunk(b"tEXt", f"nightloupe:{name}\0{text}".encode("latin-1")))
    parts += [_chunk(b"IDAT", _packed(levels)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _packed(levels: npt.NDArray[np.uint16]) -> bytes:
    """Rows as differences to the row above (filter 2), run-length encoded.

    Smooth maps need no search for the best filter of each row: that of Pillow makes files 5 %
    smaller and takes more than twice as long.
    """
    stored = levels.astype(">u2").view(np.uint8)
    rows = np.empty((len(stored), 1 + stored.shape[1]), np.uint8)
    rows[:, 0] = 2
    rows[:1, 1:] = stored[:1]
    np.subtract(stored[1:], stored[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return deflate.compress(rows.tobytes()) + deflate.flush()


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


class Decoded(NamedTuple):
    """A map that was read from a PNG: grey levels (h, w), scale and geometry."""

    levels: npt.NDArray[np.uint16]
    scale: Scale
    geometry: Geometry
    model_id: str

    def values(self) -> Map:
        """The map's values (h, w)."""
        return (self.scale.offset + self.scale.scale * self.levels).astype(np.float32)


def decode(data: bytes) -> Decoded:
    """Undo `encode`. Raises UserError if `data` is not a map that `encode` wrote."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            text, mode = dict(image.info), image.mode
            levels = np.asarray(image, dtype=np.uint16)
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise UserError(f"not a readable PNG ({type(error).__name__}: {error})") from None
    missing = [name for name in _TEXT if f"nightloupe:{name}" not in text]
    if missing or mode != "I;16":
        raise UserError(f"this PNG is not an anomaly map: mode {mode}, text without {missing}")
    offset, scale, where, model_id = (text[f"nightloupe:{name}"] for name in _TEXT)
    return Decoded(
        levels,
        Scale(float(offset), float(scale)),
        Geometry(*(float(value) for value in where.split())),
        model_id,
    )


def picture_size(decoded: Decoded, settings: InputSettings, given: tuple[int, int]) -> Size:
    """Width and height of the picture that a map was drawn for.

    `given` is returned if the map fits a picture of that size. Else the size follows from the
    map's geometry, in which a crop may leave a pixel of doubt.
    """
    where = decoded.geometry
    if np.allclose(where, geometry(*given, settings), rtol=1e-9, atol=0):
        return given
    height, width = decoded.levels.shape
    return _length(where.step_x, width, where.left), _length(where.step_y, height, where.top)


def _length(step: float, side: int, cut: float) -> int:
    """Pixels along one axis of the picture; `cut` of the resized picture lie before the map."""
    lengths = [step * (side + 2 * cut + odd) for odd in (0, 1)]
    return min((abs(length - round(length)), round(length)) for length in lengths)[1]
