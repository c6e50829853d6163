"""The current parts: of each part of several images its worst view, and what of it is missing.

DuckDB groups the current scores and spills to disk beyond its memory limit. p-values of parts
follow from the held-out parts of the model, of which the runs left a copy in the output folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ops.archives.layouts import composed
from ops.results import part_table
from ops.results.calibration import promised_rate
from ops.results.part_calibration import PartCalibration
from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import condition, gone
from pipelines.tables.gone import Listing
from pipelines.tables.verdict_rules import ROUNDING

#: Parts that are judged at once.
_BATCH = 2**14
#: The views of each part with their worst images, and the names of all views of its product.
_GROUPED = """
    CREATE TABLE grouped AS
    WITH images AS (
             SELECT nfc_normalize(product) AS product, part, coalesce(view, '') AS view, image_id,
                    uri, status, score, p_value
             FROM current_scores($model) ANTI JOIN gone USING (image_id, run_id) {listed}
             WHERE part IS NOT NULL AND product IS NOT NULL
                 AND ($product IS NULL OR nfc_normalize(product) = $product)
         ),
         views AS (
             SELECT product, part, view, count(*) AS images, bool_or(status = 'ok') AS is_scored,
                    first({{view: view, image_id: image_id, uri: uri, score: score,
                           p_value: p_value}} ORDER BY score DESC NULLS LAST, image_id) AS worst
             FROM images GROUP BY product, part, view
         ),
         known AS (
             SELECT product, list(DISTINCT view ORDER BY view) AS known FROM views GROUP BY product
         )
    SELECT product, part, sum(images)::BIGINT AS images,
           list(worst ORDER BY view) FILTER (is_scored) AS scored,
           list(view ORDER BY view) FILTER (NOT is_scored) AS failed, any_value(known) AS known
    FROM views JOIN known USING (product) GROUP BY product, part
"""


@dataclass(frozen=True)
class PartRules:
    """How parts are judged: by the calibration and the false-alarm rate of their product."""

    calibrations: Mapping[str, PartCalibration]
    rates: Mapping[str, float]


def calibrations(out: Out, model_id: str) -> dict[str, PartCalibration]:
    """Those of parts that a run of a model left, by product; empty if it knows no parts."""
    location = out.part_calibrations(model_id)
    stored = files.read_json(location) if files.exists(location) else {}
    return {composed(name): PartCalibration.from_json(c) for name, c in stored.items()}


def query(
    database: duckdb.DuckDBPyConnection,
    model_id: str,
    rules: PartRules,
    *,
    where: str = "",
    product: str = "",
    limit: int | None = None,
    only: str = "",
    listing: Listing | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream current parts with the columns of `part_table.SCHEMA`, the most anomalous first.

    `where` is an expression over the columns of that table. Else as `current_scores.query`.
    """
    if where:
        condition.check(database, where, part_table.SCHEMA.names)
    listed = "SEMI JOIN read_parquet($only) USING (image_id)" if only else ""
    parameters = {"model": model_id, "product": product or None} | ({"only": only} if only else {})
    gone.create(database, model_id, listing)
    database.execute(_GROUPED.format(listed=listed), parameters)
    with database.cursor() as reading:
        grouped = reading.sql("FROM grouped ORDER BY product, part").to_arrow_reader(_BATCH)
        rows = (_judged(batch, rules, model_id) for batch in grouped)
        judged = pa.RecordBatchReader.from_batches(part_table.SCHEMA, rows)
        database.register("incoming", judged)
        database.execute("CREATE TABLE parts AS FROM incoming")
        database.unregister("incoming")
    sql = f"""
        SELECT * FROM parts WHERE (
            {where or "true"}
        )
        ORDER BY p_value NULLS LAST, image_p_value NULLS LAST, score DESC NULLS LAST, product, part
        {f"LIMIT {limit:d}" if limit is not None else ""}
    """  # noqa: S608 - `where` was checked
    try:
        for batch in database.sql(sql).to_arrow_reader(2**16):
            table = pa.Table.from_batches([batch]).select(part_table.SCHEMA.names)
            yield from table.cast(part_table.SCHEMA).to_batches()
    except condition.ERRORS as error:
        if not where:
            raise
        raise condition.refusal(where, error) from None


def _judged(batch: pa.RecordBatch, rules: PartRules, model_id: str) -> pa.RecordBatch:
    """Rows of the table of parts from rows of `grouped`, which are sorted by product."""
    rows = batch.to_pylist()
    by_product: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_product.setdefault(row["product"], []).append(row)
    parts = [
        part
        for product, of_product in by_product.items()
        for part in _of_product(
            of_product, rules.calibrations.get(product), rules.rates.get(product, 0.0)
        )
    ]
    return pa.RecordBatch.from_pylist(
        [part | {"model_id": model_id} for part in parts], part_table.SCHEMA
    )


def _of_product(
    rows: list[dict[str, Any]], calibration: PartCalibration | None, rate: float
) -> Iterator[dict[str, Any]]:
    """Parts of one product."""
    views = calibration.views if calibration else ()
    places = {view: place for place, view in enumerate(views)}
    scores = np.full((len(rows), len(views)), np.nan)
    is_foreign = np.zeros(len(rows), dtype=bool)
    for number, row in enumerate(rows):
        for image in row["scored"] or ():
            if image["view"] in places:
                scores[number, places[image["view"]]] = image["score"]
            else:
                is_foreign[number] = True
    scores[is_foreign] = np.nan  # no held-out part has these views
    judged = (calibration or PartCalibration((), ())).judge(scores)
    columns = (judged.p_values.tolist(), judged.held_out.tolist(), judged.worst.tolist())
    for row, p_value, held_out, place in zip(rows, *columns, strict=True):
        scored, failed = row["scored"] or [], row["failed"] or []
        by_view = {image["view"]: image for image in scored}
        worst = by_view[views[place]] if place >= 0 else min(scored, key=_worst_first, default={})
        seen = {*by_view, *failed}
        missing = sorted({*views, *row["known"]} - seen)
        yield {
            **{name: row[name] for name in ("product", "part", "images")},
            **{name: worst.get(name) for name in ("image_id", "uri", "score")},
            "worst_view": worst.get("view") or None,
            "image_p_value": worst.get("p_value"),
            "p_value": p_value if held_out else None,
            "is_anomalous": _verdict(p_value, held_out, rate),
            "views_scored": len(scored),
            "views_failed": len(failed),
            "views_missing": len(missing),
            "failed_views": ", ".join(failed) or None,
            "missing_views": ", ".join(missing) or None,
        }


def _worst_first(image: Mapping[str, Any]) -> tuple[float, float]:
    """The key that finds the worst of a part's images where no calibration does."""
    p_value = image["p_value"]
    return (2.0 if p_value is None else p_value, -image["score"])


def _verdict(p_value: float, held_out: int, rate: float) -> bool | None:
    """Whether a part is anomalous, as `Calibration.threshold` decides for images."""
    if not held_out:
        return None
    return p_value <= promised_rate(rate, held_out) + ROUNDING
