"""List archives into an inventory: a sorted Parquet file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from ops.archives.entry import Search
from ops.archives.inventory import LISTED, ORDER, SCHEMA, TALLY, Inventory, listed
from ops.archives.layouts import OF_MODELS, PathParser, split_named
from ops.archives.tally import Tally
from ops.errors import UserError
from ops.progress import ProgressCallback
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.tables import listed_sql
from pipelines.tables.database import opened

#: The place of a member in its archive, see `Entry.member`.
_PLACE = "CASE WHEN member < 0 THEN -1 - member ELSE member END"
#: The address of a mask. Of several of one name, the last belongs to the last image of one name,
#: the one before it to the image before it: so they lie in a tar to which both were appended.
_MASK = f"""
    CASE WHEN len(members) > 1 THEN regexp_replace(masks.mask_uri, '#', '{uris.MEMBER}'
        || members[least(from_last, len(members))] || '#')
    ELSE masks.mask_uri END
"""
#: Joins masks to their images by key. Joins and sorts that exceed the memory limit spill to disk.
_SORTED = f"""
    WITH {{listed}},
         once AS (
             SELECT * FROM listed
             WHERE NOT is_mask AND ($split IS NULL OR split = $split OR problem IS NOT NULL)
             -- Archives may overlap: list each image once.
             QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY uri) = 1
         ),
         images AS (
             SELECT *, row_number() OVER (PARTITION BY uri ORDER BY {_PLACE} DESC) AS from_last
             FROM once
         ),
         listed_masks AS (
             SELECT DISTINCT mask_key, uri, member FROM listed WHERE is_mask
         ),
         masks AS (
             SELECT mask_key, uri AS mask_uri, list(member ORDER BY {_PLACE} DESC) AS members
             FROM listed_masks GROUP BY mask_key, uri
             QUALIFY row_number() OVER (PARTITION BY mask_key ORDER BY uri) = 1
         )
    SELECT images.* EXCLUDE (label, mask_uri, is_mask, mask_key, from_last),
           CASE WHEN $label_by_mask AND images.mask_key IS NOT NULL AND problem IS NULL
                THEN (masks.mask_uri IS NOT NULL)::TINYINT ELSE images.label END AS label,
           CASE WHEN $label_by_mask OR images.label = 1 THEN {_MASK} END AS mask_uri
    FROM images LEFT JOIN masks ON images.mask_key = masks.mask_key
    ORDER BY {ORDER}
"""  # noqa: S608 - the order is a constant
#: Images of other splits, images within the split, masks beyond the first of a key, masks whose key
#: is that of no image, parts with images to fit on and others.
_COUNTS = f"""
    WITH {{listed}},
         masks AS (
             SELECT mask_key, count(DISTINCT uri) AS n FROM listed WHERE is_mask GROUP BY mask_key
         )
    SELECT (SELECT count(*) FROM listed WHERE NOT is_mask AND problem IS NULL
                AND split IS DISTINCT FROM coalesce($split, split)),
           (SELECT count(*) FROM listed
                WHERE NOT is_mask AND ($split IS NULL OR split = $split OR problem IS NOT NULL)),
           (SELECT coalesce(sum(n - 1), 0)::BIGINT FROM masks),
           (SELECT coalesce(sum(n), 0)::BIGINT FROM masks ANTI JOIN
                (SELECT mask_key FROM listed WHERE NOT is_mask) AS images USING (mask_key)),
           (SELECT count(*) FROM (
                SELECT product, part FROM listed WHERE NOT is_mask AND part IS NOT NULL
                GROUP BY ALL
                HAVING bool_or(split = 'train') AND bool_or(split NOT IN {OF_MODELS})
           ))
"""  # noqa: S608 - the splits are constants
OTHER_SPLITS = "images of other splits than --split"
DUPLICATES = "images that were listed twice, by archives that overlap"
MORE_MASKS = "masks beyond the first of an image"
LONE_MASKS = "masks of no image"


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
    search: Search = Search(),
) -> Tally:
    """List archives into an inventory at `out`, sorted by product, container and place in it.

    With `split` only the images of that split are kept. The inventory's metadata keep the counts of
    the listing. Raises EmptyArchive if there is no image, and a StorageError if an archive cannot
    be listed.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        path = os.path.join(folder, "listed.parquet")
        batches = listed(locations, path_parser, suffixes, tally, search=search)
        parquet.write(path, LISTED, _report_progress(batches, tally, progress))
        if not tally.images:
            raise EmptyArchive(_explain_empty(locations, suffixes, tally))
        with opened(memory) as database:
            rows = listed_sql.rows(path_parser.layout)
            parameters: dict[str, object] = {
                "listed": path,
                "split": split_named(split) if split else None,
            }
            (counts,) = database.execute(_COUNTS.format(listed=rows), parameters).fetchall()
            # Without any mask no label is known.
            parameters["label_by_mask"] = path_parser.layout.label_by_mask and tally.masks > 0
            images = database.sql(_SORTED.format(listed=rows), params=parameters)
            _write(out, images.to_arrow_reader(2**16), tally, counts)
    return tally


def _write(
    out: str, images: Iterable[pa.RecordBatch], tally: Tally, counts: tuple[int, ...]
) -> None:
    """Write the inventory with the counts of what it leaves out."""
    other_splits, kept, more_masks, lone_masks, tally.shared_parts = counts

    def metadata(written: int) -> dict[str, str]:
        for reason, count in (
            (OTHER_SPLITS, other_splits),
            (DUPLICATES, kept - written),
            (MORE_MASKS, more_masks),
            (LONE_MASKS, lone_masks),
        ):
            if count:
                tally.left_out[reason] += count
        return {TALLY: json.dumps(tally.record())}

    counted = _count_kinds(images, tally)
    parquet.write(out, SCHEMA, counted, rows=4096, metadata=metadata)  # workers read slices


def _count_kinds(batches: Iterable[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
    """The same batches; their images are counted by split and label."""
    for batch in batches:
        groups = pa.Table.from_batches([batch]).group_by(["split", "label"])
        for row in groups.aggregate([([], "count_all")]).to_pylist():
            tally.count_kind(row["split"], row["label"], row["count_all"])
        yield batch


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
        problem = tally.example_problem
        return f"no image in {places}: {tally.problems} archives cannot be read, such as: {problem}"
    if tally.other_files:
        endings = ", ".join(sorted(tally.other_suffixes))
        return (
            f"no image in {places}: {tally.other_files} files end in {endings}, none in "
            f"{' '.join(suffixes)}; set --suffixes to read other files"
        )
    if tally.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.left_out.items())
        return f"no image in {places}, only what gives no image: {reasons}"
    return f"no image in {places}: it is empty. Check the bucket and prefix"
