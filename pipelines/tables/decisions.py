"""Decisions of people: append-only tables, of which the last decision wins."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ops.errors import UserError
from ops.results import decision_table
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables import small_tables
from pipelines.tables.database import opened as database_opened

#: Defines `current_decisions()` and `image_decisions()`; people may run the same file.
MACROS = Path(__file__).parents[2] / "deploy" / "sql" / "duckdb_labels.sql"
#: Names of tables; other files, of systems and editors, are left alone.
_TABLE = re.compile(r"part-[\w.-]+\.parquet", re.ASCII)
#: What the folder of decisions holds.
TABLES = small_tables.Kind(
    "table of decisions",
    decision_table.SCHEMA,
    decision_table.violations,
    "its decisions then count no more",
)
#: Columns that a decision takes from the row of the score that was shown.
OF_SCORE = ("image_id", "uri", "product", "content_sha256", "model_id", "run_id")


def decided(
    score: Mapping[str, Any],
    decision: str,
    *,
    who: str,
    source: str,
    region: int | None = None,
    at: datetime.datetime | None = None,
    comment: str | None = None,
) -> dict[str, Any]:
    """A row of `decision_table.SCHEMA`, given the row of the score table that was shown.

    `region` is the number of one of its regions. `at` is now by default. Raises SettingError if
    `who` can be no name, see `decision_table.check_name`.
    """
    decision_table.check_name(who)
    return {name: score[name] for name in OF_SCORE} | {
        "region": region,
        "decision": decision,
        "who": who,
        "decided_at": at or datetime.datetime.now(datetime.UTC),
        "source": source,
        "comment": comment,
    }


def table_of(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Decisions as a table of `decision_table.SCHEMA`."""
    return pa.Table.from_pylist([dict(row) for row in rows], decision_table.SCHEMA)


def append(out: Out, rows: Iterable[Mapping[str, Any]]) -> str:
    """Publish decisions as one new file, whole or not at all; returns its location.

    When it returns, they are stored. Raises ValueError if a row breaks a rule of the table.
    """
    table = table_of(rows)
    if not len(table) or (broken := decision_table.violations(table)):
        raise ValueError(f"no valid decisions: {'; '.join(broken) if len(table) else 'no rows'}")
    now = datetime.datetime.now(datetime.UTC)
    location = out.label_table(f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:12]}")
    parquet.write(location, decision_table.SCHEMA, [table])
    return location


def published(out: Out) -> list[str]:
    """All tables of decisions, the oldest first."""
    names = (name for name in files.names(out.labels()) if _TABLE.fullmatch(name))
    return [files.join(out.labels(), name) for name in names]


def read(places: Sequence[str]) -> pa.Table:
    """The rows of tables, in their order. Raises UserError that names a damaged one."""
    return small_tables.read(TABLES, places)


def define(database: duckdb.DuckDBPyConnection, rows: pa.Table, folder: str) -> None:
    """Define the macros `current_decisions()` and `image_decisions()` over some decisions.

    They are read from a file in `folder`, a local one.
    """
    place = os.path.join(folder, "labels.parquet")
    parquet.write(place, decision_table.SCHEMA, [rows])
    database.execute("SET VARIABLE label_tables = $tables", {"tables": [place]})
    database.execute(MACROS.read_text(encoding="utf-8"))


@contextlib.contextmanager
def opened(out: Out) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the macros of all decisions that are published now.

    Raises UserError if a table cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder, database_opened() as database:
        database.execute("SET TimeZone = 'UTC'")
        define(database, read(published(out)), folder)
        yield database


def current(out: Out, macro: str = "current_decisions") -> pa.Table:
    """What is decided now, with the columns of `decision_table.SCHEMA`, ordered by time.

    Each image and region has at most one row. With the macro `image_decisions`, each image has at
    most one: the last of its own and of those of its regions that are defects.
    """
    with opened(out) as database:
        rows = database.sql(f"FROM {macro}() ORDER BY decided_at, uri, region NULLS FIRST")
        return rows.to_arrow_table().select(decision_table.SCHEMA.names).cast(decision_table.SCHEMA)


def of_images(out: Out) -> pa.Table:
    """One current decision for each image (see `current`). Raises UserError if there is none."""
    check_any(out)
    return current(out, "image_decisions")


def check_any(out: Out) -> None:
    """Raise UserError if nobody has decided about any image of an output folder."""
    if not published(out):
        raise UserError(
            f"{out.root} holds no decision of people; decide with python -m jobs.review --out "
            f"{out.root}, or name another output folder"
        )
