"""The regions of the current images, with what their rows say of the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import duckdb
import pyarrow as pa

from ops.archives.views import Views, detector_sql
from ops.results import region_table, score_table
from pipelines.tables import condition, gone, verdict_rules
from pipelines.tables.gone import Listing
from pipelines.tables.verdict_rules import VerdictRule

#: Columns of the view: those of regions, then those of their images.
VIEW = pa.schema(
    [
        *region_table.SCHEMA,
        *(
            score_table.SCHEMA.field(name)
            for name in ("uri", "product", "part", "view", "width", "height", "is_anomalous")
        ),
    ]
)
_CHOSEN = """
    SELECT regions.* FROM (
        SELECT current.* FROM current_regions($model) AS current
        LEFT JOIN rules ON nfc_normalize({detector}) = rules.detector
        WHERE coalesce(current.largest > rules.threshold, current.p_value <= rules.p_value, true)
    ) AS regions ANTI JOIN gone USING (image_id, run_id) {listed}
    WHERE ($product IS NULL OR nfc_normalize(product) = $product) AND (
        {where}
    )
    ORDER BY p_value, product, largest DESC, image_id, number {limit}
"""


def query(
    database: duckdb.DuckDBPyConnection,
    model_id: str,
    *,
    where: str = "",
    product: str = "",
    limit: int | None = None,
    rules: Mapping[str, VerdictRule] | None = None,
    only: str = "",
    views: Views = "pooled",
    listing: Listing | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream regions of current images with the columns of `VIEW`, the lowest p-values first.

    With `rules`, by detector, only regions whose largest value exceeds a `threshold`, or whose
    p-value is at most a `p_value`, are left; their shape stays that of the recorded threshold.
    `where` is an expression over the columns. `database` is one of `current_scores.opened` with
    `regions`. Else as `current_scores.query`.
    """
    if where:
        condition.check(database, where, VIEW.names)
    verdict_rules.register(database, rules)
    gone.create(database, model_id, listing)
    sql = _CHOSEN.format(
        detector=detector_sql(views, "current"),
        listed="SEMI JOIN read_parquet($only) USING (image_id)" if only else "",
        where=where or "true",
        limit=f"LIMIT {limit:d}" if limit is not None else "",
    )
    parameters = {"model": model_id, "product": product or None} | ({"only": only} if only else {})
    try:
        for batch in database.sql(sql, params=parameters).to_arrow_reader(2**16):
            yield from pa.Table.from_batches([batch]).select(VIEW.names).cast(VIEW).to_batches()
    except condition.ERRORS as error:
        if not where:
            raise
        raise condition.refusal(where, error) from None
