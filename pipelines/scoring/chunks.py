"""The chunks of a run: rows arrive in any order; chunks are written whole, checked, published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.inventory import Inventory
from ops.errors import RunError
from ops.failure import TRANSIENT
from ops.results import region_table, score_table
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.scoring.read_stage import INVENTORY_ROW

#: Where fields of paths stand in the score table. They are the inventory's, so neither stages nor
#: chunks carry them.
_FIELDS = score_table.SCHEMA.get_field_index("fields")
#: Rows of chunks: the columns of the score table without fields, the regions of the image's map
#: (null if none were looked for), and how many were left out.
CHUNK = pa.schema(
    [
        *score_table.SCHEMA.remove(_FIELDS),
        pa.field("regions", region_table.LIST),
        pa.field("regions_hidden", pa.int64()),
    ]
)
#: Rows that are collected: their number in the inventory, the columns of chunks, and why the map of
#: a row is missing.
ROWS = pa.schema([pa.field(INVENTORY_ROW, pa.int64()), *CHUNK, pa.field("map_error", pa.string())])
_CHUNK_FILE = re.compile(r"part-(\d+)\.parquet")
#: Rows of an unfinished chunk.
_PARTIAL_FILE = re.compile(r"kept-\d+\.parquet")
#: Failures that the next attempt tries again.
_TRANSIENT = pa.array(TRANSIENT)


class InvalidRun(RunError):
    """A run's rows do not match its inventory or the schema."""


