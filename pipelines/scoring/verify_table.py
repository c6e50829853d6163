"""Checks a published table: its schema, its rows, their maps, and its totals."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.archives.fetch import FetchSettings, fetch
from ops.archives.views import Views, detector_names, views_of
from ops.detectors.model_card import ModelCard
from ops.errors import UserError
from ops.failure import Failure
from ops.images.resize import InputSettings, geometry, map_size
from ops.progress import ProgressCallback
from ops.results import map_png, score_table
from ops.results.table_rules import Rule, rows_breaking
from ops.storage import files
from pipelines.scoring.publish import group_rows
from pipelines.scoring.violations import MAX_EXAMPLES, Findings, RunUnderCheck

_BATCH = 2**13


def check_table(
    run: RunUnderCheck,
    database: duckdb.DuckDBPyConnection,
    map_sample: float,
    findings: Findings,
    progress: ProgressCallback,
) -> bool:
    """Check the schema, rows, maps and totals in one pass over the table.

    Fills the database's table `rows` for checks over all rows. Returns whether the table could be
    read to its end.
    """
    database.execute(
        "CREATE TABLE rows (image_id VARCHAR, uri VARCHAR, product VARCHAR, "
        "part VARCHAR, view VARCHAR, fields MAP(VARCHAR, VARCHAR), width INTEGER, "
        "height INTEGER, ok BOOLEAN, score DOUBLE, flagged BOOLEAN, has_map BOOLEAN)"
    )
    statuses = Counter[str]()
    anomalous = 0
    rules = (*score_table.RULES, *_rules(run))
    maps = _MapCheck(run, map_sample)
    try:
        with files.open_read(run.table) as file, pq.ParquetFile(file) as table:
            if not _check_schema(run, table, findings):
                return False
            for batch in table.iter_batches(_BATCH):
                rows = pa.Table.from_batches([batch])
                for rule in rules:
                    _check_rule(run, rows, rule, findings)
                statuses.update(map(str, rows["status"].to_pylist()))
                anomalous += pc.sum(rows["is_anomalous"]).as_py() or 0
                database.register("batch", rows)
                database.execute(
                    "INSERT INTO rows SELECT image_id, uri, product, part, view, fields, width, "
                    "height, status = 'ok', score, is_anomalous, map_uri IS NOT NULL FROM batch"
                )
                maps.check(rows, findings)
                findings.images += len(rows)
                progress("check", findings.images, run.record["images"], len(findings.violations))
    except FileNotFoundError:
        return False  # `verify` reports a missing table
    except (pa.ArrowException, OSError) as error:
        findings.add("the table can be read to its end", [str(error)], run.remedy)
        return False
    _check_totals(run, statuses, anomalous, findings)
    return True


def _check_totals(
    run: RunUnderCheck, statuses: Mapping[str, int], anomalous: int, findings: Findings
) -> None:
    totals = {
        "images": findings.images,
        "statuses": dict(sorted(statuses.items())),
        "failed": findings.images - statuses.get("ok", 0),
        "anomalous": anomalous,
    }
    for name, value in totals.items():
        rule = f"the record's total of {name} is the table's"
        findings.expect(rule, run.record["totals"].get(name), value, run.remedy)


def _check_schema(run: RunUnderCheck, table: pq.ParquetFile, findings: Findings) -> bool:
    """Check columns, metadata and row groups. Returns whether rows can be checked at all."""
    schema = table.schema_arrow
    if not score_table.has_columns(schema):
        differences = _column_differences(schema) or [f"in another order: {schema.names}"]
        findings.add("the table's columns are those of the schema", differences, run.remedy)
        return False
    findings.expect(
        "the table's metadata names its schema",
        (schema.metadata or {}).get(b"nightloupe"),
        score_table.SCHEMA.metadata[b"nightloupe"],
        run.remedy,
    )
    undocumented = [field.name for field in schema if not (field.metadata or {}).get(b"meaning")]
    findings.add("the metadata of each column has its meaning", undocumented, run.remedy)
    limit = group_rows(run.record["settings"]["chunk_rows"])
    sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    findings.add(
        "no row group has more rows than the recorded chunk_rows",
        [f"group {i}: {size} rows, not {limit}" for i, size in enumerate(sizes) if size > limit],
        run.remedy,
    )
    return True


def _column_differences(schema: pa.Schema) -> list[str]:
    """Columns that are missing, unknown, or of another type than those of the score table."""
    expected = score_table.SCHEMA
    return [
        *(f"{name} is missing" for name in expected.names if name not in schema.names),
        *(f"{name} is unknown" for name in schema.names if name not in expected.names),
        *(
            f"{column.name} is {schema.field(column.name).type}, not {column.type}"
            for column in expected
            if column.name in schema.names and schema.field(column.name).type != column.type
        ),
    ]


def _rules(run: RunUnderCheck) -> Iterator[Rule]:
    """Rules for the rows of this run, by its record and its model."""
    for name in ("run_id", "model_id"):
        yield _recorded_value(name, run.record[name])
    if "thresholds" in run.record:
        yield _verdicts(run.record["thresholds"], views_of(run.record))
    if run.card:
        yield _p_values(run.card)


def _recorded_value(name: str, value: str) -> Rule:
    return Rule(
        f"rows whose {name} is not that of the record",
        (name,),
        lambda rows: pc.not_equal(rows[name], value),
    )


def _verdicts(thresholds: Mapping[str, float | None], views: Views) -> Rule:
    detectors = pa.array(thresholds, pa.string())
    limits = pa.array(thresholds.values(), pa.float64())

    def broken(rows: pa.Table) -> pa.ChunkedArray:
        places = pc.index_in(detector_names(rows, views), detectors)
        limit = limits.take(places.combine_chunks())
        verdict, above = rows["is_anomalous"], pc.greater(rows["score"], limit)
        differs = pc.fill_null(pc.not_equal(verdict, above), False)
        return pc.or_(differs, pc.xor(pc.is_null(verdict), pc.is_null(above)))

    columns = ("score", "is_anomalous")
    return Rule("rows whose is_anomalous disagrees with the threshold", columns, broken)


def _p_values(card: ModelCard) -> Rule:
    def broken(rows: pa.Table) -> pa.Array:
        expected = np.full(len(rows), np.nan)
        values = rows["score"].to_numpy()
        products = np.asarray(detector_names(rows, card.views).to_pylist(), dtype=object)
        for name, product in card.products.items():
            scored = (products == name) & np.isfinite(values)
            expected[scored] = product.calibration.p_values(values[scored])
        return pa.array(~np.isclose(rows["p_value"].to_numpy(), expected, 0, 1e-12, True))

    return Rule("rows whose p_value disagrees with the model", ("score", "p_value"), broken)


def _check_rule(run: RunUnderCheck, rows: pa.Table, rule: Rule, findings: Findings) -> None:
    broken = rows_breaking(rows, rule)
    if not len(broken):
        return
    columns = ["image_id", *dict.fromkeys(rule.columns)]
    examples = broken.slice(0, MAX_EXAMPLES).select(columns).to_pylist()
    values = [", ".join(f"{k} {v!r}" for k, v in row.items()) for row in examples]
    findings.add(f"there are no {rule.description}", values, run.remedy, len(broken))


class _MapCheck:
    """Reads a sample of the maps that rows name, and checks each."""

    def __init__(self, run: RunUnderCheck, map_sample: float) -> None:
        self._remedy = f"restore the map; or, to draw it again, {run.remedy}"
        self._model_id = run.record["model_id"]
        self._input = InputSettings(**run.record["input"])
        self._scale = run.scale
        self._map_sample = map_sample

    def check(self, rows: pa.Table, findings: Findings) -> None:
        """Check the maps of these rows, several at once."""
        with_map = rows.filter(pc.is_valid(rows["map_uri"]))
        findings.maps_named += len(with_map)
        columns = with_map.select(["image_id", "map_uri", "width", "height"]).to_pylist()
        sample = [row for row in columns if _id_fraction(str(row["image_id"])) < self._map_sample]
        findings.maps_read += len(sample)
        with ThreadPoolExecutor(16) as pool:
            for row, violation in zip(sample, pool.map(self._violation, sample), strict=True):
                if violation:
                    rule, value = violation
                    findings.add(rule, [f"{row['map_uri']}: {value}"], self._remedy)

    def _violation(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """The first rule that a row's map breaks, and how; None if it breaks none."""
        try:
            read = map_png.decode(fetch(row["map_uri"], None, None, FetchSettings()))
        except Failure as failure:
            return "every map that a row names exists", str(failure)
        except UserError as error:
            return "every map can be decoded", str(error)
        # Without model and recorded scale, all maps must have the scale of the first.
        self._scale = self._scale or read.scale
        picture = row["width"] or 1, row["height"] or 1
        width, height = map_size(*picture, self._input)
        rules: dict[str, tuple[object, object]] = {
            "maps have the run's model_id": (read.model_id, self._model_id),
            "maps have the model's offset and scale": (read.scale, self._scale),
            "maps have the size of the detector's input": (read.levels.shape, (height, width)),
            "maps cover their images": (read.geometry, geometry(*picture, self._input)),
        }
        for rule, (actual, expected) in rules.items():
            if actual != expected:
                return rule, f"{actual}, not {expected}"
        return None


def _id_fraction(image_id: str) -> float:
    """A hash of an id, as a number in [0, 1)."""
    return zlib.crc32(image_id.encode()) / 2**32
