"""A temporary DuckDB database, which spills to disk what exceeds its memory limit."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa

from ops.errors import UserError
from ops.storage import parquet

#: Default memory limit.
MEMORY = "1GB"


@contextlib.contextmanager
def opened(memory: str = MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database. Raises UserError if memory or the temporary disk is exhausted."""
    with (
        tempfile.TemporaryDirectory(prefix="nightloupe-") as folder,
        duckdb.connect(
            os.path.join(folder, "rows.duckdb"),
            config={"memory_limit": memory, "temp_directory": folder},
        ) as database,
    ):
        database.execute("SET enable_progress_bar = false")
        try:
            yield database
        except duckdb.OutOfMemoryException as error:
            raise UserError(
                f"a query needs more memory than its limit of {memory}: {error}"
            ) from error
        except duckdb.IOException as error:
            raise UserError(
                f"a query cannot read a table or cannot write to {folder}, which TMPDIR "
                f"sets: {error}"
            ) from error


def load(
    database: duckdb.DuckDBPyConnection, name: str, location: str, columns: Sequence[str]
) -> None:
    """Create a table of some columns of a Parquet file (a path or s3:// URI), in its order."""
    with parquet.opened(location) as table:
        schema = pa.schema([table.schema_arrow.field(column) for column in columns])
        batches = table.iter_batches(2**16, columns=list(columns))
        rows = pa.RecordBatchReader.from_batches(schema, batches)
        database.register("incoming", rows)
        database.table("incoming").create(name)
        database.unregister("incoming")
