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
#: What DuckDB makes of Ctrl-C while a statement runs, in place of KeyboardInterrupt.
_INTERRUPTED = "Query interrupted"


class QueryFailed(UserError):
    """A query met a table that cannot be read, or a disk that cannot be written to."""


@contextlib.contextmanager
def opened(memory: str = MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database, which fetches no extensions.

    Raises UserError if memory is exhausted, QueryFailed if a table or the temporary disk fails.
    """
    with (
        tempfile.TemporaryDirectory(prefix="nightloupe-") as folder,
        duckdb.connect(
            os.path.join(folder, "rows.duckdb"),
            config={
                "memory_limit": memory,
                "temp_directory": folder,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        ) as database,
    ):
        database.execute("SET enable_progress_bar = false")
        try:
            yield database
        except RuntimeError as error:
            if str(error) != _INTERRUPTED:
                raise
            raise KeyboardInterrupt from None
        except duckdb.OutOfMemoryException as error:
            raise UserError(
                f"a query needs more memory than its limit of {memory}: {error}"
            ) from error
        except duckdb.Error as error:
            if not _is_of_files(error):
                raise
            raise QueryFailed(
                f"a query cannot read a table or cannot write to {folder}, which TMPDIR "
                f"sets: {error}"
            ) from error


def _is_of_files(error: duckdb.Error) -> bool:
    """Whether DuckDB could not read or write a file; a damaged page is an error of no class."""
    files = (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)
    return isinstance(error, files) or type(error) is duckdb.Error


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
