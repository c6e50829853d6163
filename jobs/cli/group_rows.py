"""Counts of images by columns or fields of their paths, as jobs.query reads and shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from jobs.cli import field_columns
from jobs.cli.image_rows import ImageRows
from ops.errors import SettingError
from ops.storage.parquet import column
from ops.storage.paths import Out
from pipelines.tables import path_fields
from pipelines.tables.count_groups import COUNTS, count_groups
from pipelines.tables.gone import Listing
from pipelines.tables.model_names import NamedModel

#: Columns of the score table to group by; other names are those of fields.
_COLUMNS = ("product", "part", "view", "status")


def names(by: str) -> list[str]:
    """The columns and fields of --by. Raises SettingError for the name of a count, or for none."""
    chosen = [name.strip() for name in by.split(",") if name.strip()]
    if taken := sorted({field.name for field in COUNTS} & set(chosen)):
        raise SettingError(f"--by {by}: {taken[0]} is the name of a count; group by another column")
    if not chosen:
        raise SettingError(f"--by {by} names no column; name one, such as product")
    return list(dict.fromkeys(chosen))


def schema(by: str) -> pa.Schema:
    """The columns of groups."""
    return pa.schema([*(column(name, pa.string(), "of the group") for name in names(by)), *COUNTS])


class GroupRows:
    """The groups that the settings of jobs.query ask for."""

    noun: ClassVar[str] = "group"

    def __init__(self, settings: Any, out: Out, model: NamedModel, listing: Listing | None) -> None:
        """Raises errors as ImageRows does. False alarms count, unless they are to be left out."""
        if settings.false_alarms is None:
            settings = replace(settings, false_alarms=True)
        self._images = ImageRows(settings, out, model, listing)
        self._by, self._model_id = names(settings.by), model.model_id
        self._schema = schema(settings.by)

    def read(
        self, database: duckdb.DuckDBPyConnection, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Groups with the columns of `schema`: the largest share of anomalous images first."""
        fields = [name for name in self._by if name not in _COLUMNS]
        field_columns.check(fields, path_fields.names(database, self._model_id))
        rows = count_groups(self._images.read(database, None), self._by, _values)
        yield pa.RecordBatch.from_pylist(rows[:limit], self._schema)


def _values(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch[name] if name in _COLUMNS else field_columns.of_field(batch, name)
