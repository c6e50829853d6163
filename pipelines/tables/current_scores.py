"""All published nights as one history, and what is current in it. Asked of DuckDB, which spills."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from ops.errors import SettingError
from ops.results import score_table
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables.database import opened as database_opened

#: The macros `current_scores(model)` and `current_keys(model)`, the same for people and for us.
MACROS = Path(__file__).parents[2] / "deploy" / "sql" / "duckdb.sql"
#: p-values are multiples of 1 / (1 + held-out images), so this only absorbs rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Label:
    """What makes an image of one product anomalous, instead of what its row says.

    A score above `threshold`, or a p-value of at most `p_value`.
    """

    threshold: float | None = None
    p_value: float | None = None

    @classmethod
    def at_rate(cls, false_alarm_rate: float, held_out: int) -> Label:
        """The same verdicts as those of `Calibration.threshold` at this rate."""
        if not 0 < false_alarm_rate < 1:
            raise SettingError(f"false_alarm_rate {false_alarm_rate} must lie between 0 and 1")
        return cls(p_value=promised(false_alarm_rate, held_out) + _ROUNDING)


def promised(false_alarm_rate: float, held_out: int) -> float:
    """The rate that so many held-out images can promise: no p-value is below 1 / (1 + them)."""
    return max(false_alarm_rate, 1 / (1 + held_out))


def published(out: Out) -> list[str]:
    """All published tables, oldest night first."""
    place = out.scores()
    kept = (name for name in files.names(place) if name.rpartition("/")[2].startswith("part-"))
    return [files.join(place, name) for name in kept]


@contextlib.contextmanager
def opened(out: Out, memory: str = "2GB", *others: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that knows `current_scores(model)` and `current_keys(model)` of an output folder.

    It sees the tables that are published now. Beyond `memory` it works on disk. `others` are the
    files that will be asked for besides.
    """
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        found = published(out)
        if not found:
            found = [os.path.join(folder, "none.parquet")]
            parquet.write(found[0], score_table.SCHEMA, [])
        with database_opened(memory) as database:
            if any(map(files.is_s3, (out.root, *others))):
                database.register_filesystem(files.s3())
            database.execute("SET preserve_insertion_order = false")  # would be kept in memory
            database.execute("SET TimeZone = 'UTC'")
            database.execute("SET VARIABLE tables = $found", {"found": found})
            database.execute(MACROS.read_text(encoding="utf-8"))
            yield database


def ask(
    database: duckdb.DuckDBPyConnection,
    model_id: str,
    *,
    where: str = "",
    limit: int | None = None,
    labels: Mapping[str, Label] | None = None,
    only: str = "",
) -> Iterator[pa.RecordBatch]:
    """Stream current rows, the highest scores first. Raises SettingError if `where` is invalid.

    `where` is SQL over the columns of the score table, with `labels` (by product) already applied;
    `only` is an inventory, one of `opened`'s `others`: images that it does not list are left out.
    Columns and types are those of `scores.SCHEMA`.
    """
    columns = {"product": pa.string(), "threshold": pa.float64(), "p_value": pa.float64()}
    named = [
        {"product": product, "threshold": label.threshold, "p_value": label.p_value}
        for product, label in (labels or {}).items()
    ]
    database.register("labels", pa.Table.from_pylist(named, pa.schema(list(columns.items()))))
    listed = "SEMI JOIN read_parquet($only) USING (image_id)" if only else ""
    question = f"""
        WITH labelled AS (
            SELECT current.* REPLACE (
                CASE WHEN labels.threshold IS NOT NULL THEN current.score > labels.threshold
                     WHEN labels.p_value IS NOT NULL THEN current.p_value <= labels.p_value
                     ELSE current.is_anomalous END AS is_anomalous)
            FROM current_scores($model) AS current LEFT JOIN labels USING (product)
        )
        SELECT * FROM labelled {listed} WHERE ({where or "true"})
        ORDER BY score DESC NULLS LAST, image_id {f"LIMIT {limit:d}" if limit is not None else ""}
    """  # noqa: S608 - the condition is the asker's own
    asked = {"model": model_id} | ({"only": only} if only else {})
    try:
        found = database.sql(question, params=asked).to_arrow_reader(2**16)
    except (duckdb.ParserException, duckdb.BinderException, duckdb.ConversionException) as error:
        raise SettingError(
            f"where {where!r} is no condition over the score table: {error}"
        ) from None
    for batch in found:
        rows = (
            pa.Table.from_batches([batch]).select(score_table.SCHEMA.names).cast(score_table.SCHEMA)
        )
        yield from rows.to_batches()


def current(out: Out, model_id: str, where: str = "") -> pa.Table:
    """The newest valid row of each image under a model, over all nights; `scores.SCHEMA`.

    It must fit into memory; `ask` streams.
    """
    with opened(out) as database:
        return pa.Table.from_batches(ask(database, model_id, where=where), score_table.SCHEMA)
