"""The order in which people look at images, in SQL: call, then p-value, then turns of products.

Scores of two products have no common unit, so they are never compared: of images with the same call
and p-value, the highest scores of all products come first, then the second highest, and so on.
"""

from __future__ import annotations


def turn(*within: str) -> str:
    """SQL: the column `turn`, the place of an image among those of its product by score, from 1.

    It counts images of the same call and p-value, and of the same values of the columns `within`.
    """
    keys = ", ".join(("product", *within, "is_anomalous", "p_value"))
    return (
        f"row_number() OVER (PARTITION BY {keys} ORDER BY score DESC NULLS LAST, image_id) AS turn"
    )


def order(*within: str) -> str:
    """SQL: the terms of ORDER BY for rows with `turn(*within)`; images without a score come last.

    Images for which the columns `within` are true come before others of the same call.
    """
    first = ("score IS NULL", "is_anomalous DESC NULLS LAST", *(f"{name} DESC" for name in within))
    return ", ".join((*first, "p_value NULLS LAST", "turn", "product NULLS LAST", "image_id"))
