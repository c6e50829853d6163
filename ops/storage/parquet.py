"""The one table writer: Parquet, whole or not at all, with its schema's metadata."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from ops.storage import files


def column(name: str, kind: pa.DataType, meaning: str, nullable: bool = True) -> pa.Field:
    """A column that says what it means, for readers years from now."""
    return pa.field(name, kind, nullable, metadata={"meaning": meaning})


def write(
    location: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch | pa.Table],
    rows: int = 2**16,
) -> int:
    """Write batches as row groups of at most `rows`; returns how many rows were written.

    Batches may come in any size. Nothing appears at `location` before all of it is there.
    """
    written = 0
    waiting: list[pa.Table] = []
    with (
        files.staged(location) as path,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        for batch in batches:
            table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
            waiting.append(table.select(schema.names).cast(schema))
            written += len(batch)
            if sum(map(len, waiting)) >= rows:
                writer.write_table(pa.concat_tables(waiting), row_group_size=rows)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=rows)
    return written


def read(location: str, columns: list[str] | None = None) -> pa.Table:
    """A whole table."""
    with files.open_read(location) as file:
        return pq.read_table(file, columns=columns)
