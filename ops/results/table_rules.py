"""Rules that rows of a table keep, beyond the types of its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc


class Rule(NamedTuple):
    """A condition that no row of a table may meet."""

    description: str
    """The rows that break the rule, in words that follow a count."""
    columns: tuple[str, ...]
    """The columns to show of such rows."""
    breaks: Callable[[pa.Table], pa.ChunkedArray]
    """Which rows of a table break the rule: booleans, where null means no."""


def required(schema: pa.Schema) -> tuple[Rule, ...]:
    """Rules of the columns of a schema that are never null."""
    return tuple(_not_null(field.name) for field in schema if not field.nullable)


def _not_null(name: str) -> Rule:
    return Rule(f"rows whose {name} is null", (name,), lambda rows: pc.is_null(rows[name]))


def one_of(name: str, known: Iterable[str]) -> Rule:
    """The rule that a column holds known values only; null breaks another rule."""
    values = pa.array(sorted(known))

    def breaks(rows: pa.Table) -> pa.ChunkedArray:
        return pc.and_(pc.is_valid(rows[name]), pc.invert(pc.is_in(rows[name], values)))

    return Rule(f"rows of an unknown {name}", (name,), breaks)


def rows_breaking(table: pa.Table, rule: Rule) -> pa.Table:
    """The rows that break a rule."""
    return table.filter(pc.fill_null(rule.breaks(table), False))


def broken(table: pa.Table, rules: Iterable[Rule]) -> list[str]:
    """The broken rules, in words; empty if there is none."""
    counts = {rule.description: len(rows_breaking(table, rule)) for rule in rules}
    return [f"{count} {description}" for description, count in counts.items() if count]
