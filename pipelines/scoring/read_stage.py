"""The first stage: inventory rows, or slices of an inventory, to pixels.

Nothing here imports torch: many processes read, and few of them compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray.data import Dataset

from ops.images.inventory import Inventory
from ops.images.read_images import Read
from pipelines.cluster.timeouts import limited

#: What travels from the inventory through the chain.
CARRIED = ("image_id", "uri", "bytes", "position", "product", "problem")
#: Its place in the inventory, which travels along.
OFFSET = "offset"


def carried(inventory: Inventory, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of an inventory as the chain takes them."""
    rows = inventory.rows(start, stop, CARRIED)
    return rows.append_column(OFFSET, pa.array(range(start, stop), pa.int64()))


@dataclass(frozen=True)
class TakeSlices:
    """Reads slices of the inventory on the workers, so that the driver never holds it."""

    inventory: Inventory

    def __call__(self, spans: pa.Table) -> pa.Table:
        """The rows of the slices [start, stop)."""
        found = [carried(self.inventory, row["start"], row["stop"]) for row in spans.to_pylist()]
        return pa.concat_tables(found)


@dataclass(frozen=True)
class Reading:
    """Reads rows, or the slices that `take` takes, some at a time, each within `limit` seconds."""

    read: Read
    batch: int
    take: TakeSlices | None = None
    limit: float = 0.0

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Rows with pixels, or with a status and a reason."""
        with limited(self.limit):
            rows = self.take(block) if self.take else block
        for start in range(0, len(rows), self.batch):
            with limited(self.limit):
                read = self.read(rows.slice(start, self.batch))
            yield read


def slices(
    inventory: Inventory, spans: list[tuple[int, int]], rows: int
) -> tuple[Dataset, TakeSlices] | None:
    """Slices of the inventory's rows in `spans`, one block each; None if there are none.

    Slices hold `rows` rows, more where that would make over 20,000 of them.
    """
    total = sum(stop - start for start, stop in spans)
    rows = max(rows, -(-total // 20_000))
    blocks = [
        pa.table({"start": [begin], "stop": [min(begin + rows, stop)]})
        for start, stop in spans
        for begin in range(start, stop, rows)
    ]
    # Blocks at hand, not a range to read nor tables to look at: tasks for these would wait for a
    # whole CPU, for ever if others have left less.
    return (ray.data.from_blocks(blocks), TakeSlices(inventory)) if blocks else None
