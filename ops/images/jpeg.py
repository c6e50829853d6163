"""JPEG files without their end mark, so that a decoder that runs out of data says so.

At the end mark libjpeg fills up with grey whatever is still missing, and Pillow does not hear of
its warning. Where bytes were lost on the way, or the head names another size, that is a part of
the picture.
"""

from __future__ import annotations

import struct

#: Frames of one scan that Huffman codes (ITU-T T.81, table B.1): baseline and extended sequential.
_SEQUENTIAL = {0xC0, 0xC1}
_SCAN, _END = 0xDA, b"\xff\xd9"
#: What encoders fill their last byte with, bits of 1, is no code: a decoder may look ahead into it,
#: and makes three blocks of it at most.
_AHEAD = b"\xff\x00" * 16


def endless(data: bytes) -> bytes | None:
    """The file up to its end mark, then what is no code; None if it has not just one such scan."""
    start = _only_scan(data)
    end = data.find(_END, start)  # within a scan, 0xFF is never followed by a mark
    if start < 0 or end < 0 or data.find(b"\xff\xda", start, end) >= 0:
        return None
    return data[:end] + _AHEAD


def _only_scan(data: bytes) -> int:
    """Where the first scan's data begin; -1 if its frame is of another kind."""
    at, frame = 2, 0
    while at + 4 <= len(data):
        mark, kind, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF or length < 2:
            return -1
        if kind == 0xFF:  # a filling byte
            at += 1
            continue
        if 0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}:  # tables among the frames
            frame = kind
        at += 2 + length
        if kind == _SCAN:
            return at if frame in _SEQUENTIAL else -1
    return -1
