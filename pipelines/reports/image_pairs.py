"""The rows of two runs or models, paired by image: what changed, and how ranks moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from ops.results.metrics import Floats
from pipelines.reports.changed_verdicts import define_verdict_change, numbered_members
from pipelines.reports.drift import REAL, TEXT, schema
from pipelines.reports.labels import Joined

_PAIR = (
    ("image_id", TEXT, "of B, if it has the image"),
    ("uri", TEXT, "of B, if it has the image"),
    ("product", TEXT, "of B, if it has the image"),
    ("label", pa.int8(), "0 good, 1 defective, null unknown"),
    *(
        (f"{name}_{side}", kind, f"of {side.upper()}")
        for name, kind in (
            ("status", TEXT),
            ("score", REAL),
            ("p_value", REAL),
            ("is_anomalous", pa.bool_()),
        )
        for side in ("a", "b")
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
    ("rank_a", REAL, "share of the product's images that score lower, among those of A and B"),
    ("rank_b", REAL, "share of the product's images that score lower, among those of A and B"),
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
         versions AS (SELECT image_id, label FROM labels),
         addresses AS (
             SELECT uri, CASE WHEN min(label) = max(label) THEN min(label) END AS label,
                    count(label) AS labels
             FROM labels GROUP BY uri
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
    SELECT joined.* EXCLUDE (key, product_changed),
           -- An image of another version than the labelled one has the label of its address.
           CASE WHEN versions.image_id IS NOT NULL THEN versions.label ELSE addresses.label END
               AS label,
           versions.image_id IS NULL AND addresses.labels > 0 AS is_by_address,
           versions.image_id IS NULL AND addresses.uri IS NULL AS is_unlisted,
           CASE WHEN status_a IS NULL THEN 'only_in_b'
                WHEN status_b IS NULL THEN 'only_in_a'
                WHEN status_a <> status_b THEN 'status'
                WHEN product_changed THEN 'moved'
                ELSE verdict_change(is_anomalous_a, is_anomalous_b)
           END AS change,
           score_a IS NOT NULL AND score_b IS NOT NULL AND NOT product_changed AS is_ranked
    FROM joined LEFT JOIN versions ON joined.image_id = versions.image_id
        LEFT JOIN addresses ON joined.uri = addresses.uri
"""  # noqa: S608 - only names from the code
_CREATE_RANKED = """
    CREATE TABLE ranked AS
    SELECT * EXCLUDE (change, is_ranked, is_by_address, is_unlisted),
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
_COUNT_LABELS = """
    SELECT count(*) FILTER (is_by_address AND label IS NOT NULL),
           count(*) FILTER (is_by_address AND label IS NULL),
           (SELECT count(*) FROM labels ANTI JOIN pairs USING (uri) WHERE label IS NOT NULL),
           count(*) FILTER (is_unlisted),
           (SELECT count(*) FROM labels SEMI JOIN pairs USING (uri)
            WHERE label = 0 AND split IS NULL)
    FROM pairs
"""
_COUNT_OTHER_VERSIONS = """
    SELECT count(DISTINCT uri) FROM pairs SEMI JOIN
        (SELECT uri FROM pairs WHERE change = 'only_in_a') AS first USING (uri)
    WHERE change = 'only_in_b'
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


def pair_images(database: duckdb.DuckDBPyConnection, join: Literal["image_id", "uri"]) -> None:
    """Create the tables that the other functions query, from `sides.Sides` and `unseen_labels`.

    `pairs` holds every image of either side once, `ranked` those that both sides scored. An image
    of a version that `labels` does not list has the label of its address.
    """
    define_verdict_change(database)
    database.execute(_CREATE_PAIRS, {"join": join})
    database.execute(_CREATE_RANKED)


def count_changes(database: duckdb.DuckDBPyConnection) -> dict[str | None, dict[str, Any]]:
    """The `COUNTS` of each product that has pairs, with the product itself."""
    return {
        row["product"]: row for row in database.sql(_COUNT_CHANGES).to_arrow_table().to_pylist()
    }


def count_labels(database: duckdb.DuckDBPyConnection) -> Joined:
    """How the labels were joined to the images of both sides."""
    [counts] = database.sql(_COUNT_LABELS).fetchall()
    by_address, ambiguous, unmatched, unlisted, unsplit = counts
    return Joined(by_address, ambiguous, unmatched, unlisted, unsplit=unsplit)


def count_other_versions(database: duckdb.DuckDBPyConnection) -> int:
    """Addresses that both sides have, but as different versions that are not paired."""
    [(count,)] = database.sql(_COUNT_OTHER_VERSIONS).fetchall()
    return int(count)


def changes(database: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    """Rows of `CHANGES`: the images that are not the same on both sides."""
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
    """`score_a`, `score_b`, `rank_a` and `rank_b` of a product's images that both sides scored.

    Of more than `sample` images, those with the lowest hashes of their ids.
    """
    query = (
        "SELECT score_a, score_b, rank_a, rank_b FROM ranked WHERE sample_order <= $sample "
        "AND product IS NOT DISTINCT FROM $product"
    )
    columns = database.execute(query, {"sample": sample, "product": product}).fetchnumpy()
    return {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
