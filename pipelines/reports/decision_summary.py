"""What decisions say of a model: how many of its alarms were defects, and what it missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb

from ops.archives.views import Views, detector_sql
from ops.results.decision_table import DEFECT, FALSE_ALARM, UNSURE
from ops.results.proportions import wilson_interval
from pipelines.tables import current_scores, decided_images

#: Number of nights whose alarms are counted: the last ones with decisions.
NIGHTS = 30
#: An image counts once, in the night that wrote its current row.
_COUNTED = f"""
    CREATE OR REPLACE TEMP TABLE counted AS
    SELECT DISTINCT left(run_id, 10) AS night FROM decided_rows
    WHERE is_anomalous AND decided IN ('{DEFECT}', '{FALSE_ALARM}') AND left(run_id, 10) <= $night
    ORDER BY night DESC LIMIT $nights
"""  # noqa: S608 - only names from the code
_PRODUCTS = f"""
    SELECT ({{detector}}) AS product,
           count(*) FILTER (decided = '{DEFECT}') AS defects,
           count(*) FILTER (decided = '{FALSE_ALARM}') AS false_alarms,
           count(*) FILTER (decided = '{UNSURE}') AS unsure,
           count(*) FILTER (decided IS NULL) AS undecided
    FROM scores_of($model) SEMI JOIN keys USING (image_id, run_id)
    LEFT JOIN decided_keys USING (image_id, run_id)
    WHERE is_anomalous AND left(run_id, 10) IN (FROM counted)
    GROUP BY 1 HAVING defects + false_alarms > 0
    ORDER BY defects + false_alarms DESC, product
"""  # noqa: S608 - only names from the code
_MISSES = f"""
    SELECT *, count(*) OVER () AS total FROM decided_rows
    WHERE decided = '{DEFECT}' AND NOT is_anomalous AND left(run_id, 10) <= $night
    ORDER BY decided_when DESC, uri, image_id LIMIT $most
"""  # noqa: S608 - only names from the code


class DecisionSummary(NamedTuple):
    """Decisions on the current images of a model; empty if there are none."""

    nights: int = 0
    """Number of nights whose anomalous images are counted, at most `NIGHTS`."""
    first_night: str = ""
    """The earliest of them."""
    products: Sequence[Mapping[str, Any]] = ()
    """Of each product with decisions, how many anomalous images are `defects`, `false_alarms`,
    `unsure` and `undecided`; `precision`, the share of defects among the first two, between `low`
    and `high`, its 95 % interval."""
    misses: Sequence[Mapping[str, Any]] = ()
    """Rows that the model calls normal and a person a defect, the last decided first."""
    missed: int = 0
    """Number of all such rows."""


def decision_summary(
    database: duckdb.DuckDBPyConnection, model_id: str, night: str, views: Views, most: int
) -> DecisionSummary:
    """What is decided of the rows of a model that are current and not later than a night.

    With separate `views` the product of a row is the name of its detector. `most` bounds the list
    of misses. `database` is one of `current_scores.opened` with `labels`.
    """
    if not database.execute("SELECT 1 FROM image_decisions() LIMIT 1").fetchall():
        return DecisionSummary()
    current_scores.find_keys(database, model_id)
    decided_images.create(database, model_id)
    database.execute(_COUNTED, {"night": night, "nights": NIGHTS})
    [(nights, first)] = database.sql("SELECT count(*), min(night) FROM counted").fetchall()
    sql = _PRODUCTS.format(detector=detector_sql(views))
    products = database.sql(sql, params={"model": model_id}).to_arrow_table().to_pylist()
    missed = database.sql(_MISSES, params={"night": night, "most": max(most, 1)})
    misses = missed.to_arrow_table().to_pylist()
    return DecisionSummary(
        nights,
        first or "",
        [row | _precision(row["defects"], row["false_alarms"]) for row in products],
        misses[:most],
        misses[0]["total"] if misses else 0,
    )


def _precision(defects: int, false_alarms: int) -> dict[str, float]:
    low, high = wilson_interval(defects, defects + false_alarms)
    return {"precision": defects / (defects + false_alarms), "low": low, "high": high}
