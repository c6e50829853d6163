"""The rows of two runs, paired by image: what changed, and how ranks moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from ops.results.metrics import Floats
from pipelines.reports.changed_verdicts import define_verdict_change, numbered_members
from pipelines.reports.drift import REAL, TEXT, schema
from pipelines.tables.database import load

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
#: Counts of pairs of a product, see `count_changes`.
COUNTS = (
    "both",
    "only_in_a",
    "only_in_b",
    "status",
    "moved",
    "became_anomalous",
    "became_normal",
    "labelled",
    "errors_a",
    "errors_b",
)
_CREATE_PAIRS = f"""
    CREATE TABLE pairs AS
    WITH keyed AS (
             SELECT *, CASE WHEN $join = 'uri' THEN uri ELSE image_id END AS key FROM sides
         ),
         numbered AS ({numbered_members("keyed", "side, key")}),
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
                    first.product IS DISTINCT FROM second.product AS product_changed,
                    first.status AS status_a, second.status AS status_b,
                    first.score AS score_a, second.score AS score_b,
                    first.p_value AS p_value_a, second.p_value AS p_value_b,
                    first.is_anomalous AS is_anomalous_a, second.is_anomalous AS is_anomalous_b
             FROM first FULL JOIN second ON first.key = second.key AND first.k = second.k
         )
    SELECT joined.* EXCLUDE (key, product_changed), label,
           CASE WHEN status_a IS NULL THEN 'only_in_b'
                WHEN status_b IS NULL THEN 'only_in_a'
                WHEN status_a <> status_b THEN 'status'
                WHEN product_changed THEN 'moved'
                ELSE verdict_change(is_anomalous_a, is_anomalous_b)
           END AS change,
           score_a IS NOT NULL AND score_b IS NOT NULL AND NOT product_changed AS is_ranked
    FROM joined LEFT JOIN known USING (key)
"""  # noqa: S608 - only names from the code
_CREATE_RANKED = """
    CREATE TABLE ranked AS
    SELECT * EXCLUDE (change, is_ranked),
           percent_rank() OVER (PARTITION BY product ORDER BY score_a) AS rank_a,
           percent_rank() OVER (PARTITION BY product ORDER BY score_b) AS rank_b,
           row_number() OVER (PARTITION BY product ORDER BY md5(image_id)) AS sample_order
    FROM pairs WHERE is_ranked
"""
_COUNT_CHANGES = """
    SELECT product,
           count(*) FILTER (status_a IS NOT NULL AND status_b IS NOT NULL) AS both,
           count(*) FILTER (change = 'only_in_a') AS only_in_a,
           count(*) FILTER (change = 'only_in_b') AS only_in_b,
           count(*) FILTER (change = 'status') AS status,
           count(*) FILTER (change = 'moved') AS moved,
           count(*) FILTER (change = 'became_anomalous') AS became_anomalous,
           count(*) FILTER (change = 'became_normal') AS became_normal,
           count(*) FILTER (is_judged) AS labelled,
           count(*) FILTER (is_judged AND is_anomalous_a <> (label = 1)) AS errors_a,
           count(*) FILTER (is_judged AND is_anomalous_b <> (label = 1)) AS errors_b
    FROM (SELECT *, label IS NOT NULL AND is_anomalous_a IS NOT NULL
                    AND is_anomalous_b IS NOT NULL AS is_judged FROM pairs)
    GROUP BY product
"""
_CHANGES = "SELECT * FROM pairs WHERE change IS NOT NULL ORDER BY change, product, uri, image_id"
_MOVERS = """
    WITH changed AS (
        SELECT *, abs(CASE WHEN $by = 'rank' THEN rank_b - rank_a ELSE p_value_b - p_value_a END)
                  AS distance
        FROM ranked
    )
    SELECT * FROM changed WHERE distance > 0
    QUALIFY row_number() OVER (PARTITION BY product ORDER BY distance DESC, image_id) <= $most
    ORDER BY product, distance DESC, image_id
"""


def pair_images(
    database: duckdb.DuckDBPyConnection, labels: str, join: Literal["image_id", "uri"]
) -> None:
    """Create the tables that the other functions query, from those of `drift.load_sides`.

    `pairs` holds every image of either run once, `ranked` those that both runs scored. `labels` is
    an inventory, or empty.
    """
    define_verdict_change(database)
    if labels:
        load(database, "labels", labels, ["image_id", "uri", "label"])
    else:
        database.execute("CREATE TABLE labels (image_id VARCHAR, uri VARCHAR, label TINYINT)")
    database.execute(_CREATE_PAIRS, {"join": join})
    database.execute(_CREATE_RANKED)


def count_changes(database: duckdb.DuckDBPyConnection) -> dict[str | None, dict[str, Any]]:
    """The `COUNTS` of each product that has pairs, with the product itself."""
    return {
        row["product"]: row for row in database.sql(_COUNT_CHANGES).to_arrow_table().to_pylist()
    }


def changes(database: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    """Rows of `CHANGES`: the images that are not the same in both runs."""
    yield from database.sql(_CHANGES).to_arrow_reader(2**16)


def movers(
    database: duckdb.DuckDBPyConnection, by: Literal["rank", "p_value"], most: int
) -> Iterator[pa.RecordBatch]:
    """Rows of `MOVERS`: the `most` images of each product whose rank or p-value changed most."""
    answer = database.sql(_MOVERS, params={"by": by, "most": most})
    yield from answer.to_arrow_reader(2**16)


def scores_and_ranks(
    database: duckdb.DuckDBPyConnection, product: str | None, sample: int
) -> dict[str, Floats]:
    """`score_a`, `score_b`, `rank_a` and `rank_b` of a product's images that both runs scored.

    Of more than `sample` images, those with the lowest hashes of their ids.
    """
    query = (
        "SELECT score_a, score_b, rank_a, rank_b FROM ranked WHERE sample_order <= $sample "
        "AND product IS NOT DISTINCT FROM $product"
    )
    columns = database.execute(query, {"sample": sample, "product": product}).fetchnumpy()
    return {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
