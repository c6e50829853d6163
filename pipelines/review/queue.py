"""The list of parts to look at: the current view in a database of its own, with decisions.

The list is read once, in the order of `worst_first`, and each row holds what stands of its part, so
that a page of a million parts is found in milliseconds. Decisions are published as they are made,
and read again as others publish theirs; either changes the rows that they are about.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from ops.archives.views import views_of
from ops.errors import UserError
from ops.results import region_table
from ops.results.decision_table import UNDECIDED
from ops.storage.paths import Out
from pipelines.review.decided import Decided
from pipelines.review.filters import Filter
from pipelines.tables import (
    current_regions,
    current_scores,
    decided_images,
    decisions,
    gone,
    run_records,
)
from pipelines.tables.database import opened as database_opened
from pipelines.tables.model_names import NamedModel

Row = dict[str, Any]
#: Decisions are joined to the rows of the list, where they have names of their own.
_READ = [name for name in current_scores.VIEW.names if name not in decided_images.COLUMNS.names]
_SCHEMA = pa.schema([pa.field("place", pa.int64()), *map(current_scores.VIEW.field, _READ)])
#: A decision is of the bytes that were shown, see deploy/sql/duckdb_labels.sql.
_JOINED = f"""
    SELECT *, {decided_images.DISMISSED} AS dismissed
    FROM (
        SELECT listed.*, standing.decision, standing.who, standing.decided_at,
               standing.decision AS decided, standing.model_id AS decided_model_id
        FROM {{listed}} AS listed LEFT JOIN standing ON standing.uri = listed.uri
            AND bytes_of(standing.content_sha256, standing.image_id)
                = bytes_of(listed.content_sha256, listed.image_id)
    )
"""  # noqa: S608 - text of this project
_CREATE = f"""
    CREATE OR REPLACE TABLE parts AS
    SELECT * EXCLUDE (decided, decided_model_id) FROM ({_JOINED.format(listed="incoming")})
"""  # noqa: S608 - text of this project
#: Where the rows of an address or an image are: a table in order is searched, not read.
_PLACES = """
    CREATE OR REPLACE TABLE places AS
    SELECT hash(name) AS hashed, place
    FROM (SELECT uri AS name, place FROM parts UNION ALL SELECT image_id, place FROM parts)
    ORDER BY hashed
"""
_FRESH = """(
    SELECT place, uri, image_id, content_sha256, is_anomalous FROM parts SEMI JOIN fresh USING (uri)
    WHERE place IN (SELECT place FROM places WHERE hashed IN (SELECT hash(uri) FROM fresh))
)"""
_PART = """
    FROM parts WHERE image_id = $image
        AND place IN (SELECT place FROM places WHERE hashed = hash($image))
"""
#: A part that is decided now stays in the list; one that is no false alarm any more comes back.
_MARK = f"""
    UPDATE parts
    SET decision = now.decision, who = now.who, decided_at = now.decided_at,
        dismissed = parts.dismissed AND now.dismissed
    FROM (
        {_JOINED.format(listed=_FRESH)}
    ) AS now
    WHERE parts.place = now.place
"""  # noqa: S608 - text of this project
_COUNTS = """
    count(*) AS parts, count(decision) AS decided,
    count(*) FILTER (is_anomalous) AS anomalous,
    count(decision) FILTER (is_anomalous) AS anomalous_decided
"""
_REGIONS = "CREATE OR REPLACE TABLE regions AS FROM incoming"
#: Fields of the paths' pattern with their values: of each field those with most anomalous parts.
_MOST = {"fields": 20, "values": 200}
_FIELDS = """
    SELECT pair.key AS field, pair.value AS name, count(*) AS parts,
           count(*) FILTER (is_anomalous) AS anomalous
    FROM (SELECT unnest(map_entries(fields)) AS pair, is_anomalous FROM parts)
    GROUP BY pair
    QUALIFY dense_rank() OVER (ORDER BY field) <= $fields
        AND row_number() OVER (PARTITION BY field ORDER BY anomalous DESC, name) <= $values
    ORDER BY field, name
