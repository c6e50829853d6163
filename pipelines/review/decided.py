"""The decisions of an output folder, kept in a database beside the list that they are about."""

from __future__ import annotations

import tempfile

import duckdb
import pyarrow as pa

from ops.results import decision_table
from ops.storage.paths import Out
from pipelines.tables import decisions

_SCHEMA = pa.schema([*decision_table.SCHEMA, pa.field("number", pa.int64())])


class Decided:
    """The tables `made`, of all decisions, `standing`, of those of images that stand, and `fresh`,
    of the addresses (`uri`) about which the last read found decisions.

    Files of decisions never change, so each is read once, and what stands is found anew for fresh
    addresses alone. Calls must not overlap.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection, out: Out) -> None:
        self._database, self._out = database, out
        self._known: set[str] = set()
        #: Number of decisions read so far.
        self.count = 0
        database.register("incoming", _SCHEMA.empty_table())
        database.execute("CREATE TABLE made AS FROM incoming")
        database.unregister("incoming")
        database.execute("CREATE TABLE fresh AS SELECT uri FROM made")
        with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
            decisions.define(database, decision_table.SCHEMA.empty_table(), folder)
        database.execute(
            "CREATE OR REPLACE MACRO all_decisions() AS TABLE FROM made SEMI JOIN fresh USING (uri)"
        )
        database.execute("CREATE TABLE standing AS FROM image_decisions()")

    def refresh(self) -> bool:
        """Read what was published since; whether there was anything.

        Raises UserError for a file that cannot be read.
        """
        new = [place for place in decisions.published(self._out) if place not in self._known]
        if new:
            self.add(new, decisions.read(new))
        return bool(new)

    def add(self, places: list[str], rows: pa.Table) -> None:
        """Take in what published files hold that were not read before."""
        numbers = pa.array(range(self.count + 1, self.count + 1 + len(rows)), pa.int64())
        self._database.register("incoming", rows.append_column(_SCHEMA.field("number"), numbers))
        self._database.begin()
        try:
            self._database.execute("INSERT INTO made FROM incoming")
            self._database.execute("DELETE FROM fresh")
            self._database.execute("INSERT INTO fresh SELECT DISTINCT uri FROM incoming")
            self._database.execute("DELETE FROM standing WHERE uri IN (FROM fresh)")
            self._database.execute("INSERT INTO standing FROM image_decisions()")
        except BaseException:
            self._database.rollback()
            raise
        finally:
            self._database.unregister("incoming")
        self._database.commit()
        self.count += len(rows)
        self._known |= set(places)
