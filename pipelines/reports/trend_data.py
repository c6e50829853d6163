"""What the page about all nights shows: the figures of each run, by product, and decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

from ops.archives.views import detector_sql, views_of
from ops.errors import SettingError
from ops.results.decision_table import DEFECT, FALSE_ALARM, UNSURE
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports import run_summary, trend_alarms
from pipelines.reports.alerts import has_drifted
from pipelines.reports.report_queries import Row
from pipelines.reports.trend_alarms import Alarm
from pipelines.tables import current_scores, run_records
from pipelines.tables.model_names import named

#: Maximum number of products in the table of all products.
LISTED = 2000
#: Population stability index from which on drift is marked by convention.
MARKED_DRIFT = 0.25


@dataclass(frozen=True)
class TrendSettings:
    """Settings of the page about all nights."""

    nights: int = 90
    """How many of the last runs it shows; a night has one, unless it was started again."""
    products: int = 30
    """Maximum number of products with charts: those with alarms, then those with the most anomalous
    images. The others are rows of a table."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        for name, least, most in (("nights", 1, 1000), ("products", 0, 200)):
            if not least <= (value := getattr(self, name)) <= most:
                raise SettingError(f"{name} {value} must lie between {least} and {most}")


class Decided(NamedTuple):
    """What people decided about the images of a product in a run."""

    defect: int = 0
    false_alarm: int = 0
    unsure: int = 0
    flagged_defect: int = 0
    """Defects among the anomalous images."""
    flagged_false_alarm: int = 0

    @property
    def precision(self) -> float | None:
        """Share of defects among the decided anomalous images; None if there are none."""
        decided = self.flagged_defect + self.flagged_false_alarm
        return self.flagged_defect / decided if decided else None


class TrendRun(NamedTuple):
    """A run as a place on the axis of all charts."""

    run_id: str
    night: str
    model_id: str
    model: str
    images: int
    failed: int
    anomalous: int
    images_per_second: float | None
    warnings: int
    has_report: bool


class TrendData(NamedTuple):
    """Everything that the page shows."""

    runs: Sequence[TrendRun]
    """In the order in which they started."""
    settings: TrendSettings
    earlier: int
    """Number of runs before them."""
    overview: Sequence[Row]
    """A row for each product: its last figures, and its sums over all runs; the order of charts."""
    products: int
    """Number of all products."""
    series: Mapping[str | None, Mapping[str, Row]]
    """Rows of `run_summary.SUMMARY` by product, of those with charts, and id of the run."""
    decided: Mapping[tuple[str | None, str], Decided]
    """By product and id of the run."""
    alarms: Sequence[Alarm]
    """Products that differ from their earlier nights in the last run."""
    drifted: Sequence[Row]
    """Rows of `run_summary.SUMMARY` of the last run whose scores drifted from all earlier ones."""
    without: Sequence[str]
    """Ids of runs whose figures by product are lost."""


def collect(out: Out, settings: TrendSettings) -> TrendData:
    """Read the figures of the last runs; summarises the runs that have no summary yet."""
    finished = run_records.with_totals(out)
    records = finished[-settings.nights :]
    without = run_summary.complete(out, records)
    reports = set(files.names(out.reports()))
    runs = [_run(record, f"{record['run_id']}.html" in reports) for record in records]
    summaries = [out.run_summary(run.run_id) for run in runs if run.run_id not in without]

    def read(database: duckdb.DuckDBPyConnection, _: Callable[[], None]) -> TrendData:
        _load(database, summaries)
        last = records[-1]["number"] if records else 0
        alarms, drifted = _alarms(database, last)
        noted = [each.product for each in alarms] + [row["product"] for row in drifted]
        overview, count, series = _products(database, noted, settings.products)
        return TrendData(
            runs=runs,
            settings=settings,
            earlier=len(finished) - len(records),
            overview=overview,
            products=count,
            series=series,
            decided=_decisions(database, records),
            alarms=alarms,
            drifted=drifted,
            without=without,
        )

    return current_scores.read_consistently(out, read, labels=True)


def _run(record: Mapping[str, Any], has_report: bool) -> TrendRun:
    totals, model = record["totals"], named(record)
    return TrendRun(
        run_id=str(record["run_id"]),
        night=str(record["night"]),
        model_id=model.model_id,
        model=model.short,
        images=totals["images"],
        failed=totals["failed"],
        anomalous=totals["anomalous"],
        images_per_second=totals.get("images_per_second"),
        warnings=len(record.get("warnings", ())),
        has_report=has_report,
    )


