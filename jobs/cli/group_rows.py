"""Counts of images by columns or fields of their paths, as jobs.query reads and shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.cli import field_columns
from jobs.cli.image_rows import ImageRows
from ops.errors import SettingError
from ops.storage.parquet import column
from ops.storage.paths import Out
from pipelines.tables import path_fields
from pipelines.tables.gone import Listing
from pipelines.tables.model_names import NamedModel

#: Columns of the score table to group by; other names are those of fields.
_COLUMNS = ("product", "part", "view", "status")
_COUNTS = (
    column("images", pa.int64(), "images of the group"),
    column("failed", pa.int64(), "images without a score"),
    column("anomalous", pa.int64(), "images that are called anomalous"),
    column("share", pa.float64(), "anomalous images of those with a verdict; null without any"),
)
_AGGREGATES = [
    ("is_ok", "sum"),
    ("is_anomalous", "count"),
    ("is_anomalous", "sum"),
    ([], "count_all"),
]


def names(by: str) -> list[str]:
    """The columns and fields of --by. Raises SettingError for the name of a count, or for none."""
    chosen = [name.strip() for name in by.split(",") if name.strip()]
    if taken := sorted({field.name for field in _COUNTS} & set(chosen)):
        raise SettingError(f"--by {by}: {taken[0]} is the name of a count; group by another column")
    if not chosen:
        raise SettingError(f"--by {by} names no column; name one, such as product")
    return list(dict.fromkeys(chosen))


def schema(by: str) -> pa.Schema:
    """The columns of groups."""
    return pa.schema([*(column(name, pa.string(), "of the group") for name in names(by)), *_COUNTS])


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
        totals: dict[tuple[str | None, ...], np.ndarray] = {}
        for batch in self._images.read(database, None):
            for key, counts in _counted(batch, self._by):
                totals[key] = totals.get(key, 0) + counts
        rows = [_row(self._by, key, counts) for key, counts in totals.items()]
        rows.sort(key=lambda row: (-(row["share"] or 0), [row[n] or "" for n in self._by]))
        yield pa.RecordBatch.from_pylist(rows[:limit], self._schema)


def _counted(
    batch: pa.RecordBatch, by: Sequence[str]
) -> Iterator[tuple[tuple[str | None, ...], np.ndarray]]:
    """Of each group of a batch its images with a score, with a verdict, anomalous, and all."""
    keys = [batch[n] if n in _COLUMNS else field_columns.of_field(batch, n) for n in by]
    places = [str(number) for number in range(len(by))]
    is_ok = pc.equal(batch["status"], "ok")
    columns = [*keys, is_ok, batch["is_anomalous"]]
    table = pa.table(columns, names=[*places, "is_ok", "is_anomalous"])
    found = table.group_by(places).aggregate(_AGGREGATES)
    counts = [found[name].fill_null(0).to_numpy() for name in found.column_names[len(by) :]]
    groups = zip(*(found[place].to_pylist() for place in places), strict=True)
    yield from zip(groups, np.stack(counts, axis=1).astype(np.int64), strict=True)


def _row(by: Sequence[str], key: Sequence[str | None], counts: np.ndarray) -> dict[str, Any]:
    scored, judged, anomalous, images = counts.tolist()
    share = anomalous / judged if judged else None
    numbers = {"images": images, "failed": images - scored, "anomalous": anomalous, "share": share}
    return dict(zip(by, key, strict=True)) | numbers
