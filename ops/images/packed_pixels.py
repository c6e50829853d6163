"""Columns of packed pixels as arrays, without a copy: a row is a view of Arrow's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bytes = npt.NDArray[np.uint8]


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