_OVERVIEW = """
    SELECT product, count(*) AS runs, sum(images)::BIGINT AS all_images,
           sum(failed)::BIGINT AS all_failed, sum(anomalous)::BIGINT AS all_anomalous,
           max(run_number) AS last_number, arg_max(night, run_number) AS night,
           arg_max(images, run_number) AS images, arg_max(failed, run_number) AS failed,
           arg_max(anomalous, run_number) AS anomalous,
           arg_max(promised, run_number) AS promised
    FROM summaries GROUP BY product
    ORDER BY list_contains($noted, coalesce(product, '')) DESC, last_number DESC, anomalous DESC,
             product NULLS LAST
"""
_DRIFTED = """
    FROM summaries WHERE run_number = $last AND psi IS NOT NULL ORDER BY psi DESC
"""


def _load(database: duckdb.DuckDBPyConnection, summaries: list[str]) -> None:
    """Create the table `summaries` of some files. Raises UserError that names a damaged one."""
    database.register("read_summaries", run_summary.read(summaries))
    database.execute("CREATE TABLE summaries AS FROM read_summaries")
    database.unregister("read_summaries")


def _alarms(database: duckdb.DuckDBPyConnection, last: int) -> tuple[list[Alarm], list[Row]]:
    """The alarms of the last run, and its rows that drifted."""
    rows = database.sql("FROM summaries").to_arrow_table().select(trend_alarms.COLUMNS)
    drift = database.sql(_DRIFTED, params={"last": last}).to_arrow_table().to_pylist()
    return trend_alarms.find(rows, last), [row for row in drift if has_drifted(row, MARKED_DRIFT)]


def _products(
    database: duckdb.DuckDBPyConnection, noted: list[str | None], most: int
) -> tuple[list[Row], int, dict[str | None, dict[str, Row]]]:
    """The overview, the number of products, and the rows of the first `most` by run.

    Products that are noted come first.
    """
    names = [name or "" for name in noted]
    overview = database.sql(_OVERVIEW, params={"noted": names}).to_arrow_table().to_pylist()
    chosen = [row["product"] for row in overview[:most]]
    query = "FROM summaries WHERE list_contains($chosen, product) OR (product IS NULL AND $null)"
    names = [name for name in chosen if name is not None]
    rows = database.sql(query, params={"chosen": names, "null": None in chosen}).to_arrow_table()
    series: dict[str | None, dict[str, Row]] = {name: {} for name in chosen}
    for row in rows.to_pylist():
        series[row["product"]][row["run_id"]] = row
    return overview[:LISTED], len(overview), series


#: Decided images, with their verdicts where the run's table still has the row.
_DECISIONS = """
    WITH decided AS (
        SELECT image_id, run_id, product, decision FROM image_decisions()
        WHERE run_id IN (SELECT unnest($runs))
    ),
    rows AS (
        SELECT image_id, run_id, {detector} AS detector, is_anomalous
        FROM read_parquet(getvariable('tables'), hive_partitioning = false)
        WHERE run_id IN (SELECT run_id FROM decided)
    )
    SELECT run_id, coalesce(detector, product), decision, coalesce(is_anomalous, false), count(*)
    FROM decided LEFT JOIN rows USING (image_id, run_id) GROUP BY ALL
"""


def _decisions(
    database: duckdb.DuckDBPyConnection, records: Sequence[Mapping[str, Any]]
) -> dict[tuple[str | None, str], Decided]:
    """Decisions by product and id of the run whose score was shown."""
    decided: dict[tuple[str | None, str], Decided] = {}
    if database.sql("SELECT count(*) FROM image_decisions()").fetchall() == [(0,)]:
        return decided
    for views in ("pooled", "separate"):
        runs = [str(record["run_id"]) for record in records if views_of(record) == views]
        query = _DECISIONS.format(detector=detector_sql(views))
        for run_id, product, decision, flagged, images in database.execute(
            query, {"runs": runs}
        ).fetchall():
            key = product, run_id
            decided[key] = _counted(decided.get(key, Decided()), decision, flagged, images)
    return decided


def _counted(before: Decided, decision: str, flagged: bool, images: int) -> Decided:
    names = [decision] if decision in {DEFECT, FALSE_ALARM, UNSURE} else []
    names += [f"flagged_{decision}"] if flagged and decision in {DEFECT, FALSE_ALARM} else []
    return before._replace(**{name: getattr(before, name) + images for name in names})
