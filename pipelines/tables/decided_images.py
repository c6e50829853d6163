"""What people decided of the current images, and the alarms that they dismissed as false."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from ops.results.decision_table import FALSE_ALARM
from ops.storage.parquet import column

#: What a decision adds to the row of an image; null without one. A file of these rows can be given
#: to jobs.label, which reads decisions and times to store from columns of other names.
COLUMNS = pa.schema(
    [
        column("decided", pa.string(), "what a person said of these bytes, under any model"),
        column("decided_by", pa.string(), "who decided"),
        column("decided_when", pa.timestamp("us", "UTC"), "when it was decided"),
        column("decided_model_id", pa.string(), "the model whose score was shown"),
    ]
)
#: A false alarm of these bytes under the model `$model`, which another model may raise again.
DISMISSED = f"""coalesce(
    is_anomalous AND decided = '{FALSE_ALARM}' AND decided_model_id = $model, false
)"""
#: The join of deploy/sql/duckdb_decided.sql, for current rows that were found before.
_DECIDED = """
    CREATE OR REPLACE TEMP TABLE decided_rows AS
    SELECT scores.*, decisions.decision AS decided, decisions.who AS decided_by,
           decisions.decided_at AS decided_when, decisions.model_id AS decided_model_id
    FROM scores_of($model) AS scores JOIN image_decisions() AS decisions
        ON scores.uri = decisions.uri
        AND coalesce(scores.content_sha256, scores.image_id)
            = coalesce(decisions.content_sha256, decisions.image_id)
    SEMI JOIN {keys} AS keys ON scores.image_id = keys.image_id AND scores.run_id = keys.run_id
"""
_DECISIONS = """
    CREATE OR REPLACE TEMP VIEW decided_keys AS
    SELECT image_id, run_id, decided, decided_by, decided_when, decided_model_id FROM decided_rows
"""


def create(database: duckdb.DuckDBPyConnection, model_id: str, keys: str = "keys") -> None:
    """Create the table `decided_rows` of the rows with a decision, and a view of it.

    The table has the columns of the score table and of `COLUMNS`, the view `decided_keys` those of
    `COLUMNS`, `image_id` and `run_id`. `database` is one of `current_scores.opened` with `labels`;
    in others they are empty. `keys` is a table with `image_id` and `run_id` of rows, else those of
    `current_scores.find_keys`.
    """
    database.execute(_DECIDED.format(keys=keys), {"model": model_id})
    database.execute(_DECISIONS)


def dismissed(database: duckdb.DuckDBPyConnection) -> int:
    """The number of rows that `current_scores.query` left out as false alarms."""
    [(rows,)] = database.sql("SELECT count(*) FROM dismissed").fetchall()
    return int(rows)
