"""The summary of a run: counts, quantiles and drift of each product, for pages over all nights.

A summary is small and stays when jobs.expire removes rows of the run. A page over a year of nights
reads tables of scores only for the verdicts of decided images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ops.archives.views import detector_sql, views_of
from ops.results.calibration import promised_rate
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.reports.drift import COUNT, REAL, TEXT, schema
from pipelines.tables import run_records, small_tables
from pipelines.tables.database import load, opened
from pipelines.tables.model_names import named

#: Names of the quantiles, and which they are.
QUANTILES = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
#: One row per product of a run.
SUMMARY = schema(
    "run summary 1",
    ("run_id", TEXT, "the run"),
    ("run_number", COUNT, "the order of runs"),
    ("night", TEXT, "date of the night"),
    ("model_id", TEXT, "the model that scored"),
    ("model", TEXT, "what people called it then"),
    ("product", TEXT, "null: images whose path names none; with separate views PRODUCT/VIEW"),
    ("images", COUNT, "rows of the run"),
    ("failed", COUNT, "of these, images without a score"),
    ("anomalous", COUNT, "of these, anomalous images"),
    *((name, REAL, f"{share:.0%} quantile of the scores") for name, share in QUANTILES.items()),
    ("threshold", REAL, "scores above it were anomalous; null without calibration"),
    ("promised", REAL, "false-alarm rate that calibration promises on average"),
    ("psi", REAL, "population stability index against all earlier nights, as in drift/"),
    ("ks_q", REAL, "adjusted p-value of the drift, as in drift/"),
)
_SUMMARY = """
    SELECT {detector} AS product, count(*) AS images, count(*) FILTER (status <> 'ok') AS failed,
           count(*) FILTER (is_anomalous) AS anomalous, quantile_cont(score, {shares}) AS quantiles
    FROM run GROUP BY 1 ORDER BY 1 NULLS LAST
"""
_COLUMNS = ("product", "view", "status", "score", "is_anomalous")


def _violations(table: pa.Table) -> list[str]:
    if table.schema.names == SUMMARY.names and table.schema.types == SUMMARY.types:
        return []
    return [f"its columns are {', '.join(table.schema.names)[:200]}"]


_TABLES = small_tables.Kind(
    "summary of a run", SUMMARY, _violations, "it is made again while the run has all its rows"
)


def summarise(out: Out, record: Mapping[str, Any]) -> None:
    """Write the summary of a finished run, given its record."""
    parquet.write(out.run_summary(str(record["run_id"])), SUMMARY, [summary_of(out, record)])


def complete(out: Out, records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write the summaries that finished runs lack; returns the ids of runs that have none.

    A run without all of its rows, because jobs.expire or a loss took some, gets none.
    """
    kept = set(files.names(out.summaries()))
    without = []
    for record in records:
        if f"{record['run_id']}.parquet" in kept:
            continue
        if "expired" not in record and run_records.has_table(out, record):
            summarise(out, record)
        else:
            without.append(str(record["run_id"]))
    return without


def summary_of(out: Out, record: Mapping[str, Any]) -> pa.Table:
    """A row of `SUMMARY` for each product of a finished run, given its record."""
    run_id, views = str(record["run_id"]), views_of(record)
    query = _SUMMARY.format(detector=detector_sql(views), shares=list(QUANTILES.values()))
    with opened() as database:
        load(database, "run", out.table(str(record["night"]), run_id), _COLUMNS)
        rows = database.sql(query).to_arrow_table().to_pylist()
    drift = _drift(out, run_id)
    of_run = {
        "run_id": run_id,
        "run_number": record["number"],
        "night": record["night"],
        "model_id": record["model_id"],
        "model": named(record).short,
    }
    for row in rows:
        product = row["product"]
        held_out = record.get("held_out", {}).get(product)
        rate = record.get("false_alarm_rates", {}).get(product)
        row.update(of_run)
        row.update(zip(QUANTILES, row.pop("quantiles") or (), strict=False))
        row["threshold"] = record.get("thresholds", {}).get(product)
        row["promised"] = promised_rate(rate, held_out) if held_out else None
        row.update(drift.get(product, {}))
    return pa.Table.from_pylist(rows, SUMMARY)


def read(places: Sequence[str]) -> pa.Table:
    """The rows of summaries, in their order. Raises UserError that names a damaged one."""
    return small_tables.read(_TABLES, places)


def _drift(out: Out, run_id: str) -> dict[str | None, dict[str, Any]]:
    """PSI and q by product, from the drift table of a run; empty if the run has none."""
    if not files.exists(out.drift(run_id)):
        return {}
    rows = parquet.read(out.drift(run_id), ["product", "psi", "ks_q"]).to_pylist()
    return {row.pop("product"): row for row in rows}
