"""Letting old nights go, but never the current score of an image."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ops.errors import UserError
from ops.results import score_table
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.tables import current_scores, run_records

_TABLE = re.compile(r"night=(\d{4}-\d\d-\d\d)/run=([^/]+)/part-\d+\.parquet")
#: Rows that stay: current under their model. Those of a retired model stay only where no other has
#: a score of that address.
_STAYING = """
    CREATE TEMP TABLE staying (uri VARCHAR, image_id VARCHAR, run_id VARCHAR, status VARCHAR)
"""
#: With the newest row of each such image: it is what says that the image is current.
_CURRENT = """
    INSERT INTO staying
    SELECT uri, image_id, unnest([run_id, last_run]), status FROM current_keys($model)
"""
_ORPHANED = f"""{_CURRENT} AS keys
    WHERE uri NOT IN (SELECT uri FROM staying WHERE status = 'ok')
"""  # noqa: S608 - no value in it
_ROWS = "SELECT count(*) FROM read_parquet($table, hive_partitioning = false) AS rows"
_STAY = "SEMI JOIN staying ON rows.image_id = staying.image_id AND rows.run_id = staying.run_id"
_MAPS = """
    WITH gone AS (
        SELECT * FROM read_parquet($old, hive_partitioning = false) AS rows ANTI JOIN staying
            ON rows.image_id = staying.image_id AND rows.run_id = staying.run_id
        WHERE map_uri IS NOT NULL
    ),
    needed AS (
        SELECT map_uri FROM read_parquet($new, hive_partitioning = false)
        UNION ALL
        SELECT map_uri FROM read_parquet($old, hive_partitioning = false) AS rows SEMI JOIN staying
            ON rows.image_id = staying.image_id AND rows.run_id = staying.run_id
    )
    SELECT DISTINCT map_uri, model_id, image_id FROM gone ANTI JOIN needed USING (map_uri)
"""


class Refused(UserError):
    """What to remove is not clear, so nothing is."""


@dataclass(frozen=True)
class Leaving:
    """What an old table loses."""

    table: str
    run_id: str
    rows: int
    staying: int


@dataclass(frozen=True)
class Expired:
    """What goes, or went."""

    tables: tuple[Leaving, ...]
    maps: int


def expire(
    out: Out,
    keep_nights: int,
    retired: Sequence[str],
    remove: bool,
    check: Callable[[], None] = lambda: None,
    memory: str = "2GB",
) -> Expired:
    """Find, and with `remove` also remove, what the newest `keep_nights` nights made superfluous.

    An old table is replaced by one of its rows that are still current, or removed if it has none;
    maps go that no remaining row names. Readers see each table as it was or as it will be. One that
    was killed is finished by the next. `check` is called before things go, and may raise. Raises
    Refused.
    """
    if keep_nights < 1:
        raise Refused(f"keep_nights {keep_nights} must be at least 1")
    old, new = _split(out, keep_nights)
    _check(out, retired)
    if not old:
        return Expired((), 0)
    with current_scores.opened(out, memory) as database:
        database.execute(_STAYING)
        found = database.execute("SELECT DISTINCT model_id FROM read_parquet($t)", {"t": old + new})
        models = sorted(model for (model,) in found.fetchall())
        if unknown := set(retired) - set(models):
            raise Refused(f"retired models {sorted(unknown)} have no rows; those with: {models}")
        for model in sorted(models, key=lambda model: model in retired):
            database.execute(_ORPHANED if model in retired else _CURRENT, {"model": model})
        leaving = [x for place in old if (x := _of(database, place)).staying < x.rows]
        # Maps first: were it killed behind the tables, nobody would know of their maps.
        if remove:
            _check(out, retired)  # again, as the questions may have taken minutes
            check()
        maps = _maps(database, out, [x.table for x in leaving], [*new, *old], remove)
        if remove:
            for table in leaving:
                check()
                _remove(database, out, table)
    return Expired(tuple(leaving), maps)


def _split(out: Out, keep_nights: int) -> tuple[list[str], list[str]]:
    """Published tables of old nights, and of those that are kept."""
    places = current_scores.published(out)
    nights = {}
    for place in places:
        match = _TABLE.fullmatch(place.removeprefix(f"{out.scores()}/"))
        if match is None:
            raise Refused(f"{place} is no table of a night, so nothing here is removed")
        nights[place] = match[1]
    kept = sorted(set(nights.values()))[-keep_nights:]
    return [p for p in places if nights[p] not in kept], [p for p in places if nights[p] in kept]


def _check(out: Out, retired: Sequence[str]) -> None:
    work = out.work()
    started = [i.name for i in files.listing(work)] if files.is_folder(work) else []
    if under_way := sorted({name.split("/")[0] for name in started}):
        raise Refused(
            f"{', '.join(under_way)} under {work} are unfinished, and may need what would be "
            "removed; finish them, or remove their folders"
        )
    if retired and (model := run_records.finished(out)["model_id"]) in retired:
        raise Refused(f"{model} is the model of the latest run, so it is not retired")


def _of(database: duckdb.DuckDBPyConnection, table: str) -> Leaving:
    (rows,), (staying,) = (
        database.execute(question, {"table": table}).fetchone() or (0,)
        for question in (_ROWS, f"{_ROWS} {_STAY}")
    )
    run_id = table.rsplit("/run=", 1)[1].split("/", 1)[0]
    return Leaving(table, run_id, rows, staying)


def _maps(
    database: duckdb.DuckDBPyConnection, out: Out, old: list[str], every: list[str], remove: bool
) -> int:
    """How many maps of leaving rows no row needs any more; removes them, and their overlays."""
    if not old:
        return 0
    new = [table for table in every if table not in set(old)]
    if not new:
        raise Refused("no table would remain as it is, so nothing is removed")

    def ours(row: tuple[str, str, str]) -> bool:
        # A table may name maps that lie elsewhere; these are not ours to remove.
        uri, model_id, image_id = row
        location = out.map(model_id, image_id)
        if uri != uris.make(location):
            return False
        if remove:
            files.remove_file(location)
            files.remove_file(out.overlay(model_id, image_id))
        return True

    found = database.execute(_MAPS, {"old": old, "new": new})
    count = 0
    with ThreadPoolExecutor(16) as pool:
        while rows := found.fetchmany(4096):
            count += sum(pool.map(ours, rows))
    return count


def _remove(database: duckdb.DuckDBPyConnection, out: Out, found: Leaving) -> None:
    """Note in the run's record what happens to its table, then let it happen."""
    if files.exists(out.run(found.run_id)):
        record = files.read_json(out.run(found.run_id))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record["expired"] = {"at": now, "rows": found.staying}
        files.write_json(out.run(found.run_id), record)
    if found.staying:
        parquet.write(found.table, score_table.SCHEMA, _staying(database, found.table))
    else:
        files.remove_file(found.table)


def _staying(database: duckdb.DuckDBPyConnection, table: str) -> Iterator[pa.RecordBatch]:
    question = f"{_ROWS.replace('count(*)', 'rows.*')} {_STAY} ORDER BY product NULLS LAST, uri"
    yield from database.sql(question, params={"table": table}).to_arrow_reader(2**16)
