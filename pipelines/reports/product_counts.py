"""How many images of each product a run scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ops.archives.views import detector_sql, views_of
from ops.storage.paths import Out
from pipelines.tables.database import load, opened

#: With separate views each of them is a product of its own.
_COUNTS = """
    SELECT {detector}, count(*), count(*) FILTER (status <> 'ok'), count(*) FILTER (is_anomalous)
    FROM run GROUP BY 1 ORDER BY 1 NULLS LAST
"""


class ProductCounts(NamedTuple):
    """Counts of one product's images in a run."""

    product: str | None
    images: int
    failed: int
    """Images without a score."""
    anomalous: int


def product_counts(out: Out, record: Mapping[str, Any]) -> list[ProductCounts]:
    """The counts of a finished run, given its record; ordered by product."""
    table = out.table(str(record["night"]), str(record["run_id"]))
    with opened() as database:
        load(database, "run", table, ("product", "view", "status", "is_anomalous"))
        found = database.sql(_COUNTS.format(detector=detector_sql(views_of(record)))).fetchall()
    return [ProductCounts(*row) for row in found]
