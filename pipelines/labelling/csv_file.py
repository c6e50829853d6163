"""Decisions in a CSV file, such as one of jobs.query to which a person added a column."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping

from ops.errors import UserError
from ops.results import region_table
from pipelines.labelling.refusals import Rule, shortened
from pipelines.labelling.statements import Statements
from pipelines.tables import view_columns

#: Columns that are read.
_READ = ("image_id", "uri", "run_id", "decision", "region", "who", "decided_at", "comment")
#: Columns of files of jobs.query, of which the others say nothing of the decision.
_WRITTEN = {*view_columns.SCHEMA.names, *region_table.SCHEMA.names}
_SHOWN = 20
_DELIMITERS = ",;\t"
_LONG = Rule("that have more cells than the first line", "put a text that holds a comma in quotes")


def read(text: str, into: Statements) -> list[str]:
    """Read a table whose first line names its columns; returns what people must know of it.

    Cells are divided by commas, by semicolons as in Excel, or by tabs. Raises UserError.
    """
    file = into.refusals.file
    # The first line names columns, so what stands most often between them divides cells.
    head = text.lstrip().splitlines()[0]
    delimiter = max(_DELIMITERS, key=head.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip().casefold() for name in next(lines, [])]
        _check_columns(file, columns)
        for cells in lines:
            where = f"line {lines.line_num}"
            if len(cells) > len(columns):
                into.refusals.add(_LONG, where)
            elif any(cell.strip() for cell in cells):
                _add(where, dict(zip(columns, cells, strict=False)), into)
    except csv.Error as error:
        raise UserError(
            f"{file} is not valid CSV in line {lines.line_num}: {error}; save it again as CSV UTF-8"
        ) from None
    unused = [name for name in columns if name and name not in {*_READ, *_WRITTEN}]
    more = f" and {len(unused) - _SHOWN:,} more" if len(unused) > _SHOWN else ""
    return [f"columns that are not read: {', '.join(unused[:_SHOWN])}{more}"] if unused else []


def _check_columns(file: str, columns: list[str]) -> None:
    if "decision" not in columns or not {"image_id", "uri"} & set(columns):
        raise UserError(
            f"{file} has the columns {shortened(', '.join(columns))}; a CSV file of decisions has "
            f"decision, and image_id or uri, and may have {', '.join(_READ[4:])} and run_id"
        )
    [(name, number)] = Counter(filter(None, columns)).most_common(1)
    if number > 1:
        raise UserError(f"{file} has the column {shortened(name)} twice; leave one out")


def _add(where: str, cells: Mapping[str, str], into: Statements) -> None:
    if not cells.get("decision", "").strip():
        into.undecided += 1
        return
    into.add(
        where,
        cells["decision"],
        image_id=cells.get("image_id"),
        address=cells.get("uri"),
        run_id=cells.get("run_id"),
        # A file of `jobs.query --regions` has a column of this name.
        region=cells.get("region", cells.get("number")),
        who=cells.get("who"),
        at=cells.get("decided_at"),
        comment=cells.get("comment"),
    )
