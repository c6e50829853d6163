"""A file of decisions in any format that is known, told by its ending and its content."""

from __future__ import annotations

from typing import NamedTuple

from ops.errors import UserError
from ops.storage import files
from ops.storage.storage_errors import TooLarge
from pipelines.labelling import (
    coco_file,
    csv_file,
    label_studio_file,
    report_file,
    strict_json,
)
from pipelines.labelling.statements import Statement, Statements

#: A larger file is refused. Its content is held in memory, several times as large.
LARGEST = 64 * 2**20
_FORMATS = "a file that a report saved, a CSV or COCO file, and a JSON export of Label Studio"


class DecisionFile(NamedTuple):
    """The content of a file."""

    location: str
    source: str
    """One of `decision_table.SOURCES`."""
    statements: list[Statement]
    notes: list[str]
    """What people must know of it, a sentence each."""


def read(location: str) -> DecisionFile:
    """Read a file (a path or s3:// URI). Raises UserError if a part of it is not understood."""
    try:
        data = files.read_bytes(location, limit=LARGEST)
    except TooLarge as error:
        raise UserError(
            f"{location} has {error.size:,} bytes, and a file of decisions at most {LARGEST:,}; "
            "divide it"
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{location} is not UTF-8 at byte {error.start:,}; save it as UTF-8, in Excel as "
            '"CSV UTF-8"'
        ) from None
    statements = Statements(location)
    source, notes = _understood(location, text, statements)
    taken = statements.taken()
    if statements.undecided:
        notes.append(f"entries without a decision, which are left out: {statements.undecided:,}")
    return DecisionFile(location, source, taken, notes)


def _understood(location: str, text: str, into: Statements) -> tuple[str, list[str]]:
    """The source of a text, and notes on it; its statements go `into`."""
    if "\0" in text:
        raise UserError(f"{location} holds a NUL character, so it is no text; export it again")
    if not text.strip():
        raise UserError(f"{location} is empty; nothing is stored")
    if location.casefold().endswith(".csv"):
        return "csv", csv_file.read(text, into)
    if not location.casefold().endswith(".json"):
        raise UserError(f"{location} must end in .csv or .json: {_FORMATS}")
    content = strict_json.parse(location, text)
    if isinstance(content, dict) and "decisions" in content:
        report_file.read(content, into)
        return "report", []
    if isinstance(content, dict) and "annotations" in content:
        coco_file.read(content, into)
        return "coco", []
    if isinstance(content, list):
        label_studio_file.read(content, into)
        return "label_studio", []
    raise UserError(f"{location} is no file of decisions; known are {_FORMATS}")
