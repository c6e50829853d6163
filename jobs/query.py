"""Query the current scores of a model: of each image, the newest valid row of all nights.

python -m jobs.query --out out --product washer --limit 50
python -m jobs.query --out s3://bucket/out --where "width > 1000" --output worst.csv
python -m jobs.query --out out --false-alarm-rate 0.001 --output relabelled.parquet
python -m jobs.query --out out --parts true --output parts.csv

--threshold or --false-alarm-rate replace the model's thresholds; nothing is scored again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow import csv

from jobs.cli import entry, part_rows
from jobs.cli.console import echo
from ops.archives.layouts import composed
from ops.archives.views import Views, views_of
from ops.errors import SettingError, UserError
from ops.plain_text import printable, spreadsheet_cell
from ops.results import part_table, score_table
from ops.results.calibration import promised_rate
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores, run_records
from pipelines.tables.current_scores import VerdictRule

_Row = dict[str, Any]
_RowsOf = Callable[[duckdb.DuckDBPyConnection], Iterator[pa.RecordBatch]]
_SCREEN = 20
_FORMATS = (".parquet", ".csv")


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.query."""

    out: str = "out"
    """The output folder that holds the nights."""
    model_id: str = ""
    """Id of the model; default: that of the latest finished run."""
    product: str = ""
    """Only images of this product."""
    parts: bool = False
    """One row for each part of several images, where paths name {part}: its worst view, what failed
    or is missing, and a p-value of the part. --where is then over these columns."""
    where: str = ""
    """An SQL expression over the columns of the score table, such as "width > 1000". Products are
    stored in Unicode's composed form, NFC."""
    limit: int | None = None
    """The largest number of rows; default: 20 on the screen, all in a file."""
    threshold: float | dict[str, float] | None = None
    """Scores above it are anomalous: a number for all products, or a threshold for each product as
    '{"washer": 4.5}'."""
    false_alarm_rate: float | None = None
    """Share of good images that may be called anomalous, instead of the model's."""
    inventory: str = ""
    """Only images of this inventory file; scores may be of images that are no longer archived."""
    output: str = ""
    """The .parquet or .csv file to write, a path or s3:// URI; default: the screen."""
    raw: bool = False
    """Write the text of a .csv file as it is. Else what a spreadsheet would take for a formula gets
    a leading ', and control characters are escaped."""


