"""Drift: how the distribution of each product's scores differs between runs, or models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa

from ops.archives.views import Views, detector_sql
from ops.results import drift as measures
from ops.results.metrics import Floats
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores

Measure = Literal["score", "p_value"]
#: Maximum number of scores per product and side for tests and correlations.
SAMPLE = 100_000
#: Columns of the tables `a` and `b`, in part.
READ = ("image_id", "uri", "product", "status", "score", "p_value", "is_anomalous")


def schema(name: str, *columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    """A named table's schema: name, type and meaning of each column."""
    return pa.schema([parquet.column(*each) for each in columns], metadata={"nightloupe": name})


COUNT, REAL, TEXT = pa.int64(), pa.float64(), pa.string()
#: One row per product of either side: of runs, or of models in a comparison of these.
DRIFT = schema(
    "drift 1",
    ("product", TEXT, "null: images whose path names none"),
    ("images_a", COUNT, "rows of the first side"),
    ("images_b", COUNT, "rows of the second side"),
    ("failed_a", COUNT, "of these, images without a score"),
    ("failed_b", COUNT, "of these, images without a score"),
    ("anomalous_a", COUNT, "of these, anomalous images"),
    ("anomalous_b", COUNT, "of these, anomalous images"),
    ("measure", TEXT, "what the columns below compare: score, or p_value if models differ"),
    (
        "tested_a",
        COUNT,
        "number of values compared; if there are more, a sample by a hash of the ids",
    ),
    (
        "tested_b",
        COUNT,
        "number of values compared; if there are more, a sample by a hash of the ids",
    ),
    ("median_a", REAL, "of the values compared"),
    ("median_b", REAL, "of the values compared"),
    ("ks", REAL, "Kolmogorov-Smirnov distance, 0 to 1; null if one side has no values"),
    ("ks_p", REAL, "its p-value, for this product alone"),
    ("ks_q", REAL, "its p-value adjusted for all products (Benjamini and Hochberg 1995)"),
    ("wasserstein", REAL, "Wasserstein distance: mean shift of the values, in their unit"),
    (
        "psi",
        REAL,
        "population stability index; by convention above 0.1 is slight, above 0.25 marked",
    ),
)


def measure_of(model_before: str, model_after: str) -> Measure:
    """The column whose values can be compared between rows of two models, given their ids.

    Scores of different models have different units, so their p-values are compared.
    """
    return "score" if model_before == model_after else "p_value"


#: Creates the view of both tables.
SIDES = "CREATE VIEW sides AS SELECT 'a' AS side, * FROM a UNION ALL SELECT 'b' AS side, * FROM b"
_EARLIER_MODEL = """
    SELECT model_id FROM read_parquet(getvariable('tables'), hive_partitioning = false)
    WHERE run_id NOT IN (SELECT unnest($excluded))
    GROUP BY model_id ORDER BY model_id = $model DESC, max(run_number) DESC LIMIT 1
"""
_COLUMNS = ", ".join((*READ, "run_id", "run_number"))
#: With separate views each of them is a product of its own.
_ROWS = f"""
    SELECT {_COLUMNS} FROM (SELECT * REPLACE ({{detector}} AS product) FROM scores_of($model)) WHERE
"""  # noqa: S608 - only names from this file
#: Keeps the row of the last run, if several runs of a night scored an address.
_LAST = """
    QUALIFY list_position($runs, run_id) = max(list_position($runs, run_id)) OVER (PARTITION BY uri)
"""


def drift_of_run(
    out: Out, run_id: str, model_id: str, sample: int = SAMPLE, views: Views = "pooled"
) -> pa.Table:
    """How a published run's scores differ from all earlier ones.

    Returns a row of `DRIFT` per product, and no row for a first run. Earlier scores are those of
    the same model. If there are none, p-values are compared with those of the model that was used
    last. Of more than `sample` values per product and side, those with the lowest hashes of their
    image ids are compared. With many products some p-values are small by chance: use `ks_q`. With
    many images a negligible drift is significant: use the sizes `ks` and `psi` as well.
    """
    with current_scores.opened(out) as database:
        measure = load_runs(database, [run_id], model_id, views=views)
        return drift_of(database, measure, sample) if measure else DRIFT.empty_table()


def load_runs(
    database: duckdb.DuckDBPyConnection,
    runs: Sequence[str],
    model_id: str,
    later: Sequence[str] = (),
    views: Views = "pooled",
) -> Measure | None:
    """Create the tables `b` (rows of `runs`) and `a` (earlier rows), and the view `sides` of both.

    `database` is one of `current_scores.opened`. `runs` are of one model, in order of their start;
    `later` are runs that started after them. With separate `views`, those of the runs' model, the
    product of a row is the name of its detector. Returns the column that can be compared, or None
    if there are no earlier rows.
    """
    excluded = [*runs, *later]
    answer = database.execute(_EARLIER_MODEL, {"excluded": excluded, "model": model_id}).fetchone()
    earlier_model = answer[0] if answer else None
    last = _LAST if len(runs) > 1 else ""
    rows = _ROWS.format(detector=detector_sql(views))
    query = f"CREATE TABLE b AS {rows} run_id IN (SELECT unnest($runs)) {last}"
    database.execute(query, {"runs": list(runs), "model": model_id})
    query = f"CREATE TABLE a AS {rows} run_id NOT IN (SELECT unnest($excluded))"
    database.execute(query, {"excluded": excluded, "model": earlier_model or model_id})
    database.execute(SIDES)
    if earlier_model is None:
        return None
    return "score" if earlier_model == model_id else "p_value"


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


def drift_of(database: duckdb.DuckDBPyConnection, measure: Measure, sample: int) -> pa.Table:
    """A row of `DRIFT` per product, from the view `sides`; also creates the table `sampled`."""
    database.execute(_SAMPLED, {"measure": measure, "sample": sample})
    rows = database.sql(_COUNTS).to_arrow_table().to_pylist()
    for number, row in enumerate(rows):
        values = {side: values_of(database, side, row["product"]) for side in ("a", "b")}
        row["measure"] = measure
        for side, sample_values in values.items():
            row[f"tested_{side}"] = len(sample_values)
            row[f"median_{side}"] = float(np.median(sample_values)) if len(sample_values) else None
        rows[number] = row | measures.drift_between(values["a"], values["b"])._asdict()
    adjusted = measures.adjusted_p_values([row["ks_p"] for row in rows])
    for row, p_value in zip(rows, adjusted, strict=True):
        row["ks_q"] = p_value
    return pa.Table.from_pylist(rows, DRIFT)


def values_of(database: duckdb.DuckDBPyConnection, side: str, product: str | None) -> Floats:
    """The values of a product on one side that `drift_of` sampled."""
    query = "SELECT value FROM sampled WHERE side = $side AND product IS NOT DISTINCT FROM $product"
    answer = database.execute(query, {"side": side, "product": product})
    return np.asarray(answer.fetchnumpy()["value"], dtype=np.float64)
