"""The current scores: the newest valid row of each image under a model, over all nights."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from ops.archives.views import Views, detector_sql
from ops.results import region_table, score_table
from ops.results.calibration import promised_rate
from ops.storage import files, parquet, s3
from ops.storage.paths import Out
from ops.storage.storage_errors import StorageError
from pipelines.tables import condition, gone, worst_first
from pipelines.tables.database import QueryFailed
from pipelines.tables.database import opened as database_opened
from pipelines.tables.gone import Listing
from pipelines.tables.snapshot import TABLE, Snapshot, TablesChanged

#: Defines `current_scores(model)` and `current_keys(model)`; people may run the same file.
MACROS = Path(__file__).parents[2] / "deploy" / "sql" / "duckdb.sql"
#: Defines `current_regions(model)`.
REGION_MACROS = MACROS.with_name("duckdb_regions.sql")
#: Seconds before each further try to read tables of which one was replaced meanwhile.
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
T = TypeVar("T")
#: Absorbs rounding: p-values are multiples of 1 / (1 + held-out images).
ROUNDING = 1e-12
#: Columns of the current view.
VIEW = pa.schema(
    [
        *score_table.SCHEMA,
        parquet.column("is_new", pa.bool_(), "scored by the last night under the model", False),
    ]
)
#: Few columns, so that the rows of a hundred million images can be ordered within little memory.
_CHOSEN = """
    CREATE OR REPLACE TEMP TABLE chosen AS
    WITH last AS (
        SELECT left(max_by(run_id, run_number), 10) AS night FROM scores_of($model)
    ),
    judged AS (
        SELECT current.* REPLACE (
            CASE WHEN rules.threshold IS NOT NULL THEN current.score > rules.threshold
                 WHEN rules.p_value IS NOT NULL THEN current.p_value <= rules.p_value
                 ELSE current.is_anomalous END AS is_anomalous),
            left(current.run_id, 10) = (SELECT night FROM last) AS is_new
        FROM current_scores($model) AS current
        LEFT JOIN rules ON nfc_normalize({detector}) = rules.product
    ),
    kept AS (
        SELECT image_id, run_id, product, view, score, p_value, is_anomalous, is_new
        FROM judged ANTI JOIN gone USING (image_id, run_id) {listed}
        WHERE ($product IS NULL OR nfc_normalize(product) = $product) AND (
            {where}
        )
    )
    SELECT image_id, run_id, is_anomalous, is_new, turn FROM (SELECT *, {turn} FROM kept)
    ORDER BY {order} {limit}
"""
_ROWS = """
    SELECT image_id, run_id, chosen.is_anomalous, is_new, turn,
           scores.* EXCLUDE (image_id, run_id, is_anomalous)
    FROM scores_of($model) AS scores JOIN chosen USING (image_id, run_id)
    ORDER BY {order}
"""


@dataclass(frozen=True)
class VerdictRule:
    """Replaces the verdicts of the rows of one detector.

    An image is anomalous if its score exceeds `threshold`, or its p-value is at most `p_value`.
    """

    threshold: float | None = None
    p_value: float | None = None

    @classmethod
    def at_rate(cls, false_alarm_rate: float, held_out: int) -> VerdictRule:
        """Gives the same verdicts as `Calibration.threshold` at this rate."""
        return cls(p_value=promised_rate(false_alarm_rate, held_out) + ROUNDING)


def published(out: Out) -> list[str]:
    """All published tables, oldest night first."""
    names = files.names(out.scores())
    return [files.join(out.scores(), name) for name in names if TABLE.fullmatch(name)]


@contextlib.contextmanager
def opened(
    out: Out, memory: str = "2GB", *others: str, regions: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the macros `current_scores(model)` and `current_keys(model)`.

    With `regions` it has `regions_of(model)` and `current_regions(model)` too.

    It reads the tables that are published now, and spills to disk beyond `memory`. `others` are
    locations of further files that queries will read. For holders of the lock of the output folder,
    beside whom no table is removed; others use `read_consistently`. Raises UserError that names a
    table which cannot be read.
    """
    with _opened(out, Snapshot(out, regions), memory, *others) as database:
        yield database


def read_consistently(
    out: Out,
    read: Callable[[duckdb.DuckDBPyConnection, Callable[[], None]], T],
    memory: str = "2GB",
    *others: str,
    regions: bool = False,
) -> T:
    """The result of `read(database, check)`, for a database as `opened` gives it.

    If jobs.expire replaced or removed a table meanwhile, `read` is called again over the tables
    that are left. `check` raises TablesChanged then; `read` calls it before it shows what it read.
    Raises TablesChanged if tables never stay for the time of a call.
    """
    for pause in _PAUSES:
        try:
            return _read(out, read, memory, *others, regions=regions)
        except TablesChanged:
            time.sleep(pause)
    return _read(out, read, memory, *others, regions=regions)


