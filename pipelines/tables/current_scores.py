"""The current scores: the newest valid row of each image under a model, over all nights."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa

from ops.archives.views import Views, detector_sql
from ops.results import region_table, score_table
from ops.storage import files, parquet, s3
from ops.storage.paths import Out
from ops.storage.storage_errors import StorageError
from pipelines.tables import condition, decided_images, decisions, gone, verdict_rules, worst_first
from pipelines.tables.database import QueryFailed
from pipelines.tables.database import opened as database_opened
from pipelines.tables.gone import Listing
from pipelines.tables.snapshot import TABLE, Snapshot, TablesChanged
from pipelines.tables.verdict_rules import VerdictRule

#: Defines `current_scores(model)` and `current_keys(model)`; people may run the same file.
MACROS = Path(__file__).parents[2] / "deploy" / "sql" / "duckdb.sql"
#: Defines `current_regions(model)`.
REGION_MACROS = MACROS.with_name("duckdb_regions.sql")
#: Defines `decided_scores(model)`.
DECIDED_MACROS = MACROS.with_name("duckdb_decided.sql")
#: Seconds before each further try to read tables of which one was replaced meanwhile.
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
T = TypeVar("T")
#: Columns of the current view.
VIEW = pa.schema(
    [
        *score_table.SCHEMA,
        parquet.column("is_new", pa.bool_(), "scored by the last night under the model", False),
        *decided_images.COLUMNS,
    ]
)
#: Few columns, so that the rows of a hundred million images can be ordered within little memory.
_KEPT = """
    WITH last AS (
        SELECT left(max_by(run_id, run_number), 10) AS night FROM scores_of($model)
    ),
    judged AS (
        SELECT current.* REPLACE (
            CASE WHEN rules.threshold IS NOT NULL THEN current.score > rules.threshold
                 WHEN rules.p_value IS NOT NULL THEN current.p_value <= rules.p_value
                 ELSE current.is_anomalous END AS is_anomalous),
            left(current.run_id, 10) = (SELECT night FROM last) AS is_new, floor
        FROM {rows} AS current
        LEFT JOIN rules ON {detector} = rules.detector
        LEFT JOIN floors ON {detector} = floors.detector
    ),
    kept AS (
        SELECT image_id, run_id, product, view, score, {sort_p_value}, is_anomalous, is_new,
               decided, decided_model_id
        FROM judged ANTI JOIN gone USING (image_id, run_id) {listed}
        WHERE ($product IS NULL OR nfc_normalize(product) = $product) AND (
            {where}
        )
    )
"""
_DISMISSED = """
    CREATE OR REPLACE TEMP TABLE dismissed AS {kept}
    SELECT image_id, run_id FROM kept WHERE {is_left_out}
"""
_CHOSEN = """
    CREATE OR REPLACE TEMP TABLE chosen AS {kept}
    SELECT image_id, run_id, is_anomalous, is_new, sort_p_value, turn
    FROM (SELECT *, {turn} FROM kept ANTI JOIN dismissed USING (image_id, run_id))
    ORDER BY {order} {limit}
"""
#: Of each image the run that holds its current row: several queries need them.
_KEYS = """
    CREATE OR REPLACE TEMP TABLE keys AS
    SELECT image_id, run_id, last_run, uri FROM current_keys($model)
"""
_CURRENT = """(
    SELECT scores.*, decided, decided_by, decided_when, decided_model_id
    FROM scores_of($model) AS scores SEMI JOIN keys USING (image_id, run_id)
    LEFT JOIN decided_keys USING (image_id, run_id)
)"""
_ROWS = """
    SELECT image_id, run_id, chosen.is_anomalous, is_new, sort_p_value, turn,
           scores.* EXCLUDE (image_id, run_id, is_anomalous),
           decided, decided_by, decided_when, decided_model_id
    FROM scores_of($model) AS scores JOIN chosen USING (image_id, run_id)
    LEFT JOIN decided_keys USING (image_id, run_id)
    ORDER BY {order}
"""


def published(out: Out) -> list[str]:
    """All published tables, oldest night first."""
    names = files.names(out.scores())
    return [files.join(out.scores(), name) for name in names if TABLE.fullmatch(name)]


@contextlib.contextmanager
def opened(
    out: Out, memory: str = "2GB", *others: str, regions: bool = False, labels: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the macros `current_scores(model)` and `current_keys(model)`.

    With `regions` it has `regions_of(model)` and `current_regions(model)` too; with `labels`,
    `image_decisions()` and `decided_scores(model)` know what people decided until now.

    It reads the tables that are published now, and spills to disk beyond `memory`. `others` are
    locations of further files that queries will read. For holders of the lock of the output folder,
    beside whom no table is removed; others use `read_consistently`. Raises UserError that names a
    table which cannot be read.
    """
    with _opened(out, Snapshot(out, regions), memory, *others, labels=labels) as database:
        yield database


