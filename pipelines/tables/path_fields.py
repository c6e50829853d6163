"""Fields of path patterns beyond those with a meaning: of a line, a shift, whatever paths name."""

from __future__ import annotations

import duckdb

_NAMES = "SELECT DISTINCT unnest(map_keys(fields)) AS name FROM scores_of($model) ORDER BY name"


def names(database: duckdb.DuckDBPyConnection, model_id: str) -> list[str]:
    """The names of all fields in the score tables of a model, sorted.

    `database` is one of `current_scores.opened`.
    """
    return [name for (name,) in database.execute(_NAMES, {"model": model_id}).fetchall()]
