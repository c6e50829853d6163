"""How the scores of two runs differ as a whole, product by product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from ops.results import drift as measures
from ops.results.metrics import Floats
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores
from pipelines.tables.database import load

Measure = Literal["score", "p_value"]
#: Scores per product and run that tests and correlations rest on, at most.
SAMPLE = 100_000
_READ = ("image_id", "uri", "product", "status", "score", "p_value", "is_anomalous")


def schema(name: str, *columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    """A named table's schema: name, type and meaning of each column."""
    return pa.schema([parquet.column(*each) for each in columns], metadata={"nightloupe": name})


COUNT, REAL, TEXT = pa.int64(), pa.float64(), pa.string()
#: One row per product of either run.
DRIFT = schema(
    "drift 1",
    ("product", TEXT, "null: images whose path names none"),
    ("images_a", COUNT, "rows of the first run"),
    ("images_b", COUNT, "rows of the second run"),
    ("failed_a", COUNT, "of these without a score"),
    ("failed_b", COUNT, "of these without a score"),
    ("anomalous_a", COUNT, "of these called anomalous"),
    ("anomalous_b", COUNT, "of these called anomalous"),
    ("measure", TEXT, "what is tested below: score, or p_value where models differ"),
    ("tested_a", COUNT, "values tested; a sample by a hash of the ids if there were more"),
    ("tested_b", COUNT, "values tested; a sample by a hash of the ids if there were more"),
    ("median_a", REAL, "of the values tested"),
    ("median_b", REAL, "of the values tested"),
    ("ks", REAL, "Kolmogorov-Smirnov distance, 0 to 1; null if one run has no values"),
    ("ks_p", REAL, "its p-value, of this product by itself"),
    ("ks_q", REAL, "its p-value adjusted for all products (Benjamini and Hochberg 1995)"),
    ("wasserstein", REAL, "how far values moved on average, in their own unit"),
    ("psi", REAL, "population stability index; above 0.1 slight, above 0.25 marked, by custom"),
)


def measure_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> Measure:
    """What can be compared in value between two runs, given their records.

    Raw scores of different models have no common unit; their p-values have.
    """
    return "score" if before["model_id"] == after["model_id"] else "p_value"


_SIDES = "CREATE VIEW sides AS SELECT 'a' AS side, * FROM a UNION ALL SELECT 'b' AS side, * FROM b"
_EARLIER_MODEL = """
    SELECT model_id FROM read_parquet(getvariable('tables'), hive_partitioning = false)
    WHERE run_id NOT IN (SELECT unnest($apart))
    GROUP BY model_id ORDER BY model_id = $model DESC, max(scored_at) DESC LIMIT 1
"""
_COLUMNS = ", ".join((*_READ, "run_id", "scored_at"))
_ROWS = f"SELECT {_COLUMNS} FROM scores_of($model) WHERE"  # noqa: S608 - columns of ours
#: Of an address that several runs of one night hold, the last has its say.
_LAST = """
    QUALIFY list_position($runs, run_id) = max(list_position($runs, run_id)) OVER (PARTITION BY uri)
"""


def drift_of_run(out: Out, run_id: str, model_id: str, sample: int = SAMPLE) -> pa.Table:
    """How a published run's scores differ from all that were published before it.

    Returns a row of `DRIFT` per product; none for a first run. Earlier are the rows under the same
    model; if there are none, those under the model that was used last, by p-values. Of more than
    `sample` values per product and side a sample is tested, the lowest hashes of the images' ids.
    One test in twenty is below p = 0.05 by chance alone, so with many products go by `ks_q`; and
    with many images the slightest drift is significant, so go by the sizes `ks` and `psi` too.
    """
    with current_scores.opened(out) as database:
        measure = load_runs(database, [run_id], model_id)
        return drift_of(database, measure, sample) if measure else DRIFT.empty_table()


def load_runs(
    database: duckdb.DuckDBPyConnection,
    runs: Sequence[str],
    model_id: str,
    later: Sequence[str] = (),
) -> Measure | None:
    """Rows of runs as `b`, all that was published before them as `a`, and both as `sides`.

    `database` is one that `history.opened`; `runs`, of one model, are in the order of their start,
    and `later` are those that came after. Returns what can be compared; None without any before.
    """
    apart = [*runs, *later]
    asked = {"apart": apart, "model": model_id}
    before = database.execute(_EARLIER_MODEL, asked).fetchone()
    last = _LAST if len(runs) > 1 else ""
    query = f"CREATE TABLE b AS {_ROWS} run_id IN (SELECT unnest($runs)) {last}"
    database.execute(query, {"runs": list(runs), "model": model_id})
    asked["model"] = before[0] if before else model_id
    database.execute(f"CREATE TABLE a AS {_ROWS} run_id NOT IN (SELECT unnest($apart))", asked)
    database.execute(_SIDES)
    if before is None:
        return None
    return "score" if before[0] == model_id else "p_value"


def load_sides(database: duckdb.DuckDBPyConnection, before: str, after: str) -> None:
    """The score tables `a` and `b`, and both as `sides`."""
    load(database, "a", before, _READ)
    load(database, "b", after, _READ)
    database.execute(_SIDES)


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
    """A row of `DRIFT` per product, of the tables `a` and `b` and the view `sides` of both."""
    database.execute(_SAMPLED, {"measure": measure, "sample": sample})
    rows = database.sql(_COUNTS).to_arrow_table().to_pylist()
    for number, row in enumerate(rows):
        values = {side: values_of(database, side, row["product"]) for side in ("a", "b")}
        row["measure"] = measure
        for side, of_side in values.items():
            row[f"tested_{side}"] = len(of_side)
            row[f"median_{side}"] = float(np.median(of_side)) if len(of_side) else None
        rows[number] = row | measures.drift_between(values["a"], values["b"])._asdict()
    adjusted = measures.adjusted_p_values([row["ks_p"] for row in rows])
    for row, value in zip(rows, adjusted, strict=True):
        row["ks_q"] = value
    return pa.Table.from_pylist(rows, DRIFT)


def values_of(database: duckdb.DuckDBPyConnection, side: str, product: str | None) -> Floats:
    """The values of a product in one run that `drift_of` sampled."""
    query = "SELECT value FROM sampled WHERE side = $side AND product IS NOT DISTINCT FROM $product"
    answer = database.execute(query, {"side": side, "product": product})
    return np.asarray(answer.fetchnumpy()["value"], dtype=np.float64)
