"""The first stage: inventory rows, or spans of an inventory, to pixels.

This module does not import torch: a cluster runs many processes that read images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ops.archives.inventory import Inventory
from ops.images.read_images import Read
from pipelines.cluster.timeouts import time_limit

#: Columns of the inventory that the stages need.
CARRIED = (
    *("image_id", "uri", "bytes", "version", "member"),
    *("product", "part", "view", "problem"),
)
#: Rows of a block that comes out in two parts, and not batch by batch.
_LARGE = 64
#: Pixels that wait in a task until they are handed on.
_BYTES = 2**25
#: Column with the number of a row in the inventory; it passes through all stages.
INVENTORY_ROW = "inventory_row"


def read_rows(inventory: Inventory, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of an inventory, with the columns that the stages need."""
    rows = inventory.rows(start, stop, CARRIED)
    return rows.append_column(INVENTORY_ROW, pa.array(range(start, stop), pa.int64()))


def span_blocks(spans: Sequence[tuple[int, int]], rows: int) -> list[pa.Table]:
    """Blocks that name the spans [start, stop) of an inventory, cut to at most `rows` rows.

    Spans are longer where there would otherwise be over 20,000 blocks.
    """
    total = sum(stop - start for start, stop in spans)
    rows = max(rows, -(-total // 20_000))
    return [
        pa.table({"start": [begin], "stop": [min(begin + rows, stop)]})
        for start, stop in spans
        for begin in range(start, stop, rows)
    ]


@dataclass(frozen=True)
class LoadSpans:
    """Loads spans of the inventory on the workers, so that the driver never holds its rows."""

    inventory: Inventory

    def __call__(self, spans: pa.Table) -> pa.Table:
        """The rows of blocks made by `span_blocks`."""
        return pa.concat_tables(
            read_rows(self.inventory, span["start"], span["stop"]) for span in spans.to_pylist()
        )


@dataclass(frozen=True)
class ReadStage:
    """Reads the images of a block, `batch` at a time, each batch within `limit` seconds.

    `load` turns a block of spans into rows; without it a block holds the rows themselves. A large
    block comes out in two parts, as each costs the next stage a task. Whole pictures, which are
    tiled later, come out in pieces of bounded bytes, and the limit is that of a piece.
    """

    read: Read
    batch: int
    load: LoadSpans | None = None
    limit: float = 0.0

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Rows with pixels, or with a status and a reason."""
        with time_limit(self.limit):
            rows = self.load(block) if self.load else block
        if self.read.input.tiled:
            yield from self._pieces(rows)
            return
        done: list[pa.Table] = []
        together = len(rows) // 2 if len(rows) >= _LARGE else self.batch
        for start in range(0, len(rows), self.batch):
            with time_limit(self.limit):
                done.append(self.read(rows.slice(start, self.batch)))
            held, size = sum(map(len, done)), sum(table.nbytes for table in done)
            if held >= together or size > _BYTES:
                yield pa.concat_tables(done)
                done = []
        if done:
            yield pa.concat_tables(done)

    def _pieces(self, rows: pa.Table) -> Iterator[pa.Table]:
        pieces = self.read.pieces(rows)
        while True:
            with time_limit(self.limit):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece
