"""Fields of path patterns as columns of their own: `field_line` has the values of {line}."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ops.errors import SettingError
from ops.storage import parquet

#: The column with all fields of a path.
FIELDS = "fields"
PREFIX = "field_"


def is_one(name: str, table: pa.Schema) -> bool:
    """Whether a name is that of a field's column, in a table that has fields."""
    return name.startswith(PREFIX) and FIELDS in table.names


def check(names: Collection[str], known: Collection[str]) -> None:
    """Check names of fields against those that paths have. Raises SettingError."""
    for name in names:
        if name not in known:
            raise SettingError(
                f"no path that the model scored has a field {name!r}; fields: "
                f"{', '.join(known) or 'none'}. --pattern names them, as {{line}}/{{product}}/*"
            )


def spread(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Columns with one of each field in place of `fields`, for files that hold plain values."""
    each = [f"{PREFIX}{name}" for name in known]
    wide = [c for column in columns for c in (each if column == FIELDS else [column])]
    return list(dict.fromkeys(wide))


def schema(table: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """The schema of what `select` gives."""
    return pa.schema(
        [
            parquet.column(name, pa.string(), f"field {name.removeprefix(PREFIX)} of the path")
            if is_one(name, table)
            else table.field(name)
            for name in columns
        ]
    )


def select(rows: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Columns of rows, or of their fields."""
    values = [
        of_field(rows, name.removeprefix(PREFIX)) if is_one(name, rows.schema) else rows[name]
        for name in columns
    ]
    return pa.RecordBatch.from_arrays(values, schema=schema(rows.schema, columns))


def of_field(rows: pa.RecordBatch, name: str) -> pa.Array:
    """The values of a field; null where a path has none of this name."""
    return pc.map_lookup(rows[FIELDS], pa.scalar(name), "first")
