"""Removing rows of old nights, and maps, that no current score needs."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ops.errors import UserError
from ops.results import region_table, score_table
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.tables import current_scores, run_records

_TABLE = re.compile(r"night=(\d{4}-\d\d-\d\d)/run=([^/]+)/part-\d+\.parquet", re.ASCII)
#: Rows that are kept: the current ones of each model. Of a retired model, only those whose URI has
#: no score under another model.
_CREATE_KEPT = """
    CREATE TEMP TABLE kept (uri VARCHAR, image_id VARCHAR, run_id VARCHAR, status VARCHAR)
"""
#: Includes the newest row of each current image, because it makes the image current.
_KEEP_CURRENT = """
    INSERT INTO kept
    SELECT uri, image_id, unnest([run_id, last_run]), status FROM current_keys($model)
"""
_KEEP_RETIRED = f"""{_KEEP_CURRENT} AS keys
    WHERE uri NOT IN (SELECT uri FROM kept WHERE status = 'ok')
"""  # noqa: S608 - no value in it
#: A run's table has one number in all rows.
_NUMBERS = """
    SELECT filename, max(run_number)
    FROM read_parquet($tables, hive_partitioning = false, filename = true) GROUP BY filename
"""
_COUNT = "SELECT count(*) FROM read_parquet($table, hive_partitioning = false) AS rows"
_IF_KEPT = "SEMI JOIN kept ON rows.image_id = kept.image_id AND rows.run_id = kept.run_id"
_UNNEEDED_MAPS = """
    WITH removed AS (
        SELECT * FROM read_parquet($expired, hive_partitioning = false) AS rows ANTI JOIN kept
            ON rows.image_id = kept.image_id AND rows.run_id = kept.run_id
        WHERE map_uri IS NOT NULL
    ),
    needed AS (
        SELECT map_uri FROM read_parquet($complete, hive_partitioning = false)
        UNION ALL
        SELECT map_uri FROM read_parquet($expired, hive_partitioning = false) AS rows SEMI JOIN kept
            ON rows.image_id = kept.image_id AND rows.run_id = kept.run_id
    )
    SELECT DISTINCT map_uri, model_id, image_id FROM removed ANTI JOIN needed USING (map_uri)
"""


class Refused(UserError):
    """It is not certain what may be removed, so nothing is."""


@dataclass(frozen=True)
class ExpiredTable:
    """The table of an old run, some rows of which are no longer needed."""

    table: str
    regions: str
    """The table of the run's regions."""
    run_id: str
    rows: int
    kept_rows: int


@dataclass(frozen=True)
class Expired:
    """What is removed, or would be."""

    tables: tuple[ExpiredTable, ...]
    maps: int
    """Number of anomaly maps."""


def expire(
    out: Out,
    keep_nights: int,
    retired: Sequence[str],
    remove: bool,
    check: Callable[[], None] = lambda: None,
    memory: str = "2GB",
) -> Expired:
    """Find what the newest `keep_nights` nights made superfluous; with `remove`, remove it.

    A table of an older night is replaced by one with only the rows that are still current, or
    removed if it has none, and so are its regions. A map is removed if no remaining row names it.
    Readers see a table either before or after its replacement. If the process is killed, the next
    call completes the work. `check` is called before each removal and may raise. Raises Refused.
    """
    if keep_nights < 1:
        raise Refused(f"keep_nights {keep_nights} must be at least 1")
    old, new = _split_tables(out, keep_nights)
    _check_removable(out, retired)
    if not old:
        return Expired((), 0)
    with current_scores.opened(out, memory) as database:
        _mark_kept_rows(database, [*old, *new], retired)
        tables = [_count_rows(database, out, table) for table in old]
        expired = [table for table in tables if table.kept_rows < table.rows]
        # Readers of a run see by its record that its maps and rows go. Maps and regions come before
        # scores: once a table is replaced, nothing says that they are still to be removed.
        if remove:
            _check_removable(out, retired)  # again, because the queries may take minutes
            for table in expired:
                check()
                _note(out, table)
        maps = _expire_maps(database, out, [each.table for each in expired], [*new, *old], remove)
        if remove:
            for table in expired:
                check()
                _replace(database, table)
    return Expired(tuple(expired), maps)


