"""How many regions the images of a report have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb

from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables.database import load

_COLUMNS = ("image_id", "run_id")
#: `b` holds the images of the report, see `drift.load_runs`.
_OF_PRODUCTS = """
    SELECT product, count(*), count(DISTINCT image_id) FROM regions JOIN b USING (image_id, run_id)
    GROUP BY product
"""
_OF_IMAGES = """
    SELECT image_id, count(*) FROM regions JOIN b USING (image_id, run_id)
    WHERE image_id IN (SELECT unnest($images)) GROUP BY image_id
"""


class ProductRegions(NamedTuple):
    """Counts of one product."""

    regions: int
    images: int
    """Images with a region."""


class RegionCounts(NamedTuple):
    """Counts of the regions of a night's runs."""

    products: Mapping[str | None, ProductRegions] = {}
    images: Mapping[str, int] = {}
    """By image id, of those that were asked for and have a region."""
    hidden: int = 0
    """Regions that the runs left out: smaller than their least area, or too many of an image."""


def region_counts(
    database: duckdb.DuckDBPyConnection,
    out: Out,
    runs: Sequence[Mapping[str, Any]],
    images: Sequence[str],
) -> RegionCounts:
    """Count the regions of runs, given their records, and those of some images.

    `database` is one that `drift.load_runs` loaded. A run whose table of regions was lost has none.
    """
    places = [out.region_table(str(run["night"]), str(run["run_id"])) for run in runs]
    database.execute("CREATE TABLE regions (image_id VARCHAR, run_id VARCHAR)")
    for number, place in enumerate(filter(files.exists, places)):
        load(database, f"regions_{number}", place, _COLUMNS)
        database.execute(f"INSERT INTO regions FROM regions_{number}")
    of_products = database.sql(_OF_PRODUCTS).fetchall()
    of_images = database.execute(_OF_IMAGES, {"images": list(images)}).fetchall()
    return RegionCounts(
        {product: ProductRegions(regions, seen) for product, regions, seen in of_products},
        dict(of_images),
        sum(run["totals"].get("regions_hidden") or 0 for run in runs),
    )
