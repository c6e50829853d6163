"""Images that take down every process that reads them, found so that a fit can leave them out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import ray

from ops.images.read_images import Read
from ops.progress import ProgressCallback
from pipelines.cluster.isolate import process_isolated
from pipelines.cluster.resources import Resources
from pipelines.scoring.stream import batches


def find_crashing_images(
    read: Read, rows: pa.Table, resources: Resources, watch: ProgressCallback
) -> dict[str, str]:
    """URI and reason of each such image among rows of an inventory; usually there is none.

    All are read once more, in blocks; of blocks that are lost each image is tried by itself.
    """
    alone = ReadAlone(read, replace(resources, cpus=resources.reader_cpus, gpus=0.0))
    blocks = [rows.slice(start, resources.batch) for start in range(0, len(rows), resources.batch)]
    stream = ray.data.from_blocks(blocks).map_batches(
        alone.survivors,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.reader_cpus,
        max_retries=0,
    )
    stream.context.max_errored_blocks = -1
    alive: set[str] = set()
    for found in batches(stream):
        alive.update(found["uri"].to_pylist())
        watch("quarantine", len(alive), len(rows), 0)
    suspects = rows.filter(pc.invert(pc.is_in(rows["uri"], pa.array(sorted(alive), pa.string()))))
    dead: dict[str, str] = {}
    for start in range(0, len(suspects), resources.batch):
        for found in process_isolated(alone, suspects.slice(start, resources.batch)):
            crashed = found.filter(pc.equal(found["status"], "crashed_worker"))
            reasons = crashed["reason"].to_pylist()
            dead |= dict(zip(crashed["uri"].to_pylist(), reasons, strict=True))
            watch("quarantine", len(rows) - len(suspects) + start, len(rows), len(dead))
    return dead


@dataclass(frozen=True)
class ReadAlone:
    """Reading, to see who survives it."""

    read: Read
    resources: Resources

    def alone(self, rows: pa.Table) -> pa.Table:
        """Read rows; status and reason of each, without pixels."""
        return self.read(rows).drop_columns(["pixels"])

    def survivors(self, rows: pa.Table) -> pa.Table:
        """Read rows; their addresses."""
        return self.read(rows).select(["uri"])
