"""Parts of a run: collected from a stream in any order, written whole, checked, published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.errors import RunError
from ops.images.failure import PASSING
from ops.images.inventory import Inventory
from ops.results import score_table
from ops.storage import files, parquet
from ops.storage.paths import Out

POSITION = "position"
#: Rows on their way into a part: where they stand in the inventory, then the score columns.
ROWS = pa.schema([pa.field(POSITION, pa.int64()), *score_table.SCHEMA])
_PART = re.compile(r"part-(\d+)\.parquet")
#: The next attempt reads these images again.
_PASSING = pa.array(PASSING)
_KEPT = re.compile(r"kept-\d+\.parquet")


class BrokenRun(RunError):
    """A finished run that does not hold what it promised."""


@dataclass
class Chunks:
    """The parts of one run. A part is a slice of the inventory; its number follows from that."""

    out: Out
    run_id: str
    inventory: Inventory
    chunk_rows: int
    statuses: dict[str, int] = field(default_factory=dict)
    anomalous: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        """Take up what an earlier attempt left: finished parts, and rows of unfinished ones."""
        self._open: dict[int, list[pa.Table]] = {}
        self._finished = np.zeros(-(-len(self.inventory) // self.chunk_rows), dtype=bool)
        work = self.out.work(self.run_id)
        names = files.names(work)
        for name in names:
            if match := _PART.fullmatch(name):
                self._take_up(int(match[1]), files.join(work, name))
        for name in names:
            if _KEPT.fullmatch(name):
                kept = parquet.read(files.join(work, name))
                kept = kept.filter(pc.invert(pc.is_in(kept["status"], _PASSING)))
                numbers = kept[POSITION].to_numpy() // self.chunk_rows
                self.add(kept.filter(pa.array(~self._finished[numbers])))

    def _take_up(self, number: int, location: str) -> None:
        """Count a finished part, or open it again if some of its failures may have passed."""
        rows = parquet.read(location)
        passing = pc.is_in(rows["status"], _PASSING)
        if not pc.any(passing).as_py():
            self._finished[number] = True
            self._count(rows)
            return
        start, stop = self._span(number)
        rows = rows.append_column(POSITION, pa.array(range(start, stop), pa.int64()))
        self.add(rows.filter(pc.invert(passing)))

    @property
    def failed(self) -> int:
        """Rows so far that have no score."""
        return self.done - self.statuses.get("ok", 0)

    def _count(self, rows: pa.Table) -> None:
        self.done += len(rows)
        self.anomalous += pc.sum(rows["is_anomalous"]).as_py() or 0
        for entry in pc.value_counts(rows["status"]).to_pylist():
            status = entry["values"]
            self.statuses[status] = self.statuses.get(status, 0) + entry["counts"]

    def _span(self, number: int) -> tuple[int, int]:
        start = number * self.chunk_rows
        return start, min(start + self.chunk_rows, len(self.inventory))

    def missing(self) -> Iterator[tuple[int, int]]:
        """Spans [start, stop) of inventory rows that have no score row yet."""
        for number in np.flatnonzero(~self._finished):
            start, stop = self._span(int(number))
            have = np.zeros(stop - start + 2, dtype=bool)
            have[[0, -1]] = True
            for rows in self._open.get(int(number), []):
                have[rows[POSITION].to_numpy() - start + 1] = True
            edges = np.flatnonzero(np.diff(have.astype(np.int8)))
            for begin, end in edges.reshape(-1, 2).tolist():
                yield start + begin, start + end

    def add(self, rows: pa.Table) -> None:
        """Take in rows of `ROWS`; write the parts that they complete. Rows seen before are ignored.

        A stage that is retried may hand out a block twice; every row of it is the same.
        """
        if not len(rows):
            return
        rows = rows.select(ROWS.names).cast(ROWS)
        numbers = rows[POSITION].to_numpy() // self.chunk_rows
        for number in np.unique(numbers).tolist():
            if self._finished[number]:
                continue
            held = self._open.setdefault(number, [])
            new = rows.filter(pa.array(numbers == number))
            seen = [position for table in held for position in table[POSITION].to_pylist()]
            new = new.filter(pc.invert(pc.is_in(new[POSITION], pa.array(seen, pa.int64()))))
            if not len(new):
                continue
            held.append(new)
            self._count(new)
            start, stop = self._span(number)
            if sum(map(len, held)) == stop - start:
                self._write(number, pa.concat_tables(held).sort_by(POSITION))

    def _write(self, number: int, rows: pa.Table) -> None:
        parquet.write(self.out.part(self.run_id, number), score_table.SCHEMA, [rows])
        self._finished[number] = True
        del self._open[number]

    def keep(self) -> None:
        """Save the rows of unfinished parts, for the next attempt."""
        for number, held in self._open.items():
            location = files.join(self.out.work(self.run_id), f"kept-{number:05d}.parquet")
            parquet.write(location, ROWS, held)

    def tables(self) -> Iterator[pa.Table]:
        """All parts in order, each checked against the inventory and the schema.

        Raises BrokenRun if a row is missing, foreign, doubled, or breaks the schema.
        """
        for number in range(len(self._finished)):
            start, stop = self._span(number)
            rows = parquet.read(self.out.part(self.run_id, number))
            expected = self.inventory.rows(start, stop, ["image_id"])["image_id"].combine_chunks()
            if not rows["image_id"].combine_chunks().equals(expected):
                raise BrokenRun(
                    f"part {number} of {self.run_id} does not hold the inventory's rows"
                )
            if broken := score_table.violations(rows):
                raise BrokenRun(f"part {number} of {self.run_id}: {'; '.join(broken)}")
            yield rows
