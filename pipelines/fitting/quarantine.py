"""Images that crash every process that reads them, found so that a fit can leave them out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from ops.images.read_images import Read
from ops.progress import ProgressCallback
from pipelines.cluster.isolate import process_rows
from pipelines.cluster.resources import Resources
from pipelines.fitting.coordinator import failures_of


def find_crashing_images(
    read: Read, rows: pa.Table, resources: Resources, progress: ProgressCallback
) -> dict[str, str]:
    """Id of each such image among rows of an inventory -> its address and the reason.

    All images are read again. Raises Stalled.
    """
    steps = TrialRead(read, replace(resources, cpus=resources.reader_cpus, gpus=0.0))
    done, crashing = 0, dict[str, str]()
    for result in process_rows(steps, rows):
        crashed = result.filter(pc.equal(result["status"], "crashed_worker"))
        crashing |= failures_of(crashed)
        done += len(result)
        progress("quarantine", done, len(rows), len(crashing))
    return crashing


@dataclass(frozen=True)
class TrialRead:
    """Reads images, and keeps only what came of it."""

    read: Read
    resources: Resources

    def apply(self, blocks: Dataset) -> Dataset:
        """Read the images of the blocks; a block with an image that crashes fails at once."""
        return blocks.map_batches(
            self.run_locally,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self.resources.reader_cpus,
            max_retries=0,
            **self.resources.reader_options(),
        )

    def load(self, block: pa.Table) -> pa.Table:
        """The rows of a block."""
        return block

    def run_locally(self, rows: pa.Table) -> pa.Table:
        """Id, address, status and reason of each image."""
        pieces = self.read.pieces(rows) if self.read.input.tiled else [self.read(rows)]
        return pa.concat_tables(
            piece.select(["image_id", "uri", "status", "reason"]) for piece in pieces
        )
