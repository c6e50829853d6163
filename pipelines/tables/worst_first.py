"""The order in which people look at images, in SQL: verdict, then p-value, then turns of products.

Scores of two products have no common unit, so they are never compared: of images with the same
verdict and p-value, the highest scores of all products come first, then the second highest.

No p-value is below 1 / (1 + number of held-out images or parts). An image with this p-value scores
higher than all of them, and may be as rare as one of a product with more held-out images and a
smaller p-value. So anomalous images with the smallest p-value of their product come first, in turn.
"""

from __future__ import annotations

from collections.abc import Mapping

import duckdb
import pyarrow as pa

from pipelines.tables.verdict_rules import ROUNDING

_FLOORS = pa.schema([("detector", pa.string()), ("floor", pa.float64())])


def register(database: duckdb.DuckDBPyConnection, held_out: Mapping[str, int]) -> None:
    """Create the table `floors`: the smallest p-value of each detector, by its held-out images."""
    rows = [
        {"detector": name, "floor": 1 / (1 + count) + ROUNDING} for name, count in held_out.items()
    ]
    database.register("floors", pa.Table.from_pylist(rows, _FLOORS))


#: SQL: the column `sort_p_value` of rows joined with `floors`: 0 instead of the smallest p-value.
SORT_P_VALUE = "CASE WHEN is_anomalous AND p_value <= floor THEN 0 ELSE p_value END AS sort_p_value"


def turn(*within: str) -> str:
    """SQL: the column `turn`, the place of an image among those of its product by score, from 1.

    It counts images of the same verdict and `sort_p_value`, and of the same values of `within`.
    """
    keys = ", ".join(("product", *within, "is_anomalous", "sort_p_value"))
    return (
        f"row_number() OVER (PARTITION BY {keys} ORDER BY score DESC NULLS LAST, image_id) AS turn"
    )


def order(*within: str) -> str:
    """SQL: the terms of ORDER BY for rows with `SORT_P_VALUE` and `turn(*within)`, failures last.

    Images for which the columns `within` are true come before others of the same verdict.
    """
    first = ("score IS NULL", "is_anomalous DESC NULLS LAST", *(f"{name} DESC" for name in within))
    return ", ".join((*first, "sort_p_value NULLS LAST", "turn", "product NULLS LAST", "image_id"))
