"""Taking an inventory: listing streams in, a sorted Parquet file comes out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa

from ops.errors import UserError
from ops.images.inventory import LISTED, SCHEMA, Tally, listed
from ops.images.layouts import PathParser, split_named
from ops.progress import ProgressCallback
from ops.storage import parquet
from pipelines.tables.database import opened

#: Masks join their images by key; sorting and joining spill to disk where memory ends.
_SORTED = """
    WITH images AS (
             SELECT * FROM read_parquet($listed)
             WHERE NOT is_mask AND ($split IS NULL OR split = $split OR problem IS NOT NULL)
             -- Archives may overlap; an image is listed once.
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
    ORDER BY product NULLS LAST, uri, position
"""


class EmptyArchive(UserError):
    """Nothing to list."""


def take(
    locations: Sequence[str],
    out: str,
    path_parser: PathParser,
    suffixes: Sequence[str],
    watch: ProgressCallback,
    split: str | None = None,
    memory: str = "2GB",
) -> Tally:
    """List archives into an inventory at `out`, sorted by product, then URI.

    With `split` only the images of that split are kept.
    Raises EmptyArchive if no image was found, and the store's error if a place cannot be listed.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        path = os.path.join(folder, "listed.parquet")
        parquet.write(
            path, LISTED, _watched(listed(locations, path_parser, suffixes, tally), tally, watch)
        )
        if not tally.images:
            raise EmptyArchive(_nothing(locations, suffixes, tally))
        with opened(memory) as database:
            asked = {
                "listed": path,
                "split": split_named(split) if split else None,
                # Without any mask nothing is known to be good.
                "label_by_mask": path_parser.layout.label_by_mask and tally.masks > 0,
            }
            found = database.sql(_SORTED, params=asked).to_arrow_reader(2**16)
            parquet.write(out, SCHEMA, found, rows=4096)  # workers read slices
    return tally


def _watched(
    batches: Iterator[pa.RecordBatch], tally: Tally, watch: ProgressCallback
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        watch("list", tally.images, 0, tally.problems)
        yield batch


def _nothing(locations: Sequence[str], suffixes: Sequence[str], tally: Tally) -> str:
    places = ", ".join(locations)
    if tally.problems:
        return f"no image in {places}: {tally.problems} archives are damaged from their start"
    if tally.other_files:
        seen = ", ".join(sorted(tally.other_suffixes))
        return (
            f"no image in {places}: {tally.other_files} files end in {seen}, none in "
            f"{' '.join(suffixes)}; --suffixes names others"
        )
    return f"no image in {places}: it is empty. Check the bucket and prefix for a typing error"
