"""Comparing two runs over the same images: what changed for each image, and for each product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from ops import drift as measures
from ops import figures, storage, tables
from ops.figures import Shift
from ops.layout import Out
from ops.metrics import Floats
from pipelines.database import load, opened
from pipelines.watch import Watch

Measure = Literal["score", "p_value"]
#: Scores per product and run that tests and correlations rest on, at most.
SAMPLE = 100_000
_READ = ("image_id", "uri", "product", "status", "score", "p_value", "is_anomalous")


def _schema(name: str, *columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    fields = [pa.field(name, kind, metadata={"meaning": said}) for name, kind, said in columns]
    return pa.schema(fields, metadata={"nightloupe": name})


_COUNT, _REAL, _TEXT = pa.int64(), pa.float64(), pa.string()
#: One row per product of either run.
DRIFT = _schema(
    "drift 1",
    ("product", _TEXT, "null: images whose path names none"),
    ("images_a", _COUNT, "rows of the first run"),
    ("images_b", _COUNT, "rows of the second run"),
    ("failed_a", _COUNT, "of these without a score"),
    ("failed_b", _COUNT, "of these without a score"),
    ("anomalous_a", _COUNT, "of these called anomalous"),
    ("anomalous_b", _COUNT, "of these called anomalous"),
    ("measure", _TEXT, "what is tested below: score, or p_value where models differ"),
    ("tested_a", _COUNT, "values tested; a sample by a hash of the ids if there were more"),
    ("tested_b", _COUNT, "values tested; a sample by a hash of the ids if there were more"),
    ("median_a", _REAL, "of the values tested"),
    ("median_b", _REAL, "of the values tested"),
    ("ks", _REAL, "Kolmogorov-Smirnov distance, 0 to 1; null if one run has no values"),
    ("ks_p", _REAL, "its p-value, of this product by itself"),
    ("ks_q", _REAL, "its p-value adjusted for all products (Benjamini and Hochberg 1995)"),
    ("wasserstein", _REAL, "how far values moved on average, in their own unit"),
    ("psi", _REAL, "population stability index; above 0.1 slight, above 0.25 marked, by custom"),
)
PRODUCTS = _schema(
    "comparison 1",
    *((field.name, field.type, field.metadata[b"meaning"].decode()) for field in DRIFT),
    ("both", _COUNT, "images in both runs"),
    ("only_in_a", _COUNT, "images of the first run alone"),
    ("only_in_b", _COUNT, "images of the second run alone"),
    ("status", _COUNT, "images in both whose status changed"),
    ("moved", _COUNT, "images in both whose product changed; counted under the second run's"),
    ("became_anomalous", _COUNT, "images called anomalous by the second run alone"),
    ("became_normal", _COUNT, "images called anomalous by the first run alone"),
    ("ranked", _COUNT, "pairs of scores that the correlations rest on; a sample if more"),
    ("spearman", _REAL, "rank correlation of their scores"),
    ("kendall", _REAL, "rank correlation of their scores, tau-b"),
    ("labelled", _COUNT, "images with a label that both runs called"),
    ("errors_a", _COUNT, "of these, calls of the first run that the label contradicts"),
    ("errors_b", _COUNT, "of these, calls of the second run that the label contradicts"),
)
_PAIR = (
    ("image_id", _TEXT, "of the second run, if it has the image"),
    ("uri", _TEXT, "of the second run, if it has the image"),
    ("product", _TEXT, "of the second run, if it has the image"),
    ("label", pa.int8(), "0 good, 1 defective, null unknown"),
    *(
        (f"{name}_{side}", kind, f"of the {which} run")
        for name, kind in (
            ("status", _TEXT),
            ("score", _REAL),
            ("p_value", _REAL),
            ("is_anomalous", pa.bool_()),
        )
        for side, which in (("a", "first"), ("b", "second"))
    ),
)
_SUMMED = [
    name for name in PRODUCTS.names if name not in {*DRIFT.names, "ranked", "spearman", "kendall"}
]
CHANGES = _schema(
    "changes 1",
    (
        "change",
        _TEXT,
        "only_in_a, only_in_b, status, moved (to another product), became_anomalous, became_normal",
    ),
    *_PAIR,
)
MOVERS = _schema(
    "movers 1",
    *_PAIR,
    ("rank_a", _REAL, "share of the product's images that score lower, among those of both runs"),
    ("rank_b", _REAL, "share of the product's images that score lower, among those of both runs"),
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
                raise ValueError(f"{name} {value} must be at least {least}")


class Compared(NamedTuple):
    """The tables `PRODUCTS` and `MOVERS`, and where pictures lie, by product."""

    products: pa.Table
    movers: pa.Table
    pictures: dict[str, str]


def measure_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> Measure:
    """What can be compared in value between two runs, given their records.

    Raw scores of different models have no common unit; their p-values have.
    """
    return "score" if before["model_id"] == after["model_id"] else "p_value"


def drift(before: str, after: str, measure: Measure = "score", sample: int = SAMPLE) -> pa.Table:
    """How failures, calls and the distribution of scores differ between two score tables.

    Returns a row of `DRIFT` per product. The tables may hold different images. Of more than
    `sample` values per product and run a sample is tested, the lowest hashes of the images' ids.
    One test in twenty is below p = 0.05 by chance alone, so with many products go by `ks_q`; and
    with many images the slightest drift is significant, so go by the sizes `ks` and `psi` too.
    """
    with opened() as database:
        _load(database, before, after)
        return _drift(database, measure, sample)


def compare(
    out: Out,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    labels: str,
    settings: CompareSettings,
    watch: Watch,
) -> Compared:
    """Compare two finished runs, given their records; writes tables and pictures below `out`.

    `labels` is an inventory whose labels say which calls were right, or empty.
    """
    runs = str(before["run_id"]), str(after["run_id"])
    measure = measure_of(before, after)
    with opened() as database:
        _load(
            database, *(out.table(record["night"], record["run_id"]) for record in (before, after))
        )
        _pair(database, labels, settings)
        found = _products(database, measure, settings)
        products = pa.Table.from_pylist(found, PRODUCTS)
        movers = database.sql(_MOVERS, params={"by": settings.moved_by, "most": settings.movers})
        tables.write(out.comparison(*runs, "products"), PRODUCTS, [products])
        tables.write(out.comparison(*runs, "changes"), CHANGES, _read(database.sql(_CHANGES)))
        tables.write(out.comparison(*runs, "movers"), MOVERS, _read(movers))
        pictures: dict[str, str] = {}
        for row in _most_drifted(found, settings.pictures):
            pictures[row["product"]] = out.compared(*runs, row["product"])
            shift = _shift(database, row, before, after, measure)
            storage.write_bytes(pictures[row["product"]], figures.draw_shift(shift))
            watch("pictures", len(pictures), min(len(found), settings.pictures), 0)
    return Compared(products, tables.read(out.comparison(*runs, "movers")), pictures)


def _load(database: duckdb.DuckDBPyConnection, before: str, after: str) -> None:
    load(database, "a", before, _READ)
    load(database, "b", after, _READ)
    database.execute(
        "CREATE VIEW sides AS SELECT 'a' AS side, * FROM a UNION ALL SELECT 'b' AS side, * FROM b"
    )


def _read(answer: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    yield from answer.to_arrow_reader(2**16)


_COUNTS = """
    SELECT product,
           count(*) FILTER (side = 'a') AS images_a,
           count(*) FILTER (side = 'b') AS images_b,
           count(*) FILTER (side = 'a' AND status <> 'ok') AS failed_a,
           count(*) FILTER (side = 'b' AND status <> 'ok') AS failed_b,
           count(*) FILTER (side = 'a' AND is_anomalous) AS anomalous_a,
           count(*) FILTER (side = 'b' AND is_anomalous) AS anomalous_b
    FROM sides GROUP BY product ORDER BY product NULLS LAST
