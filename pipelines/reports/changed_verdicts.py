"""Verdicts (`is_anomalous`) that differ between two rows of the same image, in SQL."""

from __future__ import annotations

from typing import Any, NamedTuple

import duckdb

from pipelines.tables import worst_first

_VERDICT_CHANGE = """
    CREATE OR REPLACE MACRO verdict_change(before, after) AS
        CASE WHEN after AND NOT before THEN 'became_anomalous'
             WHEN before AND NOT after THEN 'became_normal' END
"""


def define_verdict_change(database: duckdb.DuckDBPyConnection) -> None:
    """Define the SQL macro `verdict_change(before, after)`.

    It gives `became_anomalous`, `became_normal`, or null if the verdict is the same or unknown.
    """
    database.execute(_VERDICT_CHANGE)


def numbered_members(table: str, keys: str) -> str:
    """SQL: the rows of a table, with `k` numbering those that share `keys` by score.

    An archive may hold several members of one name. The k-th of one run is compared with the k-th
    of the other. Ids change with every version of the archive; scores of unchanged members do not.
    """
    number = f"row_number() OVER (PARTITION BY {keys} ORDER BY score, image_id) AS k"
    return f"SELECT *, {number} FROM {table}"  # noqa: S608 - only names from the code


_COMPARED = f"""
    CREATE TABLE compared AS
    WITH now AS ({numbered_members("b", "uri, run_id")}),
    earlier AS ({numbered_members("a SEMI JOIN b USING (uri)", "uri, run_id")}),
    newest AS (
        SELECT * FROM earlier WHERE is_anomalous IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY uri, k ORDER BY run_number DESC, run_id DESC) = 1
    )
    SELECT now.image_id, now.uri, now.product, now.is_anomalous, now.score, now.p_value,
           newest.is_anomalous AS was_anomalous, newest.score AS score_before,
           newest.p_value AS p_value_before, newest.run_id AS run_before,
           verdict_change(newest.is_anomalous, now.is_anomalous) AS change
    FROM now JOIN newest USING (uri, k) WHERE now.is_anomalous IS NOT NULL
"""  # noqa: S608 - only names from the code
_CHANGED = f"""
    WITH changed AS (
        SELECT compared.*, {worst_first.SORT_P_VALUE}
        FROM compared LEFT JOIN floors ON compared.product = floors.detector
        WHERE change IS NOT NULL
    )
    SELECT * EXCLUDE (image_id, change, sort_p_value, turn)
    FROM (SELECT *, {worst_first.turn()} FROM changed)
    ORDER BY {worst_first.order()} LIMIT $most
"""  # noqa: S608 - only names from the code
_COUNTS = """
    SELECT count(*), count(*) FILTER (change = 'became_anomalous'),
           count(*) FILTER (change = 'became_normal') FROM compared
"""


class ChangedVerdicts(NamedTuple):
    """How verdicts differ from the newest earlier ones of the same addresses."""

    compared: int
    """Images with a verdict now and an earlier one."""
    became_anomalous: int
    became_normal: int
    rows: list[dict[str, Any]]
    """Some of the images whose verdict changed; those that became anomalous first."""

    @property
    def changed(self) -> int:
        """Images whose verdict changed."""
        return self.became_anomalous + self.became_normal


def changed_verdicts(database: duckdb.DuckDBPyConnection, most: int) -> ChangedVerdicts:
    """Compare the verdicts of the tables that `drift.load_runs` made; at most `most` rows."""
    define_verdict_change(database)
    database.execute(_COMPARED)
    [(compared, became_anomalous, became_normal)] = database.sql(_COUNTS).fetchall()
    rows = database.sql(_CHANGED, params={"most": most}).to_arrow_table().to_pylist()
    return ChangedVerdicts(compared, became_anomalous, became_normal, rows)
