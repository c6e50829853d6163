"""Queries of a report, over the tables that `drift.load_runs` makes; their answers are small."""

from __future__ import annotations

from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt

from pipelines.tables import decided_images, worst_first

BINS = 48
Counts = npt.NDArray[np.int64]
Row = dict[str, Any]


class Histogram(NamedTuple):
    """Scores of one product in bins (BINS,) of equal width.

    The outer bins also count the scores beyond `low` and `high`.
    """

    low: float
    high: float
    normal: Counts
    """Images of the night that are not anomalous."""
    anomalous: Counts
    """Images of the night that are anomalous."""
    before: Counts
    """Images of earlier nights under the same model."""


#: Limits the range of the bins, so that a single huge score does not put all others into one bin.
_HISTOGRAMS = """
    WITH scored AS (
        SELECT side, product, score, coalesce(is_anomalous, false) AS is_anomalous
        FROM sides WHERE score IS NOT NULL AND (side = 'b' OR $same_unit)
    ),
    inner_range AS (
        SELECT product, min(score) AS least, max(score) AS most,
               quantile_cont(score, 0.01) AS low, quantile_cont(score, 0.99) AS high
        FROM scored WHERE side = 'b' GROUP BY product
    ),
    ranges AS (
        SELECT product, greatest(least, 2 * low - high) AS low, least(most, 2 * high - low) AS high
        FROM inner_range
    )
    SELECT product, any_value(low) AS low, any_value(high) AS high, side, is_anomalous, bin,
           count(*) AS images
    FROM (
        SELECT scored.*, low, high,
               CASE WHEN score <= low THEN 0
                    WHEN score >= high THEN $bins - 1
                    ELSE floor((score - low) / (high - low) * $bins) END AS bin
        FROM scored JOIN ranges ON scored.product IS NOT DISTINCT FROM ranges.product
    )
    GROUP BY product, side, is_anomalous, bin ORDER BY product, side, is_anomalous, bin
"""


def histograms(database: duckdb.DuckDBPyConnection, same_unit: bool) -> dict[str | None, Histogram]:
    """A histogram of each product with scores; earlier scores only if their unit is the same."""
    answer = database.execute(_HISTOGRAMS, {"same_unit": same_unit, "bins": BINS})
    by_product: dict[str | None, Histogram] = {}
    for product, low, high, side, is_anomalous, bin_number, images in answer.fetchall():
        if product not in by_product:
            empty = (np.zeros(BINS, np.int64) for _ in range(3))
            by_product[product] = Histogram(low, high, *empty)
        histogram = by_product[product]
        verdict = histogram.anomalous if is_anomalous else histogram.normal
        counts = histogram.before if side == "a" else verdict
        counts[min(int(bin_number), BINS - 1)] += images
    return by_product


def statuses(database: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Number of images of each status, the most frequent first."""
    query = "SELECT status, count(*) FROM b GROUP BY status ORDER BY count(*) DESC, status"
    return dict(database.sql(query).fetchall())


_WORST = f"""
    WITH listed AS (
        SELECT b.*, {worst_first.SORT_P_VALUE}
        FROM b LEFT JOIN floors ON b.product = floors.detector
        LEFT JOIN decided_keys USING (image_id, run_id)
        WHERE score IS NOT NULL AND NOT {decided_images.DISMISSED}
    )
    SELECT image_id, run_id FROM (SELECT *, {worst_first.turn()} FROM listed)
    ORDER BY {worst_first.order()} LIMIT $most
"""  # noqa: S608 - only names from the code
_DISMISSED = f"""
    SELECT count(*) FROM b JOIN decided_keys USING (image_id, run_id)
    WHERE {decided_images.DISMISSED}
"""  # noqa: S608 - only names from the code
_FAILED = """
    SELECT image_id, run_id FROM b WHERE score IS NULL
    ORDER BY row_number() OVER (PARTITION BY status ORDER BY uri, image_id), status
    LIMIT $most
"""

_COMPLETE = """
    FROM scores_of($model) SEMI JOIN chosen USING (image_id, run_id)
    LEFT JOIN decided_keys USING (image_id, run_id)
"""


def worst(database: duckdb.DuckDBPyConnection, model_id: str, most: int) -> list[Row]:
    """Rows with scores in the order of `worst_first`: anomalous ones, then by p-value.

    False alarms are left out that a person called so under this model. `database` is one in which
    `decided_images` has made its tables of the rows of `b`, whose columns rows have too, and
    `worst_first` its table.
    """
    return _complete_rows(database, _WORST, model_id, {"most": most, "model": model_id})


def dismissed(database: duckdb.DuckDBPyConnection, model_id: str) -> int:
    """The number of rows that `worst` leaves out as false alarms."""
    [(rows,)] = database.execute(_DISMISSED, {"model": model_id}).fetchall()
    return int(rows)


def failed(database: duckdb.DuckDBPyConnection, model_id: str, most: int) -> list[Row]:
    """Rows of failed images, some of each status, in order of status and address."""
    rows = _complete_rows(database, _FAILED, model_id, {"most": most})
    return sorted(rows, key=lambda row: (row["status"], row["uri"], row["image_id"]))


def _complete_rows(
    database: duckdb.DuckDBPyConnection, query: str, model_id: str, values: dict[str, Any]
) -> list[Row]:
    """All columns of the rows whose `image_id` and `run_id` a query selects, in its order."""
    chosen = database.sql(query, params=values).to_arrow_table()
    columns = (chosen["image_id"].to_pylist(), chosen["run_id"].to_pylist())
    place = {pair: number for number, pair in enumerate(zip(*columns, strict=True))}
    database.register("chosen", chosen)
    rows = database.sql(_COMPLETE, params={"model": model_id}).to_arrow_table().to_pylist()
    database.unregister("chosen")
    return sorted(rows, key=lambda row: place[row["image_id"], row["run_id"]])
