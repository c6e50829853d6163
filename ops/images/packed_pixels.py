"""Columns of packed pixels from arrays and as arrays, without a copy of large pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
#: Rows of at least so many bytes become chunks of their own, which share the memory of their array.
_LARGE = 2**20


def column(rows: Sequence[Bytes | None]) -> pa.ChunkedArray:
    """The column of large binaries that `views` reads; None makes a null."""
    chunks: list[pa.Array] = []
    small: list[bytes | None] = []
    for row in rows:
        if row is None or len(row) < _LARGE:
            small.append(None if row is None else row.tobytes())
            continue
        chunks.append(pa.array(small, pa.large_binary()))
        small = []
        offsets = pa.py_buffer(np.array([0, len(row)], np.int64))
        chunks.append(
            pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), 1, [None, offsets, pa.py_buffer(row)]
            )
        )
    chunks.append(pa.array(small, pa.large_binary()))
    return pa.chunked_array([c for c in chunks if len(c)], pa.large_binary())


def views(column: pa.ChunkedArray) -> list[Bytes]:
    """The bytes (n,) of each row of a column of binaries, read-only; none where it is null."""
    column = column.cast(pa.large_binary())  # for 64-bit offsets; the bytes are not copied
    return [view for chunk in column.chunks for view in _chunk_views(chunk)]


def _chunk_views(chunk: pa.LargeBinaryArray) -> list[Bytes]:
    _, offsets, data = chunk.buffers()
    count = len(chunk)
    ends = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + count + 1].tolist()
    values: Any = np.frombuffer(data or b"", np.uint8)
    values.flags.writeable = False
    return [values[ends[row] : ends[row + 1]] for row in range(count)]
