"""Comparing two runs over the same images: what changed for each image, and for each product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from ops.errors import SettingError
from ops.progress import ProgressCallback
from ops.results import drift as measures
from ops.results import plots
from ops.results.metrics import Floats
from ops.results.plots import Shift
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.reports.drift import (
    COUNT,
    DRIFT,
    REAL,
    SAMPLE,
    TEXT,
    Measure,
    drift_of,
    load_sides,
    measure_of,
    schema,
    values_of,
)
from pipelines.tables.database import load, opened

PRODUCTS = schema(
    "comparison 1",
    *((field.name, field.type, field.metadata[b"meaning"].decode()) for field in DRIFT),
    ("both", COUNT, "images in both runs"),
    ("only_in_a", COUNT, "images of the first run alone"),
    ("only_in_b", COUNT, "images of the second run alone"),
    ("status", COUNT, "images in both whose status changed"),
    ("moved", COUNT, "images in both whose product changed; counted under the second run's"),
    ("became_anomalous", COUNT, "images called anomalous by the second run alone"),
    ("became_normal", COUNT, "images called anomalous by the first run alone"),
    ("ranked", COUNT, "pairs of scores that the correlations rest on; a sample if more"),
    ("spearman", REAL, "rank correlation of their scores"),
    ("kendall", REAL, "rank correlation of their scores, tau-b"),
    ("labelled", COUNT, "images with a label that both runs called"),
    ("errors_a", COUNT, "of these, calls of the first run that the label contradicts"),
    ("errors_b", COUNT, "of these, calls of the second run that the label contradicts"),
)
_PAIR = (
    ("image_id", TEXT, "of the second run, if it has the image"),
    ("uri", TEXT, "of the second run, if it has the image"),
    ("product", TEXT, "of the second run, if it has the image"),
    ("label", pa.int8(), "0 good, 1 defective, null unknown"),
    *(
        (f"{name}_{side}", kind, f"of the {which} run")
        for name, kind in (
            ("status", TEXT),
            ("score", REAL),
            ("p_value", REAL),
            ("is_anomalous", pa.bool_()),
        )
        for side, which in (("a", "first"), ("b", "second"))
    ),
)
_SUMMED = [
    name for name in PRODUCTS.names if name not in {*DRIFT.names, "ranked", "spearman", "kendall"}
]
CHANGES = schema(
    "changes 1",
    (
        "change",
        TEXT,
        "only_in_a, only_in_b, status, moved (to another product), became_anomalous, became_normal",
    ),
    *_PAIR,
)
MOVERS = schema(
    "movers 1",
    *_PAIR,
    ("rank_a", REAL, "share of the product's images that score lower, among those of both runs"),
    ("rank_b", REAL, "share of the product's images that score lower, among those of both runs"),
)


@dataclass(frozen=True)
class CompareSettings:
    """How runs are compared."""

    join: Literal["image_id", "uri"] = "image_id"
    """What makes two rows the same image: uri also where its version differs."""
    movers: int = 20
    """How many images are named of each product whose place changed most."""
    moved_by: Literal["rank", "p_value"] = "rank"
    """What change is: of the rank within the product, or of the p-value."""
    sample: int = SAMPLE
    """Scores per product and run that tests, correlations and pictures rest on, at most."""
    pictures: int = 40
    """How many products get a picture, at most: those that drifted most."""

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to compare."""
        for name, least in (("movers", 0), ("sample", 2), ("pictures", 0)):
            if (value := getattr(self, name)) < least:
                raise SettingError(f"{name} {value} must be at least {least}")


class Compared(NamedTuple):
    """The tables `PRODUCTS` and `MOVERS`, and where pictures lie, by product."""

    products: pa.Table
    movers: pa.Table
    pictures: dict[str, str]


