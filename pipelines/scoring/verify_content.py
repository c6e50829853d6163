"""Reads a sample of unchanged images again, and finds those whose bytes are not the scored ones.

A version tells files apart without reading them (`ops.storage.versions`). What it cannot tell,
such as damage of a disk, shows in a sample of the bytes, night for night another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from ops.archives.fetch import FetchSettings
from ops.archives.hash_images import HashImages
from ops.archives.inventory import READING_ORDER
from ops.progress import ProgressCallback
from ops.storage.paths import Out
from pipelines.cluster.isolate import process_missing
from pipelines.cluster.reservation import reserved_readers
from pipelines.cluster.resources import Resources
from pipelines.cluster.timeouts import TimedStep, step_timeout
from pipelines.scoring.read_stage import CARRIED
from pipelines.tables import current_scores

#: Addresses that a warning names.
_NAMED = 10
_NUMBER = "number"
#: Statuses of reads that say something about the bytes; damage in an archive shows without a hash.
_READ = pa.array(["ok", "unreadable", "unsupported"])
#: The share of addresses whose hash with the night is lowest, and images that are asked for.
_SAMPLED = f"""
    CREATE TEMP TABLE sampled AS
    SELECT {", ".join(CARRIED)} FROM read_parquet($listed) WHERE problem IS NULL AND (
        md5_number_lower(uri || '/' || $night) / 18446744073709551616.0 < $share
        OR image_id IN (SELECT unnest($again)))
"""  # noqa: S608 - only names from this file
_SCORED = f"""
    WITH keys AS (
        SELECT sampled.*, known.run_id FROM current_keys($model) AS known JOIN sampled
            ON sampled.image_id = known.image_id
            AND nfc_normalize(sampled.product) IS NOT DISTINCT FROM known.product
    )
    SELECT keys.* EXCLUDE (run_id), scores.content_sha256 AS scored_sha256
    FROM scores_of($model) AS scores JOIN keys
        ON scores.image_id = keys.image_id AND scores.run_id = keys.run_id
    WHERE scores.content_sha256 IS NOT NULL
    ORDER BY {READING_ORDER.replace("uri", "keys.uri")}
"""  # noqa: S608 - only names from this file


class Verified(NamedTuple):
    """What came of reading a sample of unchanged images."""

    read: int
    unread: int
    """Images of the sample that could not be read tonight."""
    differing: list[dict[str, str]]
    """`image_id` and `uri` of the images whose bytes are not the scored ones."""

    @property
    def warning(self) -> str:
        """A sentence that names the first addresses that differ; empty if none does."""
        if not self.differing:
            return ""
        names = ", ".join(each["uri"] for each in self.differing[:_NAMED])
        more = len(self.differing) - _NAMED
        return (
            f"{len(self.differing)} of {self.read} unchanged images that --verify-content read do "
            "not have the bytes that were scored, though their versions are the same; they are "
            f"scored again: {names}" + (f" and {more} more" if more > 0 else "")
        )


def sample(
    out: Out, listed: str, model_id: str, night: str, share: float, again: Sequence[str] = ()
) -> pa.Table:
    """A sample of the images of the inventory `listed` whose current row has a hash.

    Which ones depends on the address and the night, a date, alone. `again` are image ids that are
    part of every sample. The columns are those of `CARRIED`, and `scored_sha256`.
    """
    parameters = {"listed": listed, "night": night, "share": share, "again": list(again)}
    with current_scores.opened(out, "2GB", listed) as database:
        database.execute(_SAMPLED, parameters)
        rows = database.sql(_SCORED, params={"model": model_id}).to_arrow_table()
    return rows.append_column(_NUMBER, pa.array(range(len(rows)), pa.int64()))


def verify(
    rows: pa.Table, fetch: FetchSettings, resources: Resources, progress: ProgressCallback
) -> Verified:
    """Read the images that `sample` chose on the cluster, and compare hashes.

    Raises Stalled, and NoRoom.
    """
    missing = set(range(len(rows)))

    def missing_blocks() -> list[pa.Table]:
        rest = rows.take(pa.array(sorted(missing), pa.int64()))
        return [
            rest.slice(at, resources.images_per_batch)
            for at in range(0, len(rest), resources.images_per_batch)
        ]

    def results(steps: HashStep) -> Iterator[pa.Table]:
        for result in process_missing(steps, missing_blocks):
            missing.difference_update(result[_NUMBER].to_pylist())
            yield result

    with reserved_readers(resources) as held:
        return compare(results(HashStep(HashImages(fetch), held)), len(rows), progress)


def compare(results: Iterator[pa.Table], total: int, progress: ProgressCallback) -> Verified:
    """Compare hashes of rows that `HashImages` made with their column `scored_sha256`."""
    read, done, differing = 0, 0, list[dict[str, Any]]()
    for result in results:
        was_read = pc.is_in(result["status"], _READ)
        differs = pc.not_equal(result["content_sha256"].fill_null(""), result["scored_sha256"])
        differs = pc.and_(was_read, differs)
        differing += result.filter(differs).select(["image_id", "uri"]).to_pylist()
        read += pc.sum(was_read).as_py() or 0
        done += len(result)
        progress("verify", done, total, len(differing))
    return Verified(read, done - read, sorted(differing, key=lambda each: each["uri"]))


@dataclass(frozen=True)
class HashStep:
    """Reads and hashes images on a cluster, and keeps only what came of it."""

    hash_images: HashImages
    resources: Resources

    def apply(self, blocks: Dataset) -> Dataset:
        """Hash the images of the blocks."""
        stall_timeout = self.resources.stall_timeout
        stream = blocks.map_batches(
            TimedStep(self.run_locally, step_timeout(stall_timeout)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self.resources.reader_cpus,
            max_retries=2,
            **self.resources.reader_options(),
        )
        self.resources.limit(stream.context)
        stream.context.execution_no_progress_timeout_s = stall_timeout or -1
        return stream

    def load(self, block: pa.Table) -> pa.Table:
        """The rows of a block."""
        return block

    def run_locally(self, rows: pa.Table) -> pa.Table:
        """Number, address, both hashes, status and reason of each image."""
        columns = [_NUMBER, "image_id", "uri", "scored_sha256", "status", "reason"]
        return self.hash_images(rows).select([*columns, "content_sha256"])