def main(argv: Sequence[str]) -> int:
    """Query current scores."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    if settings.output and not settings.output.endswith(_FORMATS):
        raise SettingError(f"--output {settings.output} must end in one of {' '.join(_FORMATS)}")
    if settings.limit is not None and settings.limit < 1:
        raise SettingError(f"limit {settings.limit} must be at least 1")
    entry.check_access(settings)
    out = Out(settings.out)
    model_id = settings.model_id or str(run_records.finished(out)["model_id"])
    rows_of = _rows_of(settings, out, model_id)
    schema = part_table.SCHEMA if settings.parts else score_table.SCHEMA

    def read(database: duckdb.DuckDBPyConnection, check: Callable[[], None]) -> list[_Row] | int:
        rows = rows_of(database)
        if settings.output:
            return _write(settings.output, schema, rows, settings.raw, check)
        return list(itertools.chain.from_iterable(batch.to_pylist() for batch in rows))

    answer = current_scores.read_consistently(out, read, "2GB", settings.inventory)
    show: Callable[[list[_Row]], int] = part_rows.show if settings.parts else _show
    written = answer if isinstance(answer, int) else show(answer)
    kind = "part" if settings.parts else "image"
    if not written:
        echo(f"no such {kind} under model {model_id}")
    elif settings.output:
        echo(f"{written} {kind}s: {settings.output}")
    return 0


def _rows_of(settings: Settings, out: Out, model_id: str) -> _RowsOf:
    """What reads the rows that the settings ask for."""
    limit = settings.limit or (None if settings.output else _SCREEN)
    if settings.parts:
        by = part_rows.rules(out, model_id, settings.threshold, settings.false_alarm_rate)
        return lambda database: part_rows.read(database, model_id, by, settings, limit)
    rules, views = _verdict_rules(settings, out, model_id)
    return lambda database: current_scores.query(
        database,
        model_id,
        where=settings.where,
        product=composed(settings.product),
        limit=limit,
        rules=rules,
        only=settings.inventory,
        views=views,
    )


def _verdict_rules(
    settings: Settings, out: Out, model_id: str
) -> tuple[dict[str, VerdictRule], Views]:
    """The rule of each detector by the settings, and what it is for; empty to keep verdicts."""
    threshold, rate = settings.threshold, settings.false_alarm_rate
    if threshold is not None and rate is not None:
        raise SettingError("--threshold and --false-alarm-rate exclude each other")
    if threshold is None and rate is None:
        return {}, "pooled"
    if isinstance(threshold, dict):
        rules = threshold.items()
        named = {composed(product): VerdictRule(threshold=value) for product, value in rules}
        return named, _views(out, model_id)
    held_out, views = _held_out(out, model_id), _views(out, model_id)
    if rate is not None:
        _warn_of_few_held_out(rate, held_out)
        at_rate = VerdictRule.at_rate
        return {product: at_rate(rate, count) for product, count in held_out.items()}, views
    return {product: VerdictRule(threshold=threshold) for product in held_out}, views


def _views(out: Out, model_id: str) -> Views:
    """Whether views have detectors of their own, from the record of a run."""
    for record in reversed(run_records.started(out)):
        if record.get("model_id") == model_id and "views" in record:
            return views_of(record)
    return "pooled"


def _warn_of_few_held_out(rate: float, held_out: dict[str, int]) -> None:
    """Warn of products whose p-values cannot be as low as a false-alarm rate."""
    rates = {product: promised_rate(rate, count) for product, count in held_out.items()}
    higher = {product: lowest for product, lowest in rates.items() if lowest > rate}
    if higher:
        worst = max(higher, key=lambda product: higher[product])
        echo(
            f"warning: {len(higher)} of {len(held_out)} products have too few held-out images for "
            f"a false-alarm rate of {rate:g}, such as {printable(worst)}: its "
            f"{held_out[worst]} images promise {higher[worst]:.3g}, which is used"
        )


def _held_out(out: Out, model_id: str) -> dict[str, int]:
    """How many images of each product were held out for a model, from the record of a run."""
    for record in reversed(run_records.started(out)):
        if record.get("model_id") == model_id and "held_out" in record:
            return {composed(name): count for name, count in record["held_out"].items()}
    raise UserError(
        f"no run in {out.runs()} records the held-out images of model {model_id}; "
        """name thresholds by product: --threshold '{"PRODUCT": 1.5}'"""
    )


def _write(
    location: str,
    schema: pa.Schema,
    rows: Iterator[pa.RecordBatch],
    raw: bool,
    check: Callable[[], None],
) -> int:
    """Write rows; `check` may raise before the file appears."""

    def checked() -> Iterator[pa.RecordBatch]:
        yield from rows
        check()

    if location.endswith(".parquet"):
        return parquet.write(location, schema, checked())
    written = 0
    with files.staged(location) as path, csv.CSVWriter(path, schema) as writer:
        for batch in checked():
            writer.write_batch(batch if raw else _with_safe_cells(batch))
            written += len(batch)
    return written


def _with_safe_cells(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows whose text no spreadsheet takes for a formula."""
    columns = map(_safe_cells, batch.columns)
    return pa.RecordBatch.from_arrays(list(columns), schema=batch.schema)


def _safe_cells(values: pa.Array) -> pa.Array:
    if not pa.types.is_string(values.type):
        return values
    coded = values.dictionary_encode()
    safe = [spreadsheet_cell(text) for text in coded.dictionary.to_pylist()]
    return pa.array(safe, pa.string()).take(coded.indices)


def _show(printed: list[_Row]) -> int:
    if printed:
        echo(f"{'score':>12} {'p':>7} {'bad':>3} {'status':12} {'product':16} address")
    for row in printed:
        score = "-" if row["score"] is None else f"{row['score']:.6g}"
        p_value = "-" if row["p_value"] is None else f"{row['p_value']:.3g}"
        bad = {True: "yes", False: "no", None: "-"}[row["is_anomalous"]]
        product, uri = printable(row["product"] or "-")[:16], printable(row["uri"])
        status = printable(row["status"])
        echo(f"{score:>12} {p_value:>7} {bad:>3} {status:12} {product:16} {uri}")
    return len(printed)


if __name__ == "__main__":
    entry.start(main)
