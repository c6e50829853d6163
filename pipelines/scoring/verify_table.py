"""Checking a published table: its schema, its rows, the maps that they name, and its totals."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ops.detectors.model_folder import ModelCard
from ops.errors import UserError
from ops.images.failure import Failure
from ops.images.fetch import FetchSettings, fetch
from ops.images.resize import InputSettings, geometry
from ops.progress import ProgressCallback
from ops.results import anomaly_map, score_table
from ops.results.score_table import Rule
from ops.storage import files
from pipelines.scoring.publish import group_rows
from pipelines.scoring.violations import SHOWN, Findings, RunUnderCheck

_BATCH = 2**13


def check_table(
    subject: RunUnderCheck,
    database: duckdb.DuckDBPyConnection,
    share: float,
    found: Findings,
    watch: ProgressCallback,
) -> bool:
    """One pass over the table: its schema, its rows, its maps, its totals.

    Leaves in `rows` of the database what is asked of all rows together. Returns whether the table
    could be read to its end.
    """
    database.execute(
        "CREATE TABLE rows (image_id VARCHAR, uri VARCHAR, product VARCHAR, ok BOOLEAN, "
        "score DOUBLE, flagged BOOLEAN, mapped BOOLEAN)"
    )
    counted: dict[str, int] = {}
    anomalous = 0
    rules = (*score_table.RULES, *_rules(subject))
    flaws = _Maps(subject, share)
    try:
        with files.open_read(subject.table) as file, pq.ParquetFile(file) as table:
            if not _check_schema(subject, table, found):
                return False
            for batch in table.iter_batches(_BATCH):
                rows = pa.Table.from_batches([batch])
                for rule in rules:
                    _check_rule(subject, rows, rule, found)
                for entry in pc.value_counts(rows["status"]).to_pylist():
                    status = str(entry["values"])
                    counted[status] = counted.get(status, 0) + entry["counts"]
                anomalous += pc.sum(rows["is_anomalous"]).as_py() or 0
                database.register("batch", rows)
                database.execute(
                    "INSERT INTO rows SELECT image_id, uri, product, status = 'ok', score, "
                    "is_anomalous, map_uri IS NOT NULL FROM batch"
                )
                flaws.read(rows, found)
                found.images += len(rows)
                watch("check", found.images, subject.record["images"], len(found.violations))
    except FileNotFoundError:
        return False  # which was noted
    except (pa.ArrowException, OSError) as error:
        found.add("the table can be read to its end", [str(error)], subject.again)
        return False
    _check_totals(subject, counted, anomalous, found)
    return True


def _check_totals(
    subject: RunUnderCheck, counted: Mapping[str, int], anomalous: int, found: Findings
) -> None:
    totals = {
        "images": found.images,
        "statuses": dict(sorted(counted.items())),
        "failed": found.images - counted.get("ok", 0),
        "anomalous": anomalous,
    }
    for name, value in totals.items():
        rule = f"the record's total of {name} is the table's"
        found.expect(rule, subject.record["totals"].get(name), value, subject.again)


def _check_schema(subject: RunUnderCheck, table: pq.ParquetFile, found: Findings) -> bool:
    """Whether rows can be checked at all."""
    schema = table.schema_arrow
    if not score_table.has_columns(schema):
        known = [column for column in score_table.SCHEMA if column.name in schema.names]
        wrong = [
            *(
                f"{name} is lacking"
                for name in score_table.SCHEMA.names
                if name not in schema.names
            ),
            *(
                f"{name} is unknown"
                for name in schema.names
                if name not in score_table.SCHEMA.names
            ),
            *(
                f"{column.name} is {schema.field(column.name).type}, not {column.type}"
                for column in known
                if schema.field(column.name).type != column.type
            ),
        ]
        rule = "the table's columns are those of the schema"
        found.add(rule, wrong or [f"in another order: {schema.names}"], subject.again)
        return False
    found.expect(
        "the table says which schema it follows",
        (schema.metadata or {}).get(b"nightloupe"),
        score_table.SCHEMA.metadata[b"nightloupe"],
        subject.again,
    )
    silent = [column.name for column in schema if not (column.metadata or {}).get(b"meaning")]
    found.add("each column says what it means", silent, subject.again)
    limit = group_rows(subject.record["settings"]["chunk_rows"])
    sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    found.add(
        "a row group holds no more rows than a part on record",
        [f"group {i}: {size} rows, not {limit}" for i, size in enumerate(sizes) if size > limit],
        subject.again,
    )
    return True


def _rules(subject: RunUnderCheck) -> Iterator[Rule]:
    """What rows of this run may not be."""
    for name in ("run_id", "model_id"):
        yield _other(name, subject.record[name])
    if "thresholds" in subject.record:
        yield _threshold(subject.record["thresholds"])
    if subject.card:
        yield _calibrated(subject.card)


def _other(name: str, value: str) -> Rule:
    return Rule(
        f"rows whose {name} is not on record", (name,), lambda rows: pc.not_equal(rows[name], value)
    )


def _threshold(thresholds: Mapping[str, float | None]) -> Rule:
    products = pa.array(thresholds, pa.string())
    limits = pa.array(thresholds.values(), pa.float64())

    def broken(rows: pa.Table) -> pa.ChunkedArray:
        limit = limits.take(pc.index_in(rows["product"], products).combine_chunks())
        called, above = rows["is_anomalous"], pc.greater(rows["score"], limit)
        distinct = pc.fill_null(pc.not_equal(called, above), False)
        return pc.or_(distinct, pc.xor(pc.is_null(called), pc.is_null(above)))

    columns = ("score", "is_anomalous")
    return Rule("rows called otherwise than by the threshold on record", columns, broken)


def _calibrated(card: ModelCard) -> Rule:
    def broken(rows: pa.Table) -> pa.Array:
        expected = np.full(len(rows), np.nan)
        values = rows["score"].to_numpy()
        products = np.asarray(rows["product"].to_pylist(), dtype=object)
        for name, product in card.products.items():
            mine = (products == name) & np.isfinite(values)
            expected[mine] = product.calibration.p_values(values[mine])
        return pa.array(~np.isclose(rows["p_value"].to_numpy(), expected, 0, 1e-12, True))

    return Rule("rows whose p_value is not the model's", ("score", "p_value"), broken)


def _check_rule(subject: RunUnderCheck, rows: pa.Table, rule: Rule, found: Findings) -> None:
    wrong = score_table.offenders(rows, rule)
    if len(wrong):
        few = wrong.slice(0, SHOWN).select(["image_id", *dict.fromkeys(rule.columns)]).to_pylist()
        values = [", ".join(f"{k} {v!r}" for k, v in row.items()) for row in few]
        found.add(f"there are no {rule.offence}", values, subject.again, len(wrong))


class _Maps:
    """Reads the maps that rows name."""

    def __init__(self, subject: RunUnderCheck, share: float) -> None:
        self._again = f"restore the map; or, to draw it again, {subject.again}"
        self._model_id = subject.record["model_id"]
        self._input = InputSettings(**subject.record["input"])
        self._size = (self._input.size, self._input.size)
        self._scale = subject.scale
        self._share = share

    def read(self, rows: pa.Table, found: Findings) -> None:
        """Read what falls into the share, several at once."""
        named = rows.filter(pc.is_valid(rows["map_uri"]))
        found.maps_named += len(named)
        columns = named.select(["image_id", "map_uri", "width", "height"]).to_pylist()
        chosen = [row for row in columns if _lot(str(row["image_id"])) < self._share]
        found.maps_read += len(chosen)
        with ThreadPoolExecutor(16) as pool:
            for row, flaw in zip(chosen, pool.map(self._flaw, chosen), strict=True):
                if flaw:
                    found.add(flaw[0], [f"{row['map_uri']}: {flaw[1]}"], self._again)

    def _flaw(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """The rule that a map breaks, and how; None if it is as it should be."""
        try:
            read = anomaly_map.decode(fetch(row["map_uri"], None, None, FetchSettings()))
        except Failure as failure:
            return "every map that a row names is there", str(failure)
        except UserError as error:
            return "every map can be decoded", str(error)
        # Of runs that did not record it, the first map tells.
        self._scale = self._scale or read.scale
        place = geometry(row["width"] or 1, row["height"] or 1, self._input)
        expected: dict[str, tuple[object, object]] = {
            "maps are of the run's model": (read.model_id, self._model_id),
            "maps have the model's offset and scale": (read.scale, self._scale),
            "maps have the size of the detector's input": (read.levels.shape, self._size),
            "maps lie on their pictures": (read.geometry, place),
        }
        wrong = {rule: pair for rule, pair in expected.items() if pair[0] != pair[1]}
        for rule, (value, due) in wrong.items():
            return rule, f"{value}, not {due}"
        return None


def _lot(image_id: str) -> float:
    """A number in [0, 1) that follows from an id."""
    return zlib.crc32(image_id.encode()) / 2**32