def compare(
    out: Out,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    labels: str,
    settings: CompareSettings,
    watch: ProgressCallback,
) -> Compared:
    """Compare two finished runs, given their records; writes tables and pictures below `out`.

    `labels` is an inventory whose labels say which calls were right, or empty.
    """
    runs = str(before["run_id"]), str(after["run_id"])
    measure = measure_of(before, after)
    with opened() as database:
        load_sides(
            database, *(out.table(record["night"], record["run_id"]) for record in (before, after))
        )
        _pair(database, labels, settings)
        found = _products(database, measure, settings)
        products = pa.Table.from_pylist(found, PRODUCTS)
        movers = database.sql(_MOVERS, params={"by": settings.moved_by, "most": settings.movers})
        parquet.write(out.comparison(*runs, "products"), PRODUCTS, [products])
        parquet.write(out.comparison(*runs, "changes"), CHANGES, _read(database.sql(_CHANGES)))
        parquet.write(out.comparison(*runs, "movers"), MOVERS, _read(movers))
        pictures: dict[str, str] = {}
        for row in _most_drifted(found, settings.pictures):
            pictures[row["product"]] = out.compared(*runs, row["product"])
            shift = _shift(database, row, before, after, measure)
            files.write_bytes(pictures[row["product"]], plots.draw_shift(shift))
            watch("pictures", len(pictures), min(len(found), settings.pictures), 0)
    return Compared(products, parquet.read(out.comparison(*runs, "movers")), pictures)


