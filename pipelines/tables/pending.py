"""The images that a night has to score.

A night scores images that are new, have changed, failed for a transient reason, or were found to
have other bytes than those that were scored. DuckDB joins the inventory with the current scores and
spills to disk beyond its memory limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ops.archives import inventory
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores

#: If one of several members of the same URI is pending, all of them are. So the newest run over a
#: URI always holds all of its members, which `current_keys` relies on.
_PENDING = """
    CREATE TEMP TABLE known AS FROM current_keys($model);
    CREATE TEMP TABLE pending AS
        SELECT listed.uri, known.run_id, listed.image_id IN (FROM differing) AS differs
        FROM read_parquet($listed) AS listed LEFT JOIN known
            ON listed.image_id = known.image_id
            AND nfc_normalize(listed.product) IS NOT DISTINCT FROM known.product
            AND nfc_normalize(listed.part) IS NOT DISTINCT FROM known.part
            AND nfc_normalize(listed.view) IS NOT DISTINCT FROM known.view
            AND listed.fields IS NOT DISTINCT FROM known.fields
        WHERE known.image_id IS NULL OR list_contains($retry, known.status)
            OR listed.image_id IN (FROM differing);
"""
_COUNTS = """
    WITH scored AS (SELECT DISTINCT uri FROM known SEMI JOIN pending USING (uri))
    SELECT count(*) FILTER (run_id IS NULL AND scored.uri IS NULL),
           count(*) FILTER (run_id IS NULL AND scored.uri IS NOT NULL),
           count(*) FILTER (run_id IS NOT NULL AND NOT differs),
           count(*) FILTER (run_id IS NOT NULL AND differs)
    FROM pending LEFT JOIN scored USING (uri)
"""
_IMAGES = f"""
    SELECT listed.* FROM read_parquet($listed) AS listed SEMI JOIN pending USING (uri)
    ORDER BY {inventory.ORDER}
"""  # noqa: S608 - the order is a constant
_RUNS = "SELECT DISTINCT last_run FROM known SEMI JOIN pending USING (uri) ORDER BY 1"


@dataclass(frozen=True)
class Pending:
    """How many images have to be scored, and why."""

    new: int
    """Images whose URI has no row under the model."""
    changed: int
    """Images whose version, product, part, view or fields differ from those of the current row."""
    retried: int
    """Images that failed for a transient reason."""
    differing: int
    """Images whose bytes are not those that were scored, though their version is the same."""
    runs: tuple[str, ...]
    """Ids of the runs that hold the newest rows of these URIs. They are part of the next run's id,
    so that scoring the same list again later is another run."""

    @property
    def images(self) -> int:
        """Their sum."""
        return self.new + self.changed + self.retried + self.differing


def find_pending(
    out: Out,
    listed: str,
    model_id: str,
    retry: Sequence[str],
    to: str,
    memory: str = "500MB",
    differing: Sequence[str] = (),
) -> Pending:
    """Write the images of the inventory `listed` that have no valid row under a model to `to`.

    A row of a failed image is valid unless its status is among `retry`. No row of an image whose id
    is among `differing` is valid. `to` is an inventory in the usual order; it is not written if no
    image is pending.
    """
    with current_scores.opened(out, memory, listed) as database:
        ids = pa.table({"image_id": pa.array(differing, pa.string())})
        database.register("differing", ids)
        parameters = {"model": model_id, "listed": listed, "retry": list(retry)}
        for statement in _PENDING.strip().split(";\n"):
            used = {name: value for name, value in parameters.items() if f"${name}" in statement}
            database.execute(statement, used)
        counts = database.execute(_COUNTS).fetchone()
        assert counts is not None
        new, changed, retried, differ = counts
        runs = tuple(run_id for (run_id,) in database.execute(_RUNS).fetchall())
        pending = Pending(new, changed, retried, differ, runs)
        if pending.images:
            rows = database.sql(_IMAGES, params={"listed": listed}).to_arrow_reader(2**16)
            parquet.write(to, inventory.SCHEMA, rows, rows=4096)  # workers read slices
    return pending
