"""How each product fared in each run: counts, and quantiles of its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from ops.archives.views import detector_sql, views_of
from ops.storage.paths import Out
from pipelines.tables import current_scores

#: The shares of scores below the quantiles of `ProductNight.scores`.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: With separate views each of them is a product of its own.
_ROWS = f"""
    SELECT scores.run_id,
           CASE WHEN separate THEN {detector_sql("separate")} ELSE product END AS name, count(*),
           count(*) FILTER (status <> 'ok'), count(*) FILTER (is_anomalous),
           approx_quantile(score, {list(QUANTILES)})
    FROM read_parquet(getvariable('tables'), hive_partitioning = false) AS scores
    JOIN runs ON scores.run_id = runs.run_id
    GROUP BY ALL ORDER BY name NULLS LAST, any_value(run_number)
"""  # noqa: S608 - only names from the code


class ProductNight(NamedTuple):
    """One product in one run."""

    run_id: str
    product: str | None
    images: int
    failed: int
    """Images without a score."""
    anomalous: int
    scores: tuple[float, ...] | None
    """The `QUANTILES` of its scores, to about a percent of rank; None if no image has a score."""

    @property
    def flagged(self) -> float | None:
        """Share of the scored images that are anomalous; None if none has a score."""
        scored = self.images - self.failed
        return self.anomalous / scored if scored else None


def product_nights(out: Out, records: Sequence[Mapping[str, Any]]) -> list[ProductNight]:
    """A row for each product of finished runs, given their records; by product, then in order.

    Memory follows the number of products and runs, not that of images.
    """

    def read(database: duckdb.DuckDBPyConnection, _: object) -> list[ProductNight]:
        runs = [
            {"run_id": str(record["run_id"]), "separate": views_of(record) == "separate"}
            for record in records
        ]
        columns = pa.schema([("run_id", pa.string()), ("separate", pa.bool_())])
        database.register("runs", pa.Table.from_pylist(runs, columns))
        found = database.sql(_ROWS).fetchall()
        return [
            ProductNight(run, product, images, failed, anomalous, tuple(scores) if scores else None)
            for run, product, images, failed, anomalous, scores in found
        ]

    return current_scores.read_consistently(out, read)