def _read(answer: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    yield from answer.to_arrow_reader(2**16)


_PAIRS = """
    CREATE TABLE pairs AS
    WITH keyed AS (
             SELECT *, CASE WHEN $join = 'uri' THEN uri ELSE image_id END AS key FROM sides
         ),
         numbered AS (
             -- An archive may hold several members of one name; the k-th meets the k-th.
             SELECT *, row_number() OVER (PARTITION BY side, key ORDER BY image_id) AS k FROM keyed
         ),
         first AS (SELECT * FROM numbered WHERE side = 'a'),
         second AS (SELECT * FROM numbered WHERE side = 'b'),
         known AS (
             SELECT CASE WHEN $join = 'uri' THEN uri ELSE image_id END AS key, max(label) AS label
             FROM labels GROUP BY key
         ),
         joined AS (
             SELECT coalesce(second.key, first.key) AS key,
                    coalesce(second.image_id, first.image_id) AS image_id,
                    coalesce(second.uri, first.uri) AS uri,
                    CASE WHEN second.key IS NULL THEN first.product ELSE second.product END
                        AS product,
                    first.product IS DISTINCT FROM second.product AS elsewhere,
                    first.status AS status_a, second.status AS status_b,
                    first.score AS score_a, second.score AS score_b,
                    first.p_value AS p_value_a, second.p_value AS p_value_b,
                    first.is_anomalous AS is_anomalous_a, second.is_anomalous AS is_anomalous_b
             FROM first FULL JOIN second ON first.key = second.key AND first.k = second.k
         )
    SELECT joined.* EXCLUDE (key, elsewhere), label,
           CASE WHEN status_a IS NULL THEN 'only_in_b'
                WHEN status_b IS NULL THEN 'only_in_a'
                WHEN status_a <> status_b THEN 'status'
                WHEN elsewhere THEN 'moved'
                WHEN is_anomalous_b AND NOT is_anomalous_a THEN 'became_anomalous'
                WHEN is_anomalous_a AND NOT is_anomalous_b THEN 'became_normal'
           END AS change,
           score_a IS NOT NULL AND score_b IS NOT NULL AND NOT elsewhere AS ranks
    FROM joined LEFT JOIN known USING (key)
"""
_RANKED = """
    CREATE TABLE ranked AS
    SELECT * EXCLUDE (change, ranks),
           percent_rank() OVER (PARTITION BY product ORDER BY score_a) AS rank_a,
           percent_rank() OVER (PARTITION BY product ORDER BY score_b) AS rank_b,
           row_number() OVER (PARTITION BY product ORDER BY md5(image_id)) AS lot
    FROM pairs WHERE ranks
"""
_SUMS = """
    SELECT product,
           count(*) FILTER (status_a IS NOT NULL AND status_b IS NOT NULL) AS both,
           count(*) FILTER (change = 'only_in_a') AS only_in_a,
           count(*) FILTER (change = 'only_in_b') AS only_in_b,
           count(*) FILTER (change = 'status') AS status,
           count(*) FILTER (change = 'moved') AS moved,
           count(*) FILTER (change = 'became_anomalous') AS became_anomalous,
           count(*) FILTER (change = 'became_normal') AS became_normal,
           count(*) FILTER (called) AS labelled,
           count(*) FILTER (called AND is_anomalous_a <> (label = 1)) AS errors_a,
           count(*) FILTER (called AND is_anomalous_b <> (label = 1)) AS errors_b
    FROM (SELECT *, label IS NOT NULL AND is_anomalous_a IS NOT NULL
                    AND is_anomalous_b IS NOT NULL AS called FROM pairs)
    GROUP BY product
"""
_CHANGES = "SELECT * FROM pairs WHERE change IS NOT NULL ORDER BY change, product, uri, image_id"
_MOVERS = """
    WITH changed AS (
        SELECT *, abs(CASE WHEN $by = 'rank' THEN rank_b - rank_a ELSE p_value_b - p_value_a END)
                  AS by_much
        FROM ranked
    )
    SELECT * FROM changed WHERE by_much > 0
    QUALIFY row_number() OVER (PARTITION BY product ORDER BY by_much DESC, image_id) <= $most
    ORDER BY product, by_much DESC, image_id
"""


def _pair(database: duckdb.DuckDBPyConnection, labels: str, settings: CompareSettings) -> None:
    """Every image of either run once; then those that both scored, with ranks."""
    if labels:
        load(database, "labels", labels, ["image_id", "uri", "label"])
    else:
        database.execute("CREATE TABLE labels (image_id VARCHAR, uri VARCHAR, label TINYINT)")
    database.execute(_PAIRS, {"join": settings.join})
    database.execute(_RANKED)


def _products(
    database: duckdb.DuckDBPyConnection, measure: Measure, settings: CompareSettings
) -> list[dict[str, Any]]:
    """Rows of `PRODUCTS`."""
    sums = {row["product"]: row for row in database.sql(_SUMS).to_arrow_table().to_pylist()}
    rows = []
    for row in drift_of(database, measure, settings.sample).to_pylist():
        # Of a product that all images moved away from, no pair is left.
        counted = sums.get(row["product"], dict.fromkeys(_SUMMED, 0))
        scored = _scored(database, row["product"], settings.sample)
        agreed = measures.agreement(scored["score_a"], scored["score_b"])._asdict()
        rows.append(row | counted | agreed | {"ranked": len(scored["score_a"])})
    return rows


def _scored(
    database: duckdb.DuckDBPyConnection, product: str | None, sample: int
) -> dict[str, Floats]:
    """Scores and ranks of a product's images in both runs, the lowest hashes of their ids."""
    query = (
        "SELECT score_a, score_b, rank_a, rank_b FROM ranked WHERE lot <= $sample "
        "AND product IS NOT DISTINCT FROM $product"
    )
    found = database.execute(query, {"sample": sample, "product": product}).fetchnumpy()
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def _most_drifted(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    tested = [
        row for row in rows if row["product"] is not None and row["tested_a"] + row["tested_b"]
    ]
    return sorted(tested, key=lambda row: (-(row["ks"] or 0), row["product"]))[:most]


def _shift(
    database: duckdb.DuckDBPyConnection,
    row: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    measure: Measure,
) -> Shift:
    product = row["product"]
    pairs = _scored(database, product, plots.POINTS)
    kind = "score" if measure == "score" else "rank"
    return Shift(
        product,
        measure,
        before=values_of(database, "a", product),
        after=values_of(database, "b", product),
        pair_kind=kind,
        pairs=(pairs[f"{kind}_a"], pairs[f"{kind}_b"]),
        threshold=after.get("thresholds", {}).get(product) if measure == "score" else None,
        runs=(str(before["run_id"]), str(after["run_id"])),
        words=f"KS {row['ks']:.3f}, PSI {row['psi']:.3f}" if row["ks"] is not None else "",
    )