def _read(
    out: Out,
    read: Callable[[duckdb.DuckDBPyConnection, Callable[[], None]], T],
    memory: str,
    *others: str,
    regions: bool,
) -> T:
    snapshot = Snapshot(out, regions)
    with _opened(out, snapshot, memory, *others) as database:
        result = read(database, snapshot.check)
    snapshot.check()
    return result


@contextlib.contextmanager
def _opened(
    out: Out, snapshot: Snapshot, memory: str, *others: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        tables = {"tables": snapshot.tables, "region_tables": snapshot.regions}
        for name, schema in (
            ("tables", score_table.SCHEMA),
            ("region_tables", region_table.SCHEMA),
        ):
            if not tables[name]:
                tables[name] = [os.path.join(folder, f"{name}.parquet")]
                parquet.write(tables[name][0], schema, [])
        for place in filter(None, others):
            with parquet.opened(place):  # says what is wrong with it, and is no pipe
                pass
        with _explaining(snapshot, others), database_opened(memory) as database:
            if any(map(s3.is_s3, (out.root, *others))):
                database.register_filesystem(s3.file_system())
            database.execute("SET preserve_insertion_order = false")  # keeping it takes memory
            database.execute("SET TimeZone = 'UTC'")
            for name, locations in tables.items():
                database.execute(f"SET VARIABLE {name} = $tables", {"tables": locations})
            for file in (MACROS, REGION_MACROS):
                database.execute(file.read_text(encoding="utf-8"))
            yield database


@contextlib.contextmanager
def _explaining(snapshot: Snapshot, others: Sequence[str]) -> Iterator[None]:
    """Say why a query failed, which DuckDB does not always: a table was replaced, or is damaged."""
    try:
        yield
    except (QueryFailed, duckdb.Error, pa.ArrowException, OSError):
        snapshot.check()
        tables = [(table, score_table.SCHEMA.names) for table in snapshot.tables]
        tables += [(table, region_table.SCHEMA.names) for table in snapshot.regions]
        for place, columns in [*tables, *((other, []) for other in others if other)]:
            with contextlib.suppress(StorageError):  # not to be read now, which is no damage
                parquet.check_readable(place, columns)
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
    views: Views = "pooled",
    new_first: bool = True,
    listing: Listing | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream current rows with the columns of `VIEW` in the order of `worst_first`.

    Rows of the last night under the model are new; with `new_first` they come before other rows of
    the same verdict. `where` is an expression over the columns (see `condition`). It sees the
    verdicts after `rules` are applied, which are by detector: by product, or by product and view
    with separate `views`. With `product` (in NFC), only its rows are
    returned.
    `only` is an inventory, one of `opened`'s `others`: images that it does not list are left out.
    Those that are gone from the archive by `listing`, another one of these, are too; the table
    `gone` has them. Raises SettingError if `where` is invalid.
    """
    columns = {"product": pa.string(), "threshold": pa.float64(), "p_value": pa.float64()}
    replaced = [
        {"product": name, "threshold": rule.threshold, "p_value": rule.p_value}
        for name, rule in (rules or {}).items()
    ]
    if where:
        condition.check(database, where, VIEW.names)
    database.register("rules", pa.Table.from_pylist(replaced, pa.schema(list(columns.items()))))
    within = ("is_new",) if new_first else ()
    chosen = _CHOSEN.format(
        detector=detector_sql(views, "current"),
        listed="SEMI JOIN read_parquet($only) USING (image_id)" if only else "",
        where=where or "true",
        turn=worst_first.turn(*within, *(("view",) if views == "separate" else ())),
        order=worst_first.order(*within),
        limit=f"LIMIT {limit:d}" if limit is not None else "",
    )
    parameters = {"model": model_id, "product": product or None} | ({"only": only} if only else {})
    gone.create(database, model_id, listing)
    try:
        database.execute(chosen, parameters)
        rows = _ROWS.format(order=worst_first.order(*within))
        for batch in database.sql(rows, params={"model": model_id}).to_arrow_reader(2**16):
            yield from pa.Table.from_batches([batch]).select(VIEW.names).cast(VIEW).to_batches()
    except condition.ERRORS as error:
        if not where:
            raise
        raise condition.refusal(where, error) from None


def current(out: Out, model_id: str, where: str = "") -> pa.Table:
    """The current row of each image under a model, with the columns of `score_table.SCHEMA`.

    The table must fit into memory; `query` streams.
    """
    return read_consistently(
        out,
        lambda database, _: (
            pa.Table.from_batches(query(database, model_id, where=where), VIEW)
            .select(score_table.SCHEMA.names)
            .cast(score_table.SCHEMA)
        ),
    )
