"""Parts of several images that a night scored: how many, and which of them are incomplete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import duckdb

from ops.plain_text import printable
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores

#: Parts that a sentence names.
_NAMED = 5
#: Parts with an image in the runs, as they are now: their other images may be of earlier nights.
_OF_NIGHT = """
    CREATE OR REPLACE TABLE parts_of_night AS
    WITH scored AS (
        SELECT DISTINCT product, part FROM scores_of($model)
        WHERE run_id IN (SELECT unnest($runs)) AND part IS NOT NULL
    )
    SELECT parts.* FROM current_parts($model) AS parts JOIN scored
        ON parts.product = scored.product AND parts.part = scored.part
"""
_COUNTS = """
    SELECT product, count(*) AS parts, count(*) FILTER (views_failed > 0) AS failed,
           count(*) FILTER (views_missing > 0) AS missing
    FROM parts_of_night GROUP BY product ORDER BY product
"""
_EXAMPLES = """
    SELECT product, part FROM parts_of_night WHERE {} > 0 ORDER BY product, part LIMIT $most
"""


class PartSummary(NamedTuple):
    """The parts of a night; empty if its images belong to none."""

    products: Sequence[Mapping[str, Any]] = ()
    """Of each product, the numbers of `parts`, and of those with a view `failed` or `missing`."""
    sentences: Sequence[str] = ()
    """What is to be said of parts whose views failed or are missing."""


def part_summary(
    database: duckdb.DuckDBPyConnection, tables: Sequence[str], runs: Sequence[str], model_id: str
) -> PartSummary:
    """The parts of runs of one model, whose published tables are `tables`.

    `database` is one of `current_scores.opened`.
    """
    if not any(map(_has_parts, tables)):
        return PartSummary()
    database.execute(_OF_NIGHT, {"model": model_id, "runs": list(runs)})
    products = database.sql(_COUNTS).to_arrow_table().to_pylist()
    said = {
        "failed": "have a view of which no image could be scored",
        "missing": "lack the image of a view that other parts of their product have",
    }
    sentences = []
    for kind, words in said.items():
        if count := sum(row[kind] for row in products):
            query = _EXAMPLES.format(f"views_{kind}")
            found = database.execute(query, {"most": _NAMED}).fetchall()
            names = ", ".join(f"{printable(product)} {printable(part)}" for product, part in found)
            total = sum(row["parts"] for row in products)
            sentences.append(f"{count:,} of {total:,} parts {words}, such as {names}")
    return PartSummary(products, sentences)


def incomplete_parts(out: Out, record: Mapping[str, Any]) -> list[str]:
    """Sentences about the incomplete parts of a finished run, given its record."""
    table = str(record["totals"]["table"])
    if not _has_parts(table):
        return []
    with current_scores.opened(out) as database:
        runs = [str(record["run_id"])]
        return list(part_summary(database, [table], runs, str(record["model_id"])).sentences)


def _has_parts(table: str) -> bool:
    with parquet.opened(table) as opened:
        batches = opened.iter_batches(2**16, columns=["part"])
        return any(batch["part"].null_count < len(batch) for batch in batches)
