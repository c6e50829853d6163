"""Columns of the current view that its tables do not hold: the overlay, and the model by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ops.storage import uris
from ops.storage.parquet import column
from ops.storage.paths import Out
from pipelines.tables import run_records
from pipelines.tables.current_scores import VIEW
from pipelines.tables.model_names import NamedModel

SCHEMA = pa.schema(
    [
        *VIEW,
        column("overlay_uri", pa.string(), "PNG of the map over its image; null if none"),
        column("model", pa.string(), "the model's name in the registry, or its method and id"),
    ]
)


@dataclass(frozen=True)
class ViewColumns:
    """Adds them to rows of the current view under one model."""

    out: Out
    model: NamedModel
    drawing_runs: frozenset[str]
    """Ids of the runs that drew an overlay of each map."""

    @classmethod
    def of(cls, out: Out, model: NamedModel) -> ViewColumns:
        """The columns, by the records of the output folder's runs."""
        records = run_records.started(out)
        drawing = (each for each in records if each.get("settings", {}).get("overlays"))
        return cls(out, model, frozenset(str(each["run_id"]) for each in drawing))

    def complete(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows with the columns of `SCHEMA`, given rows with those of `VIEW`."""
        columns = [*batch.columns, pa.array(self._overlays(batch), pa.string())]
        columns.append(pa.array([self.model.short] * len(batch), pa.string()))
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def _overlays(self, batch: pa.RecordBatch) -> Sequence[str | None]:
        if not self.drawing_runs:
            return [None] * len(batch)
        rows = batch.select(["image_id", "run_id", "map_uri"]).to_pylist()
        return [
            uris.make(self.out.overlay(self.model.model_id, row["image_id"]))
            if row["map_uri"] and row["run_id"] in self.drawing_runs
            else None
            for row in rows
        ]