def _split_tables(out: Out, keep_nights: int) -> tuple[list[str], list[str]]:
    """Published tables of old nights, and of the newest `keep_nights`.

    The newest are those of the last runs, whatever their dates.
    """
    tables = current_scores.published(out)
    nights = {}
    for table in tables:
        match = _TABLE.fullmatch(table.removeprefix(f"{out.scores()}/"))
        if match is None:
            raise Refused(f"{table} is not the table of a night, so nothing is removed")
        nights[table] = match[1]
    numbers: dict[str, int] = {}
    if tables:
        with current_scores.opened(out) as database:
            for table, number in database.execute(_NUMBERS, {"tables": tables}).fetchall():
                numbers[nights[table]] = max(number, numbers.get(nights[table], 0))
    newest = sorted(numbers, key=lambda night: (numbers[night], night))[-keep_nights:]
    return (
        [table for table in tables if nights[table] not in newest],
        [table for table in tables if nights[table] in newest],
    )


def _check_removable(out: Out, retired: Sequence[str]) -> None:
    work = out.work()
    names = [item.name for item in files.listing(work)] if files.is_folder(work) else []
    if unfinished := sorted({name.split("/")[0] for name in names}):
        raise Refused(
            f"{', '.join(unfinished)} under {work} are unfinished, and may need what would be "
            "removed; finish them, or remove their folders"
        )
    if retired and (model := run_records.finished(out)["model_id"]) in retired:
        raise Refused(f"{model} is the model of the latest run, so it is not retired")


def _mark_kept_rows(
    database: duckdb.DuckDBPyConnection, tables: list[str], retired: Sequence[str]
) -> None:
    """Fill the table `kept`; retired models last."""
    database.execute(_CREATE_KEPT)
    query = "SELECT DISTINCT model_id FROM read_parquet($tables)"
    rows = database.execute(query, {"tables": tables}).fetchall()
    models = sorted(model for (model,) in rows)
    if unknown := set(retired) - set(models):
        raise Refused(f"retired models {sorted(unknown)} have no rows; those with: {models}")
    for model in sorted(models, key=lambda model: model in retired):
        database.execute(_KEEP_RETIRED if model in retired else _KEEP_CURRENT, {"model": model})


def _count_rows(database: duckdb.DuckDBPyConnection, out: Out, table: str) -> ExpiredTable:
    (rows,), (kept,) = (
        database.execute(query, {"table": table}).fetchone() or (0,)
        for query in (_COUNT, f"{_COUNT} {_IF_KEPT}")
    )
    run_id = table.rsplit("/run=", 1)[1].split("/", 1)[0]
    night = table.rsplit("/night=", 1)[1].split("/", 1)[0]
    return ExpiredTable(table, out.region_table(night, run_id), run_id, rows, kept)


def _expire_maps(
    database: duckdb.DuckDBPyConnection,
    out: Out,
    expired: list[str],
    tables: list[str],
    remove: bool,
) -> int:
    """Count the maps that no remaining row names; with `remove`, remove them and their overlays."""
    if not expired:
        return 0
    complete = [table for table in tables if table not in set(expired)]
    if not complete:
        raise Refused("every table would lose rows, so nothing is removed")

    def expire_map(row: tuple[str, str, str]) -> bool:
        uri, model_id, image_id = row
        location = out.map(model_id, image_id)
        if uri != uris.make(location):  # a map outside of the output folder is not removed
            return False
        if remove:
            files.remove_file(location)
            files.remove_file(out.overlay(model_id, image_id))
        return True

    answer = database.execute(_UNNEEDED_MAPS, {"expired": expired, "complete": complete})
    count = 0
    with ThreadPoolExecutor(16) as pool:
        while rows := answer.fetchmany(4096):
            count += sum(pool.map(expire_map, rows))
    return count


def _note(out: Out, expired: ExpiredTable) -> None:
    """Note in a run's record that its rows are removed."""
    if files.exists(out.run(expired.run_id)):
        record = files.read_json(out.run(expired.run_id))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record["expired"] = {"at": now, "rows": expired.kept_rows}
        files.write_json(out.run(expired.run_id), record)


def _replace(database: duckdb.DuckDBPyConnection, expired: ExpiredTable) -> None:
    """Replace a run's tables by those of the rows that are kept, or remove them."""
    for table, schema, order in (
        (expired.regions, region_table.SCHEMA, "image_id, number"),
        (expired.table, score_table.SCHEMA, "product NULLS LAST, uri"),
    ):
        if not expired.kept_rows:
            files.remove_file(table)
        elif table == expired.table or files.exists(table):
            parquet.write(table, schema, _kept_rows(database, table, order))


def _kept_rows(
    database: duckdb.DuckDBPyConnection, table: str, order: str
) -> Iterator[pa.RecordBatch]:
    query = f"{_COUNT.replace('count(*)', 'rows.*')} {_IF_KEPT} ORDER BY {order}"
    yield from database.sql(query, params={"table": table}).to_arrow_reader(2**16)