def read_consistently(
    out: Out,
    read: Callable[[duckdb.DuckDBPyConnection, Callable[[], None]], T],
    memory: str = "2GB",
    *others: str,
    regions: bool = False,
    labels: bool = False,
) -> T:
    """The result of `read(database, check)`, for a database as `opened` gives it.

    If jobs.expire replaced or removed a table meanwhile, `read` is called again over the tables
    that are left. `check` raises TablesChanged then; `read` calls it before it shows what it read.
    Raises TablesChanged if tables never stay for the time of a call.
    """
    for pause in _PAUSES:
        try:
            return _read(out, read, memory, *others, regions=regions, labels=labels)
        except TablesChanged:
            time.sleep(pause)
    return _read(out, read, memory, *others, regions=regions, labels=labels)


def _read(
    out: Out,
    read: Callable[[duckdb.DuckDBPyConnection, Callable[[], None]], T],
    memory: str,
    *others: str,
    regions: bool,
    labels: bool,
) -> T:
    snapshot = Snapshot(out, regions)
    with _opened(out, snapshot, memory, *others, labels=labels) as database:
        result = read(database, snapshot.check)
    snapshot.check()
    return result


@contextlib.contextmanager
def _opened(
    out: Out, snapshot: Snapshot, memory: str, *others: str, labels: bool
) -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        tables = {"tables": snapshot.tables, "region_tables": snapshot.regions}
        schemas = {"tables": score_table.SCHEMA, "region_tables": region_table.SCHEMA}
        for name, schema in schemas.items():
            if not tables[name]:
                tables[name] = [os.path.join(folder, f"{name}.parquet")]
                parquet.write(tables[name][0], schema, [])
        for place in filter(None, others):
            with parquet.opened(place):  # says what is wrong with it, and is no pipe
                pass
        made = decisions.read(decisions.published(out) if labels else [])
        with _explaining(snapshot, others), database_opened(memory) as database:
            if any(map(s3.is_s3, (out.root, *others))):
                database.register_filesystem(s3.file_system())
            database.execute("SET preserve_insertion_order = false")  # keeping it takes memory
            database.execute("SET TimeZone = 'UTC'")
            for name, locations in tables.items():
                database.execute(f"SET VARIABLE {name} = $tables", {"tables": locations})
            decisions.define(database, made, folder)
            for file in (MACROS, REGION_MACROS, DECIDED_MACROS):
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


def find_keys(database: duckdb.DuckDBPyConnection, model_id: str) -> None:
    """Create the table `keys` of the current rows: `image_id`, `run_id`, `last_run` and `uri`."""
    database.execute(_KEYS, {"model": model_id})


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
    false_alarms: bool = True,
    held_out: Mapping[str, int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream current rows with the columns of `VIEW` in the order of `worst_first`.

    Rows of the last night under the model are new; with `new_first` they come before other rows of
    the same verdict. `where` is an expression over the columns (see `condition`). It sees the
    verdicts after `rules` are applied, which are by detector: by product, or by product and view
    with separate `views`. With `product` (in NFC), only its rows are returned.
    `only` is an inventory, one of `opened`'s `others`: images that it does not list are left out.
    Those that are gone from the archive by `listing`, another one of these, are too; the table
    `gone` has them. Without `false_alarms`, anomalous images that a person called false alarms
    under this model are left out, unless `where` asks for decisions; the table `dismissed` has
    them. `held_out`: the number of held-out units by detector, for the order. Raises SettingError
    if `where` is invalid.
    """
    asked = condition.check(database, where, VIEW.names) if where else set[str]()
    verdict_rules.register(database, rules)
    worst_first.register(database, held_out or {})
    within = ("is_new",) if new_first else ()
    leaves_out = not (false_alarms or asked & {*decided_images.COLUMNS.names})
    detector = f"nfc_normalize({detector_sql(views, 'current')})"
    kept = functools.partial(
        _KEPT.format,
        detector=detector,
        sort_p_value=worst_first.SORT_P_VALUE,
        listed="SEMI JOIN read_parquet($only) USING (image_id)" if only else "",
        where=where or "true",
    )
    dismissed = _DISMISSED.format(
        kept=kept(rows="decided_rows"),
        is_left_out=decided_images.DISMISSED if leaves_out else "false",
    )
    chosen = _CHOSEN.format(
        kept=kept(rows=_CURRENT),
        turn=worst_first.turn(*within, *(("view",) if views == "separate" else ())),
        order=worst_first.order(*within),
        limit=f"LIMIT {limit:d}" if limit is not None else "",
    )
    parameters = {"model": model_id, "product": product or None} | ({"only": only} if only else {})
    find_keys(database, model_id)
    gone.create(database, model_id, listing, "keys")
    decided_images.create(database, model_id)
    try:
        database.execute(dismissed, parameters)
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
