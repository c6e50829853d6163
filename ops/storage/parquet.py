"""Parquet tables: written whole or not at all, with the metadata of their schema."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from ops.errors import UserError
from ops.storage import files
from ops.storage.storage_errors import StorageError

#: Texts by name. Of equal ones the order of the names must be equal too.
TEXTS = pa.map_(pa.string(), pa.string())


@contextlib.contextmanager
def opened(location: str) -> Iterator[pq.ParquetFile]:
    """Open a table, to read parts of it. Raises UserError if the file is not Parquet."""
    with files.open_read(location) as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise UserError(f"{location} is not a readable Parquet file: {error}") from error
        with table:
            yield table


def column(name: str, kind: pa.DataType, meaning: str, nullable: bool = True) -> pa.Field:
    """A column with its meaning in its metadata."""
    return pa.field(name, kind, nullable, metadata={"meaning": meaning})


def write(
    location: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch | pa.Table],
    rows: int = 2**16,
    metadata: Callable[[int], Mapping[str, str]] = lambda _: {},
) -> int:
    """Write batches of any size as row groups of at most `rows`; returns the number of rows.

    `metadata` is called with that number, and what it returns joins the metadata of the schema.
    The file appears at `location` when it is complete.
    """
    written = 0
    pending: list[pa.Table] = []
    with (
        files.staged(location) as path,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        for batch in batches:
            table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
            pending.append(table.select(schema.names).cast(schema))
            written += len(batch)
            if sum(map(len, pending)) >= rows:
                writer.write_table(pa.concat_tables(pending), row_group_size=rows)
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending), row_group_size=rows)
        if more := metadata(written):
            writer.add_key_value_metadata(dict(more))
    return written


def read(location: str, columns: list[str] | None = None) -> pa.Table:
    """A whole table. Raises UserError if the file is not Parquet."""
    with opened(location) as table:
        return table.read(columns=columns)


def row_groups_with(table: pq.ParquetFile, name: str, values: Iterable[str]) -> list[int]:
    """The row groups whose statistics do not rule out that a column of texts has a value."""
    ordered, chosen = sorted(values), []
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        columns = map(group.column, range(group.num_columns))
        known = next((each.statistics for each in columns if each.path_in_schema == name), None)
        if known is None or not known.has_min_max:
            chosen.append(number)
        elif (at := bisect.bisect_left(ordered, known.min)) < len(ordered):
            chosen += [number] if ordered[at] <= known.max else []
    return chosen


def check_readable(location: str, columns: Collection[str] = ()) -> None:
    """Read a table batch by batch.

    Raises UserError that names it if it is damaged, or lacks one of the `columns`.
    """
    try:
        with opened(location) as table:
            if missing := sorted(set(columns) - set(table.schema_arrow.names)):
                raise UserError(f"it has no column {missing[0]}")
            for _ in table.iter_batches(2**16):
                pass
    except StorageError:
        raise
    except (pa.ArrowException, OSError, UserError) as error:
        raise UserError(
            f"{location} is damaged ({error}); restore it from a backup, or move it away: its "
            "images are then scored again"
        ) from error
