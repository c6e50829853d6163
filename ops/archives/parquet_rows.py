"""Rows of Parquet files that hold images: their listing, and their bytes."""

from __future__ import annotations

import bisect
import io
import itertools
import threading
from collections import deque
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from ops.archives import expansion, parquet_columns
from ops.archives.entry import Entry
from ops.archives.parquet_columns import Columns, Field
from ops.archives.tally import Tally
from ops.errors import UserError
from ops.failure import Failure
from ops.storage import files, uris
from ops.storage.versions import Stored

#: Read at a time, and kept at least, per reader. A page is unpacked as a whole whatever its size.
_BATCH_BYTES, _KEPT_BYTES = 2**24, 2**27
#: Rows in a batch at most: values of a dictionary are small in the file and large in memory.
_BATCH_ROWS = 64
_NAME_ROWS = 10_000
#: Why tables of this project give no rows.
OWN_TABLES = "inventories and tables of results"


def open_table(file: IO[bytes]) -> pq.ParquetFile:
    """Open a file, to stream its pages: with the default, Arrow reads whole column chunks."""
    return pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)


def rows(
    location: str,
    item: Stored,
    tally: Tally,
    column: str = "",
    ratio: float = expansion.RATIO,
) -> Iterator[Entry]:
    """Stream the rows of a file whose images lie in `column`, or in the column that is chosen.

    The URI names the column where others hold bytes too, so that whoever reads it takes the same.
    Raises UserError if no column holds images, Expands if its pages are too large for the file.
    """
    with files.open_read(location) as file, open_table(file) as table:
        if b"nightloupe" in (table.schema_arrow.metadata or {}):
            tally.left_out[OWN_TABLES] += 1
            return
        _check_expansion(table, item.bytes, ratio)
        columns = parquet_columns.choose(table, column)
        chosen = ".".join(columns.images)
        tally.columns[chosen] += 1
        address = uris.with_column(uris.make(location), chosen if columns.others else None)
        for row, name in enumerate(_names(table, columns)):
            shown = name or f"{row:09d}"
            uri = uris.of_member(address, f"{row}/{shown}")
            yield Entry(shown, uri, None, f"{item.version}@{row}", row)


def _check_expansion(table: pq.ParquetFile, size: int, ratio: float) -> None:
    """Refuse a file that, by its metadata, unpacks to too much."""
    groups = map(table.metadata.row_group, range(table.num_row_groups))
    expansion.check(sum(group.total_byte_size for group in groups), size, ratio)


def _names(table: pq.ParquetFile, columns: Columns) -> Iterator[str | None]:
    """The name of each row; None where it has none."""
    if not columns.names:
        yield from itertools.repeat(None, table.metadata.num_rows)
        return
    wanted = [".".join(path) for path in columns.names]
    for batch in table.iter_batches(_NAME_ROWS, columns=wanted, use_threads=False):
        lists = [parquet_columns.values(batch, path).to_pylist() for path in columns.names]
        yield from (next(filter(None, names), None) for names in zip(*lists, strict=True))


class ParquetReader:
    """Reads rows of a file in any order; rows in the order of the file are read once each.

    It holds the batches that it read last, of `_KEPT_BYTES` or of two batches: threads ask for
    neighbouring rows in almost any order. `groups_read` counts how often a row group was begun.
    """

    def __init__(self, file: IO[bytes], column: str | None, ratio: float = expansion.RATIO) -> None:
        self.file = file
        self._table = open_table(file)
        try:
            _check_expansion(self._table, file.seek(0, io.SEEK_END), ratio)
        except expansion.Expands as error:
            raise Failure("too_large", f"its archive was not unpacked: {error}") from None
        self._path: Field = parquet_columns.choose(self._table, column or "").images
        self._lock = threading.Lock()
        metadata = self._table.metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(counts)]
        self._kept: deque[tuple[int, pa.Array]] = deque()
        self._next, self._end = 0, 0  # rows that `_batches` still gives
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self.groups_read = 0

    def read(self, name: str, member: int | None, limit: int) -> bytes:
        """The image of a row, by its number or, without one, its name.

        Raises KeyError if there is no such row, and a Failure if it holds no bytes.
        """
        row = int(name.partition("/")[0]) if member is None else member
        if not 0 <= row < self._starts[-1]:
            raise KeyError(name)
        with self._lock:
            value = self._value(row)
            if not value.is_valid:
                raise Failure("unreadable", "its row holds no bytes")
            return parquet_columns.to_bytes(value)[: limit + 1]

    def _value(self, row: int) -> pa.Scalar:
        for start, array in self._kept:
            if start <= row < start + len(array):
                return array[row - start]
        if not self._next <= row < self._end:
            self._begin(row)
        while True:
            start, array = self._read_batch()
            if row < start + len(array):
                return array[row - start]

    def _begin(self, row: int) -> None:
        """Start to read the row group that holds a row."""
        number = bisect.bisect_right(self._starts, row) - 1
        self._next, self._end = self._starts[number : number + 2]
        group = self._table.metadata.row_group(number)
        dotted = ".".join(self._path)
        chunks = [
            chunk
            for chunk in map(group.column, range(group.num_columns))
            if chunk.path_in_schema == dotted or chunk.path_in_schema.startswith(f"{dotted}.")
        ]
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        # With a dictionary every row may stand for its largest value.
        shared = any("DICTIONARY" in name for chunk in chunks for name in chunk.encodings)
        each = max(1, size if shared else size // group.num_rows)
        count = max(1, min(_BATCH_ROWS, _BATCH_BYTES // each))
        self._batches = parquet_columns.batches(self._table, self._path, count, [number])
        self.groups_read += 1

    def _read_batch(self) -> tuple[int, pa.Array]:
        batch = next(self._batches, None)
        if batch is None:
            raise UserError("its row group ends before the row that its metadata count")
        start, array = self._next, parquet_columns.values(batch, self._path)
        self._next += len(array)
        self._kept.append((start, array))
        while len(self._kept) > 2 and sum(kept.nbytes for _, kept in self._kept) > _KEPT_BYTES:
            self._kept.popleft()
        return start, array