"""
_SAMPLED = """
    CREATE TABLE sampled AS
    WITH measured AS (
        SELECT side, product, image_id,
               CASE WHEN $measure = 'score' THEN score ELSE p_value END AS value
        FROM sides
    )
    SELECT side, product, value FROM measured WHERE value IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY side, product ORDER BY md5(image_id)) <= $sample
    ORDER BY product
"""


def _drift(database: duckdb.DuckDBPyConnection, measure: Measure, sample: int) -> pa.Table:
    database.execute(_SAMPLED, {"measure": measure, "sample": sample})
    rows = database.sql(_COUNTS).to_arrow_table().to_pylist()
    for number, row in enumerate(rows):
        values = {side: _values(database, side, row["product"]) for side in ("a", "b")}
        row["measure"] = measure
        for side, of_side in values.items():
            row[f"tested_{side}"] = len(of_side)
            row[f"median_{side}"] = float(np.median(of_side)) if len(of_side) else None
        rows[number] = row | measures.drift_between(values["a"], values["b"])._asdict()
    adjusted = measures.discoveries([row["ks_p"] for row in rows])
    for row, value in zip(rows, adjusted, strict=True):
        row["ks_q"] = value
    return pa.Table.from_pylist(rows, DRIFT)


def _values(database: duckdb.DuckDBPyConnection, side: str, product: str | None) -> Floats:
    query = "SELECT value FROM sampled WHERE side = $side AND product IS NOT DISTINCT FROM $product"
    answer = database.execute(query, {"side": side, "product": product})
    return np.asarray(answer.fetchnumpy()["value"], dtype=np.float64)


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
    for row in _drift(database, measure, settings.sample).to_pylist():
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
    pairs = _scored(database, product, figures.POINTS)
    kind = "score" if measure == "score" else "rank"
    return Shift(
        product,
        measure,
        before=_values(database, "a", product),
        after=_values(database, "b", product),
        pair_kind=kind,
        pairs=(pairs[f"{kind}_a"], pairs[f"{kind}_b"]),
        threshold=after.get("thresholds", {}).get(product) if measure == "score" else None,
        runs=(str(before["run_id"]), str(after["run_id"])),
        words=f"KS {row['ks']:.3f}, PSI {row['psi']:.3f}" if row["ks"] is not None else "",
    )
