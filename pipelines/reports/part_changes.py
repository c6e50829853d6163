"""Parts of several images in two runs or models: which have an anomalous image."""

from __future__ import annotations

from typing import NamedTuple

import duckdb

_CHANGES = """
    WITH parts AS (
        SELECT product, part, count(DISTINCT side) AS sides,
               coalesce(bool_or(is_anomalous) FILTER (side = 'a'), false) AS in_a,
               coalesce(bool_or(is_anomalous) FILTER (side = 'b'), false) AS in_b
        FROM sides WHERE part IS NOT NULL GROUP BY product, part
    )
    SELECT count(*), count(*) FILTER (in_a AND in_b), count(*) FILTER (in_a AND NOT in_b),
           count(*) FILTER (in_b AND NOT in_a)
    FROM parts WHERE sides = 2
"""


class PartChanges(NamedTuple):
    """Numbers of parts with images on both sides, and of those with an anomalous image."""

    parts: int
    in_both: int
    only_in_a: int
    only_in_b: int

    @property
    def sentence(self) -> str:
        """The counts in words; empty if there are no parts."""
        if not self.parts:
            return ""
        return (
            f"of {self.parts} parts in A and B, {self.in_both} have an anomalous image in both, "
            f"{self.only_in_a} only in A, {self.only_in_b} only in B"
        )


def part_changes(database: duckdb.DuckDBPyConnection) -> PartChanges:
    """Compare the tables that `sides.Sides.read` made."""
    [counts] = database.sql(_CHANGES).fetchall()
    return PartChanges(*counts)