"""


class Queue:
    """Parts under one model, and the decisions that stand; used by several threads at once."""

    def __init__(self, database: duckdb.DuckDBPyConnection, out: Out, model: NamedModel) -> None:
        self._database, self.out, self.model = database, out, model
        self._lock = threading.RLock()
        self._decided = Decided(database, out)
        self._tables: Sequence[str] = ()
        self.load()

    def load(self) -> None:
        """Read the current view and the regions of all nights. Raises UserError."""
        with self._lock:
            listing = gone.newest_listing(self.out)
            records = run_records.started(self.out)
            self.records: dict[str, Row] = {str(each["run_id"]): each for each in records}
            self.record: Row = run_records.of_model(
                self.out, self.model.model_id
            ) or run_records.finished(self.out)
            tables = current_scores.published(self.out)
            views = views_of(self.record)

            def read(source: duckdb.DuckDBPyConnection, check: Callable[[], None]) -> None:
                rows = current_scores.query(
                    source,
                    self.model.model_id,
                    views=views,
                    listing=listing,
                    held_out=run_records.held_out(self.record),
                )
                self._store(_CREATE, _SCHEMA, _numbered(rows), {"model": self.model.model_id})
                self._database.execute(_PLACES)
                regions = current_regions.query(source, self.model.model_id, listing=listing)
                wanted = region_table.SCHEMA
                self._store(_REGIONS, wanted, (b.select(wanted.names) for b in regions))
                check()

            self._decided.refresh()  # the list is joined to what stands
            others = listing.location if listing else ""
            current_scores.read_consistently(self.out, read, "2GB", others, regions=True)
            self._tables = tables  # now that they are read, or the page would not offer them again

    def _store(
        self,
        sql: str,
        schema: pa.Schema,
        batches: Iterator[pa.RecordBatch],
        values: dict[str, Any] | None = None,
    ) -> None:
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        self._database.register("incoming", reader)
        self._database.execute(sql, values or {})
        self._database.unregister("incoming")

    def _refresh(self) -> None:
        """Read the decisions of others, and mark the parts that they are about."""
        if self._decided.refresh():
            self._mark()

    def _mark(self) -> None:
        self._database.execute(_MARK, {"model": self.model.model_id})

    def _rows(self, sql: str, values: dict[str, Any]) -> list[Row]:
        with self._lock:
            cursor = self._database.cursor()
        with cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            answer: pa.Table = cursor.sql(sql, params=values).to_arrow_table()
            return list(answer.to_pylist())

    def has_new_night(self) -> bool:
        """Whether tables were published or removed since the list was read."""
        return list(self._tables) != current_scores.published(self.out)

    def overview(self) -> dict[str, list[Row]]:
        """Counts by night, product, status, and view: of parts, anomalous ones and decisions."""
        groups = {
            "nights": "left(run_id, 10)",
            "products": "product",
            "statuses": "status",
            "views": "view",
        }
        order = {"nights": "name DESC", "views": "name"}
        return {
            name: self._rows(
                f"SELECT {column} AS name, {_COUNTS} FROM parts GROUP BY ALL "  # noqa: S608 - names of this file
                f"ORDER BY {order.get(name, 'anomalous DESC, name')} NULLS LAST",
                {},
            )
            for name, column in groups.items()
        }

    def fields(self) -> dict[str, list[Row]]:
        """Counts by the values of each field of the paths' pattern, of parts and anomalous ones."""
        found: dict[str, list[Row]] = {}
        for row in self._rows(_FIELDS, _MOST):
            found.setdefault(row["field"], []).append(row)
        return found

    def counts(self, chosen: Filter) -> Row:
        """Numbers of a filter: `parts` that it shows, of those with any decision or none
        (`listed`) how many are `decided`, and how many dismissed alarms are `left_out`.
        """
        where, values = chosen.sql(with_decided=False)
        (row,) = self._rows(
            f"SELECT count(*) FILTER (listed) AS listed, "  # noqa: S608 - names of this file
            "count(decision) FILTER (listed) AS decided, "
            f"count(*) FILTER (listed AND {chosen.decided_sql}) AS parts, "
            "count(*) FILTER (NOT listed) AS left_out "
            f"FROM (SELECT decision, {chosen.dismissed_sql} AS listed FROM parts WHERE {where})",
            values,
        )
        return row

    def page(self, chosen: Filter, limit: int, offset: int = 0) -> list[Row]:
        """Rows of the list from an offset."""
        return self._page(chosen, "true", "place", {"limit": limit, "offset": offset})

    def after(self, chosen: Filter, place: int, limit: int) -> list[Row]:
        """The rows that follow a place, which stay the same as parts of a filter are decided."""
        values = {"limit": limit, "offset": 0, "at": place}
        return self._page(chosen, "place > $at", "place", values)

    def before(self, chosen: Filter, place: int, limit: int) -> list[Row]:
        """The rows before a place, the nearest first."""
        values = {"limit": limit, "offset": 0, "at": place}
        return self._page(chosen, "place < $at", "place DESC", values)

    def _page(self, chosen: Filter, more: str, order: str, paging: dict[str, Any]) -> list[Row]:
        where, values = chosen.sql()
        # Of the many columns only those of the page are read.
        return self._rows(
            f"FROM parts WHERE place IN (SELECT place FROM parts WHERE {more} AND {where} "  # noqa: S608 - names of this file
            f"ORDER BY {order} LIMIT $limit OFFSET $offset) ORDER BY {order}",
            values | paging,
        )

    def position(self, chosen: Filter, place: int) -> int:
        """How many parts of a filter come before a place."""
        where, values = chosen.sql()
        sql = f"SELECT count(*) AS n FROM parts WHERE place < $at AND {where}"  # noqa: S608 - names of this file
        return int(self._rows(sql, values | {"at": place})[0]["n"])

    def part(self, image_id: str) -> Row | None:
        """One row of the list; None if there is none."""
        rows = self._rows(_PART, {"image": image_id})
        return rows[0] if rows else None

    def regions(self, image_id: str) -> list[Row]:
        """The regions of a part, in their order."""
        sql = "FROM regions WHERE image_id = $image ORDER BY number"
        return self._rows(sql, {"image": image_id})

    def decide(self, image_id: str, decision: str, who: str) -> tuple[Row, Row]:
        """Publish a decision of a part; returns its row as it was before, and as it is now.

        When it returns, the decision is stored. `undecided` takes the standing one back. Raises
        UserError if there is no such part, ValueError for an unknown decision.
        """
        with self._lock:
            self._refresh()
            before = self.part(image_id)
            if before is None:
                raise UserError(f"no part of the list has the id {image_id}; load the page again")
            row = decisions.decided(before, decision, who=who, source="page")
            self._decided.add([decisions.append(self.out, [row])], decisions.table_of([row]))
            self._mark()
            after = self.part(image_id)
            assert after is not None
            return before, after

    def news(self, seen: int) -> tuple[int, list[Row]]:
        """The number of decisions read so far, and parts of those after the first `seen`."""
        with self._lock:
            self._refresh()
            number = self._decided.count
        if seen >= number:
            return number, []
        sql = """
            SELECT image_id, uri, decision, who, decided_at FROM parts
            SEMI JOIN (FROM made WHERE number > $seen) USING (uri) LIMIT 1000
        """
        rows = self._rows(sql, {"seen": seen})
        return number, [row | {"decision": row["decision"] or UNDECIDED} for row in rows]


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        place = pa.array(range(start, start + len(batch)), pa.int64())
        start += len(batch)
        columns = batch.select(_READ).columns
        yield pa.RecordBatch.from_arrays([place, *columns], schema=_SCHEMA)


@contextlib.contextmanager
def opened(out: Out, model: NamedModel) -> Iterator[Queue]:
    """The list of a model. Raises UserError if its tables cannot be read."""
    with database_opened("1GB") as database:
        database.execute("SET TimeZone = 'UTC'")
        yield Queue(database, out, model)
