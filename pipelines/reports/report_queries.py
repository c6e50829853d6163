"""What of a night people look at: how many, how high, the worst, the failed, the flipped.

All of it is asked of the tables that `drift.load_runs` makes; what comes back is small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt

BINS = 48
Counts = npt.NDArray[np.int64]
Row = dict[str, Any]


class Histogram(NamedTuple):
    """Scores of one product in bins (BINS,) of one width; what lies beyond is in the outer ones."""

    low: float
    high: float
    normal: Counts
    """Of the night, those not called anomalous."""
    anomalous: Counts
    """Of the night, those called so."""
    before: Counts
    """Of all that was published before under the same model."""


#: A single huge score must not press all others into one bin.
_HISTOGRAMS = """
    WITH scored AS (
        SELECT side, product, score, coalesce(is_anomalous, false) AS called
        FROM sides WHERE score IS NOT NULL AND (side = 'b' OR $same_unit)
    ),
    inner_part AS (
        SELECT product, min(score) AS least, max(score) AS most,
               quantile_cont(score, 0.01) AS low, quantile_cont(score, 0.99) AS high
        FROM scored WHERE side = 'b' GROUP BY product
    ),
    ranges AS (
        SELECT product, greatest(least, 2 * low - high) AS low, least(most, 2 * high - low) AS high
        FROM inner_part
    )
    SELECT product, any_value(low) AS low, any_value(high) AS high, side, called, bin,
           count(*) AS images
    FROM (
        SELECT scored.*, low, high,
               CASE WHEN score <= low THEN 0
                    WHEN score >= high THEN $bins - 1
                    ELSE floor((score - low) / (high - low) * $bins) END AS bin
        FROM scored JOIN ranges ON scored.product IS NOT DISTINCT FROM ranges.product
    )
    GROUP BY product, side, called, bin ORDER BY product, side, called, bin
"""


def histograms(database: duckdb.DuckDBPyConnection, same_unit: bool) -> dict[str | None, Histogram]:
    """The scores of each product that has any; of those before only if their unit is the same."""
    answer = database.execute(_HISTOGRAMS, {"same_unit": same_unit, "bins": BINS})
    found: dict[str | None, Histogram] = {}
    for product, low, high, side, called, place, images in answer.fetchall():
        if product not in found:
            found[product] = Histogram(low, high, *(np.zeros(BINS, np.int64) for _ in range(3)))
        mine = found[product]
        counts = mine.before if side == "a" else mine.anomalous if called else mine.normal
        counts[min(int(place), BINS - 1)] += images
    return found


def statuses(database: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many images ended how, the most frequent first."""
    query = "SELECT status, count(*) FROM b GROUP BY status ORDER BY count(*) DESC, status"
    return dict(database.sql(query).fetchall())


# Scores of different products have no common unit, so their worst take turns.
_WORST = """
    SELECT image_id, run_id FROM b WHERE score IS NOT NULL
    ORDER BY is_anomalous DESC NULLS LAST,
             row_number() OVER (PARTITION BY product ORDER BY score DESC, image_id),
             score DESC, image_id
    LIMIT $most
"""
_FAILED = """
    SELECT image_id, run_id FROM b WHERE score IS NULL
    ORDER BY row_number() OVER (PARTITION BY status ORDER BY uri, image_id), status
    LIMIT $most
"""


def worst(database: duckdb.DuckDBPyConnection, model_id: str, most: int) -> list[Row]:
    """Whole rows of the night: called anomalous first, the worst of each product in turn.

    They come back by score, the highest first.
    """
    found = _rows(database, _WORST, model_id, most)
    return sorted(found, key=lambda row: (-row["score"], row["image_id"]))


def failed(database: duckdb.DuckDBPyConnection, model_id: str, most: int) -> list[Row]:
    """Whole rows of the night without a score, some of each kind, by kind and address."""
    found = _rows(database, _FAILED, model_id, most)
    return sorted(found, key=lambda row: (row["status"], row["uri"], row["image_id"]))


def _rows(database: duckdb.DuckDBPyConnection, chosen: str, model_id: str, most: int) -> list[Row]:
    where = "FROM scores_of($model) SEMI JOIN chosen USING (image_id, run_id)"
    query = f"WITH chosen AS ({chosen}) {where}"
    found = database.sql(query, params={"model": model_id, "most": most}).to_arrow_table()
    return list(found.to_pylist())


# An archive may hold several members of one name; the k-th is compared with the k-th.
_COMPARED = """
    CREATE TABLE compared AS
    WITH now AS (
        SELECT *, row_number() OVER (PARTITION BY uri, run_id ORDER BY image_id) AS k FROM b
    ),
    numbered AS (
        SELECT *, row_number() OVER (PARTITION BY uri, run_id ORDER BY image_id) AS k
        FROM a SEMI JOIN b USING (uri)
    ),
    newest AS (
        SELECT * FROM numbered WHERE is_anomalous IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY uri, k ORDER BY scored_at DESC, run_id DESC) = 1
    )
    SELECT now.uri, now.product, now.is_anomalous, now.score, now.p_value,
           newest.is_anomalous AS was_anomalous, newest.score AS score_before,
           newest.p_value AS p_value_before, newest.run_id AS run_before
    FROM now JOIN newest USING (uri, k) WHERE now.is_anomalous IS NOT NULL
"""
_FLIPPED = """
    FROM compared WHERE is_anomalous <> was_anomalous
    ORDER BY is_anomalous DESC, p_value, score DESC, uri LIMIT $most
"""
_COUNTED = """
    SELECT count(*), count(*) FILTER (is_anomalous AND NOT was_anomalous),
           count(*) FILTER (was_anomalous AND NOT is_anomalous) FROM compared
"""


class Flips(NamedTuple):
    """How calls differ from those that the same addresses had before; some of those that do."""

    compared: int
    became_anomalous: int
    became_normal: int
    rows: list[Row]


def flips(database: duckdb.DuckDBPyConnection, most: int) -> Flips:
    """Calls against the newest one before, by address; what became anomalous comes first."""
    database.execute(_COMPARED)
    [(compared, became_anomalous, became_normal)] = database.sql(_COUNTED).fetchall()
    rows = database.sql(_FLIPPED, params={"most": most}).to_arrow_table().to_pylist()
    return Flips(compared, became_anomalous, became_normal, rows)
