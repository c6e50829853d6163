"""Parts and splits that follow from a whole listing, not from a path alone: SQL over its rows."""

from __future__ import annotations

from ops.archives.layouts import Layout

#: Rows whose numbers follow each other closely become one part, named by its lowest number.
_PARTS = """
    numbered AS (
        -- Digits alone: a cast also reads 5.6, 1e3 and 0x10. Differences of 18 of them fit.
        SELECT *, try_cast(regexp_extract(fields['number'], '^[0-9]{{1,18}}$') AS BIGINT) AS number
        FROM {rows}
    ),
    marked AS (
        SELECT *, CASE WHEN number - lag(number) OVER by_number <= {gap} THEN NULL
                  ELSE number END AS lowest
        FROM numbered WINDOW by_number AS (PARTITION BY product, is_mask ORDER BY number)
    ),
    parts AS (
        SELECT * EXCLUDE (number, lowest) REPLACE (
            CASE WHEN number IS NULL THEN part
            ELSE last_value(lowest IGNORE NULLS) OVER by_number::VARCHAR END AS part
        )
        FROM marked WINDOW by_number AS (PARTITION BY product, is_mask ORDER BY number)
    )
"""
#: A part is fitted on as a whole, and only if no image of it is known to be defective.
_SPLITS = """
    units AS (
        -- Composed, as parts are: copies of files have the same split on all file systems.
        SELECT *, coalesce(part, nfc_normalize(regexp_extract(uri, '[^/#]*$'))) AS unit FROM {rows}
    ),
    splits AS (
        SELECT * EXCLUDE (unit) REPLACE (
            CASE WHEN split IS NOT NULL OR product IS NULL OR is_mask THEN split
            WHEN label = 0 AND coalesce(max(label) OVER of_part, 0) = 0
                AND md5_number_lower(product || '/' || unit) < {share} * 2.0 ** 64 THEN 'train'
            ELSE 'test' END AS split
        )
        FROM units WINDOW of_part AS (PARTITION BY product, is_mask, coalesce(part, uri))
    )
"""


def rows(layout: Layout) -> str:
    """Common table expressions, of which `listed` has the rows of the Parquet file $listed."""
    steps, source = [], "read_parquet($listed)"
    if layout.part_gap:
        steps.append(_PARTS.format(rows=source, gap=layout.part_gap))
        source = "parts"
    if layout.train_share:
        steps.append(_SPLITS.format(rows=source, share=layout.train_share))
        source = "splits"
    steps.append(f"listed AS NOT MATERIALIZED (FROM {source})")
    return ", ".join(steps)
