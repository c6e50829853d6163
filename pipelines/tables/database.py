"""A database for one question: what does not fit into memory spills to disk, and is then gone."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ops.storage import files

#: The most memory that a database takes.
MEMORY = "1GB"


@contextlib.contextmanager
def opened(memory: str = MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database on disk."""
    with (
        tempfile.TemporaryDirectory(prefix="nightloupe-") as folder,
        duckdb.connect(
            os.path.join(folder, "rows.duckdb"),
            config={"memory_limit": memory, "temp_directory": folder},
        ) as database,
    ):
        database.execute("SET enable_progress_bar = false")
        yield database


def load(
    database: duckdb.DuckDBPyConnection, name: str, location: str, columns: Sequence[str]
) -> None:
    """Make a table of some columns of a Parquet file, wherever it lies, in the file's order."""
    with files.open_read(location) as file, pq.ParquetFile(file) as table:
        schema = pa.schema([table.schema_arrow.field(column) for column in columns])
        batches = table.iter_batches(2**16, columns=list(columns))
        rows = pa.RecordBatchReader.from_batches(schema, batches)
        database.register("incoming", rows)
        database.table("incoming").create(name)
        database.unregister("incoming")
