"""JPEG files without their end mark, so that a decoder that runs out of data raises an error.

Where libjpeg meets the end mark too early, it fills the rest of the image with grey, and Pillow
does not report its warning. A file that lost bytes, or whose header has a wrong size, would be
scored with a grey area.
"""

from __future__ import annotations

import struct

#: Huffman-coded frames of one scan (ITU-T T.81, table B.1): baseline and extended sequential.
_SEQUENTIAL = {0xC0, 0xC1}
_SCAN, _END = 0xDA, b"\xff\xd9"
#: Bits of 1, with which encoders fill the last byte, are not a code. A decoder may read ahead into
#: them, and decodes at most three blocks from them.
_PADDING = b"\xff\x00" * 16


def without_end_mark(data: bytes) -> bytes | None:
    """The file up to its end mark, then padding; None unless it has a single sequential scan."""
    start = _only_scan(data)
    end = data.find(_END, start)  # within a scan, no marker code follows 0xFF
    if start < 0 or end < 0 or data.find(b"\xff\xda", start, end) >= 0:
        return None
    return data[:end] + _PADDING


def _only_scan(data: bytes) -> int:
    """Offset of the data of the first scan; -1 if its frame is not sequential."""
    at, frame = 2, 0
    while at + 4 <= len(data):
        mark, kind, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF or length < 2:
            return -1
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if 0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}:  # these codes are tables
            frame = kind
        at += 2 + length
        if kind == _SCAN:
            return at if frame in _SEQUENTIAL else -1
    return -1
