"""What a night has to score: the inventory less what is current, joined by DuckDB, which spills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ops.images import inventory
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores

#: Addresses are due as a whole: of two members of one name both are scored, so that the newest run
#: over an address always holds all that it stands for.
_DUE = """
    CREATE TEMP TABLE known AS FROM current_keys($model);
    CREATE TEMP TABLE due AS
        SELECT listed.uri, known.run_id
        FROM read_parquet($listed) AS listed LEFT JOIN known
            ON listed.image_id = known.image_id
            AND listed.product IS NOT DISTINCT FROM known.product
        WHERE known.image_id IS NULL OR list_contains($retry, known.status);
"""
_COUNTS = """
    WITH met AS (SELECT DISTINCT uri FROM known SEMI JOIN due USING (uri))
    SELECT count(*) FILTER (WHERE run_id IS NULL AND met.uri IS NULL),
           count(*) FILTER (WHERE run_id IS NULL AND met.uri IS NOT NULL),
           count(*) FILTER (WHERE run_id IS NOT NULL)
    FROM due LEFT JOIN met USING (uri)
"""
_ROWS = """
    SELECT listed.* FROM read_parquet($listed) AS listed SEMI JOIN due USING (uri)
    ORDER BY product NULLS LAST, uri, position
"""
_RUNS = "SELECT DISTINCT last_run FROM known SEMI JOIN due USING (uri) ORDER BY 1"


@dataclass(frozen=True)
class Due:
    """How many images are to be scored, and why."""

    new: int
    """Addresses that have no row under the model."""
    changed: int
    """Another version, or another product, than that of the current row."""
    retried: int
    """Failed for a reason that may have passed."""
    runs: tuple[str, ...]
    """The runs that met these addresses last: a list that comes again after them is not theirs."""

    @property
    def images(self) -> int:
        """All of them."""
        return self.new + self.changed + self.retried


def due(
    out: Out, listed: str, model_id: str, retry: Sequence[str], to: str, memory: str = "500MB"
) -> Due:
    """Write the images of the inventory `listed` that have no valid row under a model to `to`.

    Failed rows count as valid unless their status is among `retry`. `to` is an inventory, sorted
    like any other; nothing is written if nothing is due.
    """
    with current_scores.opened(out, memory, listed) as database:
        asked = {"model": model_id, "listed": listed, "retry": list(retry)}
        for statement in _DUE.strip().split(";\n"):
            names = [name for name in asked if f"${name}" in statement]
            database.execute(statement, {name: asked[name] for name in names})
        counts = database.execute(_COUNTS).fetchone()
        assert counts is not None
        runs = database.execute(_RUNS)
        new, changed, retried = counts
        found = Due(new, changed, retried, tuple(run for (run,) in runs.fetchall()))
        if found.images:
            rows = database.sql(_ROWS, params={"listed": listed}).to_arrow_reader(2**16)
            parquet.write(to, inventory.SCHEMA, rows, rows=4096)  # workers read slices
    return found
