"""Regions of the images of two runs or models: which of them overlap."""

from __future__ import annotations

from typing import Literal, NamedTuple

import duckdb

_CHANGES = """
    WITH images AS (
        SELECT side, image_id, CASE WHEN $join = 'uri' THEN uri ELSE image_id END AS key
        FROM sides WHERE status = 'ok'
    ),
    shared AS (SELECT key FROM images GROUP BY key HAVING count(DISTINCT side) = 2),
    found AS (
        SELECT side, key, box_x AS x, box_y AS y, box_width AS w, box_height AS h
        FROM (SELECT 'a' AS side, * FROM regions_a UNION ALL SELECT 'b', * FROM regions_b)
        JOIN images USING (side, image_id) SEMI JOIN shared USING (key)
    ),
    matched AS (
        SELECT *, EXISTS (
            FROM found AS other WHERE other.key = found.key AND other.side <> found.side
            AND other.x < found.x + found.w AND found.x < other.x + other.w
            AND other.y < found.y + found.h AND found.y < other.y + other.h
        ) AS is_matched FROM found
    )
    SELECT count(*) FILTER (side = 'a'), count(*) FILTER (side = 'b'),
           count(*) FILTER (side = 'a' AND is_matched), count(*) FILTER (side = 'b' AND is_matched)
    FROM matched
"""


class RegionChanges(NamedTuple):
    """Numbers of regions of images that both sides scored, and of those that overlap."""

    regions_a: int = 0
    regions_b: int = 0
    matched_a: int = 0
    """Regions of the first side whose box overlaps one of the second in the same image."""
    matched_b: int = 0

    @property
    def sentence(self) -> str:
        """The counts in words; empty if there are no regions."""
        if not self.regions_a + self.regions_b:
            return ""
        return (
            f"regions of images in A and B: {self.regions_a} in A, of which {self.matched_a} "
            f"overlap one in B, and {self.regions_b} in B, of which {self.matched_b} overlap one "
            "in A"
        )


def region_changes(
    database: duckdb.DuckDBPyConnection, join: Literal["image_id", "uri"]
) -> RegionChanges:
    """Compare the tables that `sides.Sides.read` made."""
    [counts] = database.execute(_CHANGES, {"join": join}).fetchall()
    return RegionChanges(*counts)