@dataclass
class Chunks:
    """The chunks of one run: chunk `n` holds rows [n * chunk_rows, (n + 1) * chunk_rows)."""

    out: Out
    run_id: str
    inventory: Inventory
    chunk_rows: int
    statuses: dict[str, int] = field(default_factory=dict)
    anomalous: int = 0
    regions: int = 0
    regions_hidden: int = 0
    """Regions that are too small, or too many of one image."""
    done: int = 0
    without_map: int = 0
    """Rows so far whose map should exist and could not be written."""
    map_error: str = ""
    """Why the first of these was not written."""

    def __post_init__(self) -> None:
        """Load what an earlier attempt left: finished chunks, and rows of unfinished ones."""
        self._open: dict[int, list[pa.Table]] = {}
        self._finished = np.zeros(-(-len(self.inventory) // self.chunk_rows), dtype=bool)
        work = self.out.work(self.run_id)
        names = files.names(work)
        for name in names:
            if match := _CHUNK_FILE.fullmatch(name):
                self._load_chunk(int(match[1]), files.join(work, name))
        for name in names:
            if _PARTIAL_FILE.fullmatch(name):
                rows = parquet.read(files.join(work, name))
                rows = rows.filter(pc.invert(pc.is_in(rows["status"], _TRANSIENT)))
                rows = rows.filter(pc.is_null(rows["map_error"]))  # their maps are drawn now
                self.add(rows.filter(pa.array(~self._finished[self._chunks_of(rows)])))

    def _load_chunk(self, number: int, location: str) -> None:
        """Count a finished chunk, or open it again without its transient failures."""
        rows = parquet.read(location)
        transient = pc.is_in(rows["status"], _TRANSIENT)
        if not pc.any(transient).as_py():
            self._finished[number] = True
            self._count(rows)
            return
        rows = rows.append_column(INVENTORY_ROW, pa.array(range(*self._span(number)), pa.int64()))
        rows = rows.append_column("map_error", pa.nulls(len(rows), pa.string()))
        self.add(rows.filter(pc.invert(transient)))

    @property
    def failed(self) -> int:
        """Rows so far that have no score."""
        return self.done - self.statuses.get("ok", 0)

    def _count(self, rows: pa.Table) -> None:
        self.done += len(rows)
        if "map_error" in rows.schema.names:
            errors = rows["map_error"].drop_null()
            self.without_map += len(errors)
            self.map_error = self.map_error or (errors[0].as_py() if len(errors) else "")
        self.anomalous += pc.sum(rows["is_anomalous"]).as_py() or 0
        self.regions += pc.sum(pc.list_value_length(rows["regions"])).as_py() or 0
        self.regions_hidden += pc.sum(rows["regions_hidden"]).as_py() or 0
        for entry in pc.value_counts(rows["status"]).to_pylist():
            status = entry["values"]
            self.statuses[status] = self.statuses.get(status, 0) + entry["counts"]

    def _span(self, number: int) -> tuple[int, int]:
        """The inventory rows [start, stop) of a chunk."""
        start = number * self.chunk_rows
        return start, min(start + self.chunk_rows, len(self.inventory))

    def _chunks_of(self, rows: pa.Table) -> np.ndarray:
        """The number of each row's chunk."""
        return np.asarray(rows[INVENTORY_ROW].to_numpy() // self.chunk_rows)

    def missing(self) -> Iterator[tuple[int, int]]:
        """Spans [start, stop) of inventory rows that have no score row yet."""
        for number in np.flatnonzero(~self._finished):
            start, stop = self._span(int(number))
            has_row = np.zeros(stop - start + 2, dtype=bool)
            has_row[[0, -1]] = True
            for rows in self._open.get(int(number), []):
                has_row[rows[INVENTORY_ROW].to_numpy() - start + 1] = True
            edges = np.flatnonzero(np.diff(has_row.astype(np.int8)))
            for begin, end in edges.reshape(-1, 2).tolist():
                yield start + begin, start + end

    def add(self, rows: pa.Table) -> None:
        """Collect rows of `ROWS`, and write the chunks that they complete, with all maps.

        Inventory rows that have a score row already are ignored: a stage that is retried may
        return a block twice, with the same rows.
        """
        if not len(rows):
            return
        rows = rows.select(ROWS.names).cast(ROWS)
        numbers = self._chunks_of(rows)
        for number in np.unique(numbers).tolist():
            if not self._finished[number]:
                self._add_to(number, rows.filter(pa.array(numbers == number)))

    def _add_to(self, number: int, rows: pa.Table) -> None:
        collected = self._open.setdefault(number, [])
        done = [row for table in collected for row in table[INVENTORY_ROW].to_pylist()]
        is_done = pc.is_in(rows[INVENTORY_ROW], pa.array(done, pa.int64()))
        rows = rows.filter(pc.invert(is_done))
        if not len(rows):
            return
        collected.append(rows)
        self._count(rows)
        start, stop = self._span(number)
        if sum(map(len, collected)) == stop - start:
            whole = pa.concat_tables(collected).sort_by(INVENTORY_ROW)
            if whole["map_error"].null_count == len(whole):
                self._write(number, whole)

    def _write(self, number: int, rows: pa.Table) -> None:
        parquet.write(self.out.chunk(self.run_id, number), CHUNK, [rows])
        self._finished[number] = True
        del self._open[number]

    def save_partial(self) -> None:
        """Save the rows of unfinished chunks for the next attempt."""
        for number, collected in self._open.items():
            location = files.join(self.out.work(self.run_id), f"kept-{number:05d}.parquet")
            parquet.write(location, ROWS, collected)

    def tables(self) -> Iterator[pa.Table]:
        """All chunks in order, with `CHUNK` and fields, each checked against inventory and schema.

        Raises InvalidRun if a row is missing, belongs to another image, occurs twice, or breaks the
        schema.
        """
        for number in range(len(self._finished)):
            start, stop = self._span(number)
            rows = parquet.read(self.out.chunk(self.run_id, number))
            listed = self.inventory.rows(start, stop, ["image_id", "fields"])
            expected = listed["image_id"].combine_chunks()
            if not rows["image_id"].combine_chunks().equals(expected):
                raise InvalidRun(
                    f"chunk {number} of {self.run_id} does not hold the inventory's rows"
                )
            if rows.schema.names != CHUNK.names:
                raise InvalidRun(f"chunk {number} of {self.run_id} has no regions")
            rows = rows.add_column(_FIELDS, score_table.SCHEMA.field(_FIELDS), listed["fields"])
            if broken := score_table.violations(rows.select(score_table.SCHEMA.names)):
                raise InvalidRun(f"chunk {number} of {self.run_id}: {'; '.join(broken)}")
            yield rows
