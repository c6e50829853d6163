"""PNG: all checksums are checked, colour keeps 16 bits, damaged metadata cost only themselves."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ops.failure import Failure
from ops.images.formats import pillow_files
from ops.images.formats.depth import Raster
from ops.images.formats.pixel_limit import PixelLimit

#: Deflate compresses by at most 1032 : 1, and a pixel has at least one bit.
_PIXELS_PER_BYTE = 8 * 1032
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Ancillary chunks that the pixels depend on: transparency and animation.
_OF_PIXELS = {b"tRNS", b"acTL", b"fcTL", b"fdAT"}


class _Chunk(NamedTuple):
    name: bytes
    whole: bytes
    is_intact: bool

    @property
    def is_metadata(self) -> bool:
        """Whether the pixels are the same without it; such names begin with a small letter."""
        return bool(self.name[0] & 0x20) and self.name not in _OF_PIXELS


def read(data: bytes, limit: PixelLimit) -> Raster:
    """Decode a PNG. Metadata that are damaged, or that Pillow refuses, are left out with a note."""
    try:
        return _read(data, limit)
    except Failure:
        raise
    except Exception:
        without, names = _without_metadata(data)
        if not names:
            raise
        raster = _read(without, limit)
    note = f"its metadata are damaged and were not used ({', '.join(names)})"
    return raster._replace(note=note)


def _without_metadata(data: bytes) -> tuple[bytes, list[str]]:
    """The file without chunks of metadata, and the names of those left out; orientation is kept."""
    kept, names = [_SIGNATURE], dict[str, None]()
    for chunk in _chunks(data):
        if chunk.is_metadata and not (chunk.name == b"eXIf" and chunk.is_intact):
            names[chunk.name.decode("ascii", "replace")] = None
        else:
            kept.append(chunk.whole)
    return b"".join(kept), [name for name in names if name.isprintable()][:8]


def _chunks(data: bytes) -> Iterator[_Chunk]:
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        whole = data[at : at + 12 + length]
        yield _Chunk(name, whole, whole[-4:] == struct.pack(">I", zlib.crc32(whole[4:-4])))
        at += 12 + length
        if name == b"IEND":
            return


def _read(data: bytes, limit: PixelLimit) -> Raster:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        pillow_files.check(image, data, limit, len(data) * _PIXELS_PER_BYTE)
        if data[12:16] != b"IHDR":
            raise Failure("unreadable", "damaged (its header does not come first)")
        depth, colour = struct.unpack_from(">BB", data, 24)
        if colour == 3 and image.palette is None:
            raise Failure("unreadable", "damaged (its palette is missing)")
        # Checks every checksum and the end chunk. Decoders stop at the last row, and decode rows
        # from the zeros of a file that was partly overwritten.
        image.verify()
        if depth == 16 and colour in {2, 4, 6}:
            return _deep_colour(data, colour, image.info.get("transparency"))
    with Image.open(io.BytesIO(data), formats=["PNG"]) as unread:  # `verify` has read the first
        if depth < 8 and colour == 0:
            return _shallow_grey(unread, depth)
        return pillow_files.raster_of(unread)


def _shallow_grey(image: Image.Image, depth: int) -> Raster:
    """Grey of 1, 2 or 4 bits; Pillow compares the transparent value with scaled ones."""
    image.load()
    clear = image.info.pop("transparency", None)
    raster = pillow_files.raster_of(image)
    if clear is None:
        return raster
    scaled = int(clear) * {1: 1, 2: 85, 4: 17}[depth]  # Pillow gives 0 or 255 for that of 1 bit
    return raster._replace(values=np.where(raster.values == scaled, 0, raster.values))


def _deep_colour(data: bytes, colour: int, clear: tuple[int, ...] | None) -> Raster:
    """All bits of a PNG of 16 bits and several channels; Pillow unpacks only 8 at a time."""
    if colour == 4:  # four bytes a pixel: grey and alpha, the high one first
        octets = _unpack_rows(data, "RGBA", "RGBA").astype(np.uint16)
        values = octets[..., ::2] << 8 | octets[..., 1::2]
    else:
        mode = "RGBA" if colour == 6 else "RGB"
        values = _unpack_rows(data, mode, f"{mode};16B").astype(np.uint16) << 8
        values |= _unpack_rows(data, mode, f"{mode};16L")  # takes the low bytes for the high ones
    if clear:  # one colour is declared transparent
        values[(values == clear).all(axis=-1)] = 0
    if colour == 2:
        return Raster(values)
    colours = values[..., 0] if colour == 4 else values[..., :3]
    return Raster(colours, alpha=values[..., -1])


def _unpack_rows(data: bytes, mode: str, layout: str) -> npt.NDArray[np.uint8]:
    """Samples (H, W, channels) of a PNG, upright, whose rows are unpacked by a given layout."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image._mode = mode
        image.tile = [tile._replace(args=layout) for tile in image.tile]
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image)
