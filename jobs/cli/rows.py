"""Rows of tables for people: on the screen, or in a Parquet or CSV file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv

from jobs.cli.console import echo
from ops.errors import SettingError
from ops.plain_text import printable, spreadsheet_cell
from ops.storage import files, parquet

FORMATS = (".parquet", ".csv")
#: Texts of these columns are cut on the screen, so that lines stay short.
_CUT = {"product": 24, "model": 32}


def check_output(location: str) -> None:
    """Check the ending of --output. Raises SettingError."""
    if location and not location.endswith(FORMATS):
        raise SettingError(f"--output {location} must end in one of {' '.join(FORMATS)}")


def write(
    location: str,
    schema: pa.Schema,
    rows: Iterator[pa.RecordBatch],
    raw: bool,
    check: Callable[[], None],
) -> int:
    """Write rows; `check` may raise before the file appears. Returns their number."""
    if location.endswith(".parquet"):
        return parquet.write(location, schema, checked(rows, check))
    written = 0
    with files.staged(location) as path, csv.CSVWriter(path, schema) as writer:
        for batch in checked(rows, check):
            writer.write_batch(batch if raw else _with_safe_cells(batch))
            written += len(batch)
    return written


def checked(rows: Iterator[pa.RecordBatch], check: Callable[[], None]) -> Iterator[pa.RecordBatch]:
    """The rows; after the last one `check` may raise."""
    yield from rows
    check()


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


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print rows below a line with the names of their columns; no value is an empty text."""
    lines = [list(columns), *([_cell(name, row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    numbers = [any(isinstance(row[name], float) for row in rows) for name in columns]
    for line in lines:
        cells = zip(line, widths, numbers, strict=True)
        padded = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells)
        echo("  ".join(padded).rstrip())


def _cell(name: str, value: object) -> str:
    if value is None:
        return "" if name == "reason" else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):  # of a map
        return " ".join(f"{printable(key)}={printable(text)}" for key, text in value)
    if isinstance(value, float):
        return f"{value:.3g}" if name == "p_value" else f"{value:.6g}"
    return printable(str(value))[: _CUT.get(name)]
