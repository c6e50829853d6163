"""The current scores: the newest valid row of each image under a model, over all nights."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from ops.results import score_table
from ops.results.calibration import promised_rate
from ops.storage import files, parquet, s3
from ops.storage.paths import Out
from pipelines.tables import condition
from pipelines.tables.database import QueryFailed
from pipelines.tables.database import opened as database_opened

#: Defines `current_scores(model)` and `current_keys(model)`; people may run the same file.
MACROS = Path(__file__).parents[2] / "deploy" / "sql" / "duckdb.sql"
#: Where a published table lies; other files, of systems and editors, are left alone.
_TABLE = re.compile(r"(?:.*/)?part-\d+\.parquet", re.ASCII)
#: Absorbs rounding: p-values are multiples of 1 / (1 + held-out images).
_ROUNDING = 1e-12
#: Errors of DuckDB at a condition whose types do not fit, or whose values do not.
_OF_A_CONDITION = (
    *(duckdb.BinderException, duckdb.ConversionException, duckdb.ParserException),
    *(duckdb.OutOfRangeException, duckdb.NotImplementedException, duckdb.InvalidInputException),
)


@dataclass(frozen=True)
class VerdictRule:
    """Replaces the verdicts of one product's rows.

    An image is anomalous if its score exceeds `threshold`, or its p-value is at most `p_value`.
    """

    threshold: float | None = None
    p_value: float | None = None

    @classmethod
    def at_rate(cls, false_alarm_rate: float, held_out: int) -> VerdictRule:
        """Gives the same verdicts as `Calibration.threshold` at this rate."""
        return cls(p_value=promised_rate(false_alarm_rate, held_out) + _ROUNDING)


def published(out: Out) -> list[str]:
    """All published tables, oldest night first."""
    names = files.names(out.scores())
    return [files.join(out.scores(), name) for name in names if _TABLE.fullmatch(name)]


@contextlib.contextmanager
def opened(out: Out, memory: str = "2GB", *others: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the macros `current_scores(model)` and `current_keys(model)`.

    It reads the tables that are published now, and spills to disk beyond `memory`. `others` are
    locations of further files that queries will read. Raises UserError that names a table which
    cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        tables = published(out)
        if not tables:
            tables = [os.path.join(folder, "none.parquet")]
            parquet.write(tables[0], score_table.SCHEMA, [])
        for place in filter(None, others):
            with parquet.opened(place):  # says what is wrong with it, and is no pipe
                pass
        with _naming_damage((*tables, *others)), database_opened(memory) as database:
            if any(map(s3.is_s3, (out.root, *others))):
                database.register_filesystem(s3.file_system())
            database.execute("SET preserve_insertion_order = false")  # keeping it takes memory
            database.execute("SET TimeZone = 'UTC'")
            database.execute("SET VARIABLE tables = $tables", {"tables": tables})
            database.execute(MACROS.read_text(encoding="utf-8"))
            yield database


@contextlib.contextmanager
def _naming_damage(tables: Sequence[str]) -> Iterator[None]:
    """Name the table that made a query fail: DuckDB does not always say which one it is."""
    try:
        yield
    except QueryFailed:
        for place in tables:
            parquet.check_readable(place)
        raise


def query(
    database: duckdb.DuckDBPyConnection,
    model_id: str,
    *,
    where: str = "",
    product: str = "",
    limit: int | None = None,
    rules: Mapping[str, VerdictRule] | None = None,
    only: str = "",
) -> Iterator[pa.RecordBatch]:
    """Stream current rows with the columns of `score_table.SCHEMA`, in descending order of score.

    `where` is an expression over the columns of the score table (see `condition`). It sees the
    verdicts after `rules` (by product) are applied. With `product` (in NFC), only its rows are
    returned.
    `only` is an inventory, one of `opened`'s `others`: images that it does not list are left out.
    Raises SettingError if `where` is invalid.
    """
    columns = {"product": pa.string(), "threshold": pa.float64(), "p_value": pa.float64()}
    rows = [
        {"product": name, "threshold": rule.threshold, "p_value": rule.p_value}
        for name, rule in (rules or {}).items()
    ]
    if where:
        condition.check(database, where, score_table.SCHEMA.names)
    database.register("rules", pa.Table.from_pylist(rows, pa.schema(list(columns.items()))))
    listed = "SEMI JOIN read_parquet($only) USING (image_id)" if only else ""
    sql = f"""
        WITH judged AS (
            SELECT current.* REPLACE (
                CASE WHEN rules.threshold IS NOT NULL THEN current.score > rules.threshold
                     WHEN rules.p_value IS NOT NULL THEN current.p_value <= rules.p_value
                     ELSE current.is_anomalous END AS is_anomalous)
            FROM current_scores($model) AS current
            LEFT JOIN rules ON nfc_normalize(current.product) = rules.product
        )
        SELECT * FROM judged {listed}
        WHERE ($product IS NULL OR nfc_normalize(product) = $product) AND (
            {where or "true"}
        )
        ORDER BY score DESC NULLS LAST, image_id {f"LIMIT {limit:d}" if limit is not None else ""}
    """  # noqa: S608 - `where` was checked
    parameters = {"model": model_id, "product": product or None} | ({"only": only} if only else {})
    try:
        for batch in database.sql(sql, params=parameters).to_arrow_reader(2**16):
            table = pa.Table.from_batches([batch]).select(score_table.SCHEMA.names)
            yield from table.cast(score_table.SCHEMA).to_batches()
    except _OF_A_CONDITION as error:
        if not where:
            raise
        raise condition.refusal(where, error) from None


def current(out: Out, model_id: str, where: str = "") -> pa.Table:
    """The current row of each image under a model, with the columns of `score_table.SCHEMA`.

    The table must fit into memory; `query` streams.
    """
    with opened(out) as database:
        return pa.Table.from_batches(query(database, model_id, where=where), score_table.SCHEMA)
