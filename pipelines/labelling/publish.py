"""Decisions of a file are published as one table, without those that are published already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ops.results.decision_table import SCHEMA, UNDECIDED
from ops.storage.paths import Out
from pipelines.labelling.refusals import Refusals, Rule
from pipelines.labelling.statements import Statement
from pipelines.tables import decisions

Row = dict[str, Any]
_CONTRADICTION = Rule(
    "that contradict another one of the same image or region and time",
    "leave one out, or give them different times",
)
#: What a decision is about, as in deploy/sql/duckdb_labels.sql.
_KEYED = """
    SELECT uri, coalesce(content_sha256, image_id) AS bytes, coalesce(region, 0) AS region,
           CASE WHEN region IS NULL THEN '' ELSE model_id END AS model,
           decision, who, decided_at, source, coalesce(comment, '') AS comment
"""
_ABOUT = "uri, bytes, region, model"
_KNOWN = f"""
    SELECT number FROM given SEMI JOIN ({_KEYED} FROM all_decisions())
    USING ({_ABOUT}, decision, who, decided_at, source, comment)
"""  # noqa: S608 - text of this file
_STANDING = f"""
    SELECT number, standing.decision, standing.who, standing.source, standing.comment,
           standing.decided_at > given.decided_at AS is_later
    FROM given JOIN ({_KEYED} FROM current_decisions()) AS standing USING ({_ABOUT})
"""  # noqa: S608 - text of this file


@dataclass(frozen=True)
class Published:
    """What became of the decisions of a file."""

    location: str
    """The new table; empty if all were known."""
    rows: list[Row]
    """What it holds."""
    known: int
    """How many decisions are not in it, as they were published before."""
    replaced: int
    """How many images and regions had another decision, which was replaced."""
    overruled: int
    """How many have a later decision, which stands."""


def check(file: str, statements: Sequence[Statement], rows: Sequence[Row]) -> None:
    """Raise UserError that names decisions which contradict each other."""
    refusals = Refusals(file)
    first: dict[tuple[Any, ...], str] = {}
    for each, row in zip(statements, rows, strict=True):
        said = first.setdefault((*_about(row), row["decided_at"]), row["decision"])
        if said != row["decision"]:
            refusals.add(_CONTRADICTION, each.where, row["decision"])
    refusals.check()


def publish(out: Out, statements: Sequence[Statement], rows: Sequence[Row]) -> Published:
    """Publish the rows of statements, all that are new or none.

    A row of a statement without a time is known if the same stands already. Raises UserError if
    published tables cannot be read.
    """
    once = {tuple(row.values()): (each, row) for each, row in zip(statements, rows, strict=True)}
    given = list(once.values())
    known, standing = _published(out, [row for _, row in given])
    fresh = []
    for number, (each, row) in enumerate(given):
        if number not in known and (each.at or not _stands(row, standing.get(number))):
            fresh.append((row, standing.get(number)))
    added = [row for row, _ in fresh]
    last = {_about(row): (row, before) for row, before in sorted(fresh, key=_time) if before}
    return Published(
        decisions.append(out, added) if added else "",
        added,
        len(rows) - len(added),
        sum(
            not before["is_later"] and before["decision"] != row["decision"]
            for row, before in last.values()
        ),
        sum(before["is_later"] for _, before in last.values()),
    )


def _time(pair: tuple[Row, Row | None]) -> Any:
    return pair[0]["decided_at"]


def _published(out: Out, rows: Sequence[Row]) -> tuple[set[int], dict[int, Row]]:
    """Numbers of the rows that are published already, and the decisions that stand, by number."""
    table = pa.Table.from_pylist(list(rows), SCHEMA)
    numbers = pa.array(range(len(rows)), pa.int64())
    with decisions.opened(out) as database:
        database.register("incoming", table.append_column("number", numbers))
        database.execute(f"CREATE TEMP VIEW given AS {_KEYED}, number FROM incoming")
        known = {number for (number,) in database.sql(_KNOWN).fetchall()}
        standing = database.sql(_STANDING).to_arrow_table().to_pylist()
    return known, {row.pop("number"): row for row in standing}


def _stands(row: Row, standing: Row | None) -> bool:
    """Whether a row says what stands already."""
    if standing is None:
        return bool(row["decision"] == UNDECIDED)
    same = all(row[name] == standing[name] for name in ("decision", "who", "source"))
    return same and (row["comment"] or "") == standing["comment"]


def _about(row: Row) -> tuple[Any, ...]:
    """The image with its bytes, or the region under its model, that a row is about."""
    bytes_ = row["content_sha256"] or row["image_id"]
    model = "" if row["region"] is None else row["model_id"]
    return row["uri"], bytes_, row["region"], model
