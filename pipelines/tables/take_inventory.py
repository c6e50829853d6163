"""List archives into an inventory: a Parquet file sorted by product and URI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa

from ops.errors import UserError
from ops.images.inventory import LISTED, SCHEMA, Inventory, Tally, listed
from ops.images.layouts import PathParser, split_named
from ops.progress import ProgressCallback
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables.database import opened

#: Joins masks to their images by key. Joins and sorts that exceed the memory limit spill to disk.
_SORTED = """
    WITH images AS (
             SELECT * FROM read_parquet($listed)
             WHERE NOT is_mask AND ($split IS NULL OR split = $split OR problem IS NOT NULL)
             -- Archives may overlap: list each image once.
             QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY uri) = 1
         ),
         masks AS (
             SELECT mask_key, min(uri) AS mask_uri FROM read_parquet($listed)
             WHERE is_mask GROUP BY mask_key
         )
    SELECT images.* EXCLUDE (label, mask_uri, is_mask, mask_key),
           CASE WHEN $label_by_mask AND images.mask_key IS NOT NULL AND problem IS NULL
                THEN (masks.mask_uri IS NOT NULL)::TINYINT ELSE images.label END AS label,
           CASE WHEN $label_by_mask OR images.label = 1 THEN masks.mask_uri END AS mask_uri
    FROM images LEFT JOIN masks ON images.mask_key = masks.mask_key
    ORDER BY product NULLS LAST, uri, member
"""


class EmptyArchive(UserError):
    """The archives hold no image."""


def take(
    locations: Sequence[str],
    out: str,
    path_parser: PathParser,
    suffixes: Sequence[str],
    progress: ProgressCallback,
    split: str | None = None,
    memory: str = "2GB",
) -> Tally:
    """List archives into an inventory at `out`, sorted by product, then URI.

    With `split` only the images of that split are kept. Raises EmptyArchive if there is no image,
    and a StorageError if an archive cannot be listed.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        path = os.path.join(folder, "listed.parquet")
        batches = listed(locations, path_parser, suffixes, tally)
        parquet.write(path, LISTED, _report_progress(batches, tally, progress))
        if not tally.images:
            raise EmptyArchive(_explain_empty(locations, suffixes, tally))
        with opened(memory) as database:
            parameters = {
                "listed": path,
                "split": split_named(split) if split else None,
                # Without any mask no label is known.
                "label_by_mask": path_parser.layout.label_by_mask and tally.masks > 0,
            }
            images = database.sql(_SORTED, params=parameters).to_arrow_reader(2**16)
            parquet.write(out, SCHEMA, images, rows=4096)  # workers read slices
    return tally


def keep(path: str, out: Out) -> Inventory:
    """Copy a local inventory into the output folder, named by the hash of its content."""
    location = out.inventory(Inventory(path).content_hash())
    if not files.exists(location):
        with files.staged(location) as staged:
            shutil.copyfile(path, staged)
    return Inventory(location)


def _report_progress(
    batches: Iterator[pa.RecordBatch], tally: Tally, progress: ProgressCallback
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        progress("list", tally.images, 0, tally.problems)
        yield batch


def _explain_empty(locations: Sequence[str], suffixes: Sequence[str], tally: Tally) -> str:
    places = ", ".join(locations)
    if tally.problems:
        return f"no image in {places}: {tally.problems} archives cannot be read from the start"
    if tally.other_files:
        endings = ", ".join(sorted(tally.other_suffixes))
        return (
            f"no image in {places}: {tally.other_files} files end in {endings}, none in "
            f"{' '.join(suffixes)}; set --suffixes to read other files"
        )
    return f"no image in {places}: it is empty. Check the bucket and prefix"
