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
    """The tables `made`, of all decisions, and `standing`, of those of images that stand.

    Files of decisions never change, so each is read once. Calls must not overlap.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection, out: Out) -> None:
        self._database, self._out = database, out
        self._known: set[str] = set()
        #: Number of decisions read so far.
        self.count = 0
        database.register("incoming", _SCHEMA.empty_table())
        database.execute("CREATE TABLE made AS FROM incoming")
        database.unregister("incoming")
        with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
            decisions.define(database, decision_table.SCHEMA.empty_table(), folder)
        database.execute("CREATE OR REPLACE MACRO all_decisions() AS TABLE FROM made")
        self._settle()

    def refresh(self) -> None:
        """Read what was published since. Raises UserError for a file that cannot be read."""
        self._read([place for place in decisions.published(self._out) if place not in self._known])

    def add(self, location: str) -> None:
        """Read a file that was just published."""
        self._read([location])

    def _read(self, places: list[str]) -> None:
        if not places:
            return
        rows = decisions.read(places)
        numbers = pa.array(range(self.count + 1, self.count + 1 + len(rows)), pa.int64())
        self._database.register("incoming", rows.append_column(_SCHEMA.field("number"), numbers))
        self._database.execute("INSERT INTO made FROM incoming")
        self._database.unregister("incoming")
        self.count += len(rows)
        self._known |= set(places)
        self._settle()

    def _settle(self) -> None:
        self._database.execute("CREATE OR REPLACE TABLE standing AS FROM image_decisions()")
