"""Images as jobs.query reads and shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from jobs.cli.verdict_rules import verdict_rules
from ops.archives.layouts import composed
from ops.archives.views import views_of
from ops.storage.paths import Out
from pipelines.tables import current_scores, run_records, view_columns
from pipelines.tables.gone import Listing
from pipelines.tables.model_names import NamedModel
from pipelines.tables.view_columns import ViewColumns


class ImageRows:
    """The images that the settings of jobs.query ask for."""

    noun: ClassVar[str] = "image"
    schema: ClassVar[pa.Schema] = view_columns.SCHEMA
    on_screen: ClassVar[str] = (
        "is_new,is_anomalous,decided,p_value,score,status,product,peak_x,peak_y,uri,reason"
    )

    def __init__(self, settings: Any, out: Out, model: NamedModel, listing: Listing | None) -> None:
        """Raises SettingError for rules that exclude each other, UserError if none is known."""
        self._settings, self._model, self._listing = settings, model, listing
        record = run_records.of_model(out, model.model_id, "held_out") or {}
        self._rules = verdict_rules(settings, out, model.model_id, record)
        self._views, self._held_out = views_of(record), run_records.held_out(record)
        self._added = ViewColumns.of(out, model)
        shown = settings.false_alarms
        # Counts are of all images unless somebody asks for less.
        self._false_alarms = bool(settings.output or settings.by) if shown is None else shown

    def read(
        self, database: duckdb.DuckDBPyConnection, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Current rows with the columns of `schema`."""
        found = current_scores.query(
            database,
            self._model.model_id,
            where=self._settings.where,
            product=composed(self._settings.product),
            limit=limit,
            rules=self._rules,
            only=self._settings.inventory,
            views=self._views,
            new_first=self._settings.new_first,
            listing=self._listing,
            false_alarms=self._false_alarms,
            held_out=self._held_out,
        )
        return map(self._added.complete, found)
