"""The current scores: the newest valid row of each image under a model, over all nights."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from ops.errors import SettingError, UserError
from ops.results import score_table
from ops.results.calibration import promised_rate
from ops.storage import files, parquet, s3
from ops.storage.paths import Out
from ops.storage.storage_errors import StorageError
from pipelines.tables.database import opened as database_opened

#: Defines `current_scores(model)` and `current_keys(model)`; people may run the same file.
MACROS = Path(__file__).parents[2] / "deploy" / "sql" / "duckdb.sql"
#: Absorbs rounding: p-values are multiples of 1 / (1 + held-out images).
_ROUNDING = 1e-12


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
    tables = (name for name in names if name.rpartition("/")[2].startswith("part-"))
    return [files.join(out.scores(), name) for name in tables]


@contextlib.contextmanager
def opened(out: Out, memory: str = "2GB", *others: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the macros `current_scores(model)` and `current_keys(model)`.

    It reads the tables that are published now, and spills to disk beyond `memory`. `others` are
    locations of further files that queries will read.
    """
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        tables = published(out)
        if not tables:
            tables = [os.path.join(folder, "none.parquet")]
            parquet.write(tables[0], score_table.SCHEMA, [])
        with database_opened(memory) as database:
            if any(map(s3.is_s3, (out.root, *others))):
                database.register_filesystem(s3.file_system())
            database.execute("SET preserve_insertion_order = false")  # keeping it takes memory
            database.execute("SET TimeZone = 'UTC'")
            database.execute("SET VARIABLE tables = $tables", {"tables": tables})
            try:
                database.execute(MACROS.read_text(encoding="utf-8"))
                yield database
            except duckdb.OutOfMemoryException:
                raise
            except (duckdb.Error, pa.ArrowException):
                _check_whole(tables)
                raise


def _check_whole(tables: list[str]) -> None:
    """Raise UserError for a table that is no Parquet file, or whose rows cannot be decoded."""
    for location in tables:
        try:
            with parquet.opened(location) as table:
                for _ in table.iter_batches(2**16):
                    pass
        except StorageError:
            continue  # gone, or not readable now, which is no damage
        except (pa.ArrowException, OSError, UserError) as error:
            raise UserError(
                f"the published table {location} is damaged ({error}): restore it from a copy, or "
                "remove the file; the next night then scores its images again"
            ) from error


def query(
    database: duckdb.DuckDBPyConnection,
    model_id: str,
    *,
    where: str = "",
    limit: int | None = None,
    rules: Mapping[str, VerdictRule] | None = None,
    only: str = "",
) -> Iterator[pa.RecordBatch]:
    """Stream current rows with the columns of `score_table.SCHEMA`, in descending order of score.

    `where` is an SQL condition over the columns of the score table. It sees the verdicts after
    `rules` (by product) are applied. `only` is an inventory, one of `opened`'s `others`: images
    that it does not list are left out. Raises SettingError if `where` is invalid.
    """
    columns = {"product": pa.string(), "threshold": pa.float64(), "p_value": pa.float64()}
    rows = [
        {"product": product, "threshold": rule.threshold, "p_value": rule.p_value}
        for product, rule in (rules or {}).items()
    ]
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
        SELECT * FROM judged {listed} WHERE ({where or "true"})
        ORDER BY score DESC NULLS LAST, image_id {f"LIMIT {limit:d}" if limit is not None else ""}
    """  # noqa: S608 - the caller's own condition
    parameters = {"model": model_id} | ({"only": only} if only else {})
    try:
        batches = database.sql(sql, params=parameters).to_arrow_reader(2**16)
    except (duckdb.ParserException, duckdb.BinderException, duckdb.ConversionException) as error:
        raise SettingError(
            f"where {where!r} is not a condition over the score table: {error}"
        ) from None
    for batch in batches:
        table = pa.Table.from_batches([batch]).select(score_table.SCHEMA.names)
        yield from table.cast(score_table.SCHEMA).to_batches()


def current(out: Out, model_id: str, where: str = "") -> pa.Table:
    """The current row of each image under a model, with the columns of `score_table.SCHEMA`.

    The table must fit into memory; `query` streams.
    """
    with opened(out) as database:
        return pa.Table.from_batches(query(database, model_id, where=where), score_table.SCHEMA)
