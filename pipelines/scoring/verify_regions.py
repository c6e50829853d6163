"""Checks the table of a run's regions against its rows, its record and its model."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from ops.archives.views import detector_sql
from ops.detectors.model_card import ModelCard
from ops.errors import UserError
from ops.results import region_table
from ops.results.regions import MOST, RegionSettings
from ops.storage import files, parquet
from pipelines.scoring.stream import region_rules
from pipelines.scoring.violations import MAX_EXAMPLES, Findings, RunUnderCheck
from pipelines.tables.database import load

#: A rule, and the regions that break it: columns to show, what they are joined with, and which.
_ROW_RULES = {
    "every region belongs to an image of the run with a score": (
        "image_id, number FROM regions ANTI JOIN (FROM rows WHERE ok) AS scored USING (image_id)"
    ),
    "regions have the run_id and model_id of the record": (
        "image_id, number, run_id, model_id FROM regions "
        "WHERE run_id <> $run_id OR model_id <> $model_id"
    ),
    "regions lie within their pictures": (
        "image_id, number, box_x, box_y, box_width, box_height, width, height "
        "FROM regions JOIN rows USING (image_id) "
        "WHERE box_x < 0 OR box_y < 0 OR box_width < 1 OR box_height < 1 "
        "OR box_x + box_width > width OR box_y + box_height > height "
        "OR NOT centroid_x BETWEEN 0 AND width - 1 OR NOT centroid_y BETWEEN 0 AND height - 1"
    ),
    "regions have an area of at least the recorded regions.min_area": (
        "image_id, number, area FROM regions WHERE NOT (area > 0 AND area >= $min_area)"
    ),
    "the mean of a region is at most its largest value": (
        "image_id, number, mean, largest FROM regions WHERE NOT mean <= largest"
    ),
    "regions of an image are numbered from 1 by falling largest value": (
        "image_id, number, largest FROM (SELECT *, row_number() OVER each AS place, "  # noqa: S608 - a number
        "lag(largest) OVER each AS before FROM regions "
        "WINDOW each AS (PARTITION BY image_id ORDER BY number)) "
        f"WHERE number <> place OR number > {MOST} OR largest > before"
    ),
}
_UNDER_MODEL = {
    "the largest value of a region is above the pixel threshold": (
        "WHERE threshold IS NULL OR NOT largest > threshold"
    ),
    "regions have the p_value that the model gives": (
        "WHERE NOT abs(p_value - (1 + len(list_filter(peaks, lambda peak: peak >= largest))) "
        "/ (1 + len(peaks))) < 1e-9"
    ),
}


def check_regions(
    run: RunUnderCheck, database: duckdb.DuckDBPyConnection, findings: Findings
) -> None:
    """Check that the table of regions exists, and each of its rows.

    `database` has the table `rows` of `check_table`.
    """
    record = run.record
    location = run.out.region_table(run.run_id[:10], run.run_id)
    if not files.exists(location):
        findings.add(
            "the run's table of regions exists", [f"{location} does not exist"], run.remedy
        )
        return
    try:
        if not _check_schema(location, run.remedy, findings):
            return
        load(database, "regions", location, region_table.SCHEMA.names)
    except (pa.ArrowException, duckdb.Error, UserError, OSError) as error:
        findings.add("the table of regions can be read to its end", [str(error)], run.remedy)
        return
    parameters = {
        "run_id": record["run_id"],
        "model_id": record["model_id"],
        "min_area": record["regions"]["min_area"],
    }
    for rule, query in _ROW_RULES.items():
        given = {name: value for name, value in parameters.items() if f"${name}" in query}
        _report(database.sql(f"SELECT {query}", params=given), rule, run.remedy, findings)
    if run.card and run.card.model_id == record["model_id"]:
        _check_under_model(run, run.card, database, findings)
    [(count,)] = database.sql("SELECT count(*) FROM regions").fetchall()
    rule = "the record's total of regions is the table's"
    findings.expect(rule, record["totals"].get("regions"), count, run.remedy)


def _check_schema(location: str, remedy: str, findings: Findings) -> bool:
    with parquet.opened(location) as table:
        found = table.schema_arrow
    expected = region_table.SCHEMA
    if (found.names, found.types) != (expected.names, expected.types):
        rule = "the columns of the table of regions are those of its schema"
        findings.add(rule, [str(found.names)], remedy)
        return False
    return True


def _check_under_model(
    run: RunUnderCheck, card: ModelCard, database: duckdb.DuckDBPyConnection, findings: Findings
) -> None:
    """Check thresholds and p-values by the calibration of the model."""
    rules = region_rules(card, RegionSettings(**run.record["regions"]))
    known = [
        {"detector": name, "threshold": rules.thresholds[name], "peaks": list(values.scores)}
        for name, values in rules.peaks.items()
    ]
    columns = [
        ("detector", pa.string()),
        ("threshold", pa.float64()),
        ("peaks", pa.list_(pa.float64())),
    ]
    database.register("calibrated", pa.Table.from_pylist(known, pa.schema(columns)))
    joined = (
        "SELECT image_id, number, largest, threshold, p_value FROM regions "  # noqa: S608 - only names of columns
        "JOIN rows USING (image_id) LEFT JOIN calibrated "
        f"ON calibrated.detector = {detector_sql(card.views, 'rows')} "
    )
    for rule, where in _UNDER_MODEL.items():
        _report(database.sql(f"{joined} {where}"), rule, run.remedy, findings)


def _report(rows: duckdb.DuckDBPyRelation, rule: str, remedy: str, findings: Findings) -> None:
    """Add the regions that break a rule."""
    if count := len(rows):
        examples = rows.order("ALL").limit(MAX_EXAMPLES).fetchall()
        findings.add(rule, [", ".join(map(str, row)) for row in examples], remedy, count)
