"""Which places of which good pictures the vectors of a model's banks are from.

The table lies in the model folder. No score depends on it, nor does the id of the model.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from ops.errors import UserError
from ops.storage.parquet import column

SCHEMA = pa.schema(
    [
        column("file", pa.string(), "file of the bank in the model folder", nullable=False),
        column("vector", pa.int32(), "number of the vector in its bank, from 0", nullable=False),
        column("image_id", pa.string(), "id of the good picture", nullable=False),
        column("uri", pa.string(), "address of the picture", nullable=False),
        column("bytes", pa.int64(), "size of the picture's file, as it was listed"),
        column("member", pa.int64(), "place in its archive; null for files of their own"),
        column("product", pa.string(), "product, or product/view with separate views"),
        column("content_sha256", pa.string(), "hash of the bytes that were read", nullable=False),
        column("width", pa.int32(), "of the picture, in pixels", nullable=False),
        column("height", pa.int32(), "of the picture, in pixels", nullable=False),
        column("left", pa.int32(), "first column of the patch's cell", nullable=False),
        column("top", pa.int32(), "first row of the patch's cell", nullable=False),
        column("right", pa.int32(), "first column after the cell", nullable=False),
        column("bottom", pa.int32(), "first row after the cell", nullable=False),
        column("tile", pa.int32(), "number of the tile; null without tiles"),
        column("position", pa.int32(), "of the patch in the grid, row by row", nullable=False),
    ]
)


def to_bytes(rows: pa.Table) -> bytes:
    """Rows of `SCHEMA` as the file of a model folder, sorted by file and vector."""
    sink = pa.BufferOutputStream()
    ordered = rows.select(SCHEMA.names).cast(SCHEMA)
    order = [("file", "ascending"), ("vector", "ascending")]
    pq.write_table(ordered.sort_by(order), sink, compression="zstd")
    return bytes(sink.getvalue())


def from_bytes(data: bytes, model_id: str) -> pa.Table:
    """The rows; none of a model that has no such file. Raises UserError if it is damaged."""
    if not data:
        return SCHEMA.empty_table()
    try:
        return pq.read_table(pa.BufferReader(data)).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise UserError(
            f"the origins of the bank of model {model_id} cannot be read ({error}); restore its "
            "folder from a backup, or fit the model again"
        ) from error
