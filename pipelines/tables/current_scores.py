"""The current scores: the newest valid row of each image under a model, over all nights."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
#: Seconds before each further try to read tables of which one was replaced meanwhile.
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
T = TypeVar("T")
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


class TablesChanged(UserError):
    """Tables were replaced or removed while they were read."""


class _Snapshot:
    """The tables that are published now, with their versions."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._versions = self._now()

    @property
    def tables(self) -> list[str]:
        return sorted(self._versions)

    def _now(self) -> dict[str, str]:
        place = self._out.scores()
        listed = files.listing(place) if files.is_folder(place) else ()
        return {
            files.join(place, item.name): item.version
            for item in listed
            if item.name.rpartition("/")[2].startswith("part-")
        }

    def check(self) -> None:
        """Raise TablesChanged if one of them was replaced or removed. New tables do not matter."""
        now = self._now()
        if any(now.get(table) != version for table, version in self._versions.items()):
            raise TablesChanged(
                f"jobs.expire went on replacing tables in {self._out.scores()} while they were "
                "read; start the same command again when it has ended"
            )


@contextlib.contextmanager
def opened(out: Out, memory: str = "2GB", *others: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the macros `current_scores(model)` and `current_keys(model)`.

    It reads the tables that are published now, and spills to disk beyond `memory`. `others` are
    locations of further files that queries will read. For holders of the lock of the output folder,
    beside whom no table is removed; others use `read_consistently`.
    """
    with _opened(out, _Snapshot(out), memory, *others) as database:
        yield database


def read_consistently(
    out: Out,
    read: Callable[[duckdb.DuckDBPyConnection, Callable[[], None]], T],
    memory: str = "2GB",
    *others: str,
) -> T:
    """The result of `read(database, check)`, for a database as `opened` gives it.

    If jobs.expire replaced or removed a table meanwhile, `read` is called again over the tables
    that are left. `check` raises TablesChanged then; `read` calls it before it shows what it read.
    Raises TablesChanged if tables never stay for the time of a call.
    """
    for pause in _PAUSES:
        try:
            return _read(out, read, memory, *others)
        except TablesChanged:
            time.sleep(pause)
    return _read(out, read, memory, *others)


def _read(
    out: Out,
    read: Callable[[duckdb.DuckDBPyConnection, Callable[[], None]], T],
    memory: str,
    *others: str,
) -> T:
    snapshot = _Snapshot(out)
    with _opened(out, snapshot, memory, *others) as database:
        result = read(database, snapshot.check)
    snapshot.check()
    return result


@contextlib.contextmanager
def _opened(
    out: Out, snapshot: _Snapshot, memory: str, *others: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        tables = snapshot.tables
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
            except (duckdb.Error, pa.ArrowException, OSError):
                snapshot.check()
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
    return read_consistently(
        out,
        lambda database, _: pa.Table.from_batches(
            query(database, model_id, where=where), score_table.SCHEMA
        ),
    )
