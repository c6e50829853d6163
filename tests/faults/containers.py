"""How files of five formats are put together: their chunks, and the size that their heads name."""

from __future__ import annotations

import struct

from ops.errors import UserError
from tests import pictures


def split(kind: str, data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """A file's head, its chunks, and what lies behind them."""
    if kind == "PNG":
        return data[:8], _png(data), b""
    if kind == "JPEG":
        chunks = _jpeg(data)
        return data[:2], chunks, data[2 + sum(map(len, chunks)) :]
    if kind == "WEBP":
        return data[:12], _riff(data), b""
    if kind == "TIFF":
        start, count = _directory(data)
        entries = [data[at : at + 12] for at in range(start, start + 12 * count, 12)]
        return data[:start], entries, data[start + 12 * count :]
    rows = [data[at : at + 64] for at in range(54, len(data), 64)]  # a BMP has none
    return data[:54], rows, b""


def resized(kind: str, data: bytes, width: int | None, height: int | None) -> bytes:
    """The same file under a head that names another width, height, or both."""
    out = bytearray(data)
    if kind == "PNG":
        head = bytearray(data[16:29])
        _put(head, ">I", 0, width)
        _put(head, ">I", 4, height)
        return data[:8] + pictures.png_chunk(b"IHDR", bytes(head)) + data[33:]
    if kind == "JPEG":
        at = _frame(data)
        _put(out, ">H", at + 5, height)
        _put(out, ">H", at + 7, width)
    elif kind == "BMP":
        _put(out, "<I", 18, width)
        _put(out, "<I", 22, height)
    elif kind == "TIFF":
        start, count = _directory(data)
        for at in range(start, start + 12 * count, 12):
            tag = struct.unpack_from("<H", data, at)[0]
            if tag in {256, 257}:
                out[at + 2 : at + 8] = struct.pack("<HI", 4, 1)
                _put(out, "<I", at + 8, width if tag == 256 else height)
    else:
        _resize_webp(out, width, height)
    return bytes(out)


def _put(out: bytearray, form: str, at: int, value: int | None) -> None:
    if value is not None:
        size = struct.calcsize(form)
        struct.pack_into(form, out, at, min(value, 256**size - 1))


def _png(data: bytes) -> list[bytes]:
    chunks, at = [], 8
    while at < len(data):
        length = 12 + int(struct.unpack_from(">I", data, at)[0])
        chunks.append(data[at : at + length])
        at += length
    return chunks


def _jpeg(data: bytes) -> list[bytes]:
    """Segments up to the first scan."""
    chunks, at = [], 2
    while data[at + 1] != 0xDA:
        length = 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        chunks.append(data[at : at + length])
        at += length
    return chunks


def _frame(data: bytes) -> int:
    """Where the segment begins that names the size."""
    at = 2
    for chunk in _jpeg(data):
        if chunk[1] in {0xC0, 0xC1, 0xC2}:
            return at
        at += len(chunk)
    raise UserError("a JPEG without a frame")


def _riff(data: bytes) -> list[bytes]:
    chunks, at = [], 12
    while at < len(data):
        length = 8 + int(struct.unpack_from("<I", data, at + 4)[0])
        chunks.append(data[at : at + length + length % 2])
        at += length + length % 2
    return chunks


def _directory(data: bytes) -> tuple[int, int]:
    """Where the first directory's entries begin, and how many there are."""
    start = int(struct.unpack_from("<I", data, 4)[0])
    return start + 2, int(struct.unpack_from("<H", data, start)[0])


def _resize_webp(out: bytearray, width: int | None, height: int | None) -> None:
    for name, at in ((b"VP8X", 12), (b"VP8 ", out.find(b"VP8 ")), (b"VP8L", out.find(b"VP8L"))):
        if out[at : at + 4] != name:
            continue
        if name == b"VP8X":  # 24 bits each, one less
            for place, value in ((at + 12, width), (at + 15, height)):
                if value is not None:
                    least = min(max(value - 1, 0), 2**24 - 1)
                    out[place : place + 3] = least.to_bytes(3, "little")
        elif name == b"VP8 ":
            _put(out, "<H", at + 14, None if width is None else min(width, 16_383))
            _put(out, "<H", at + 16, None if height is None else min(height, 16_383))
        else:  # 14 bits each, one less
            bits = int.from_bytes(out[at + 9 : at + 13], "little")
            w = bits & 0x3FFF if width is None else min(max(width - 1, 0), 0x3FFF)
            h = bits >> 14 & 0x3FFF if height is None else min(max(height - 1, 0), 0x3FFF)
            out[at + 9 : at + 13] = (bits & ~0xFFFFFFF | h << 14 | w).to_bytes(4, "little")
