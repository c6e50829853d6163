"""Regions of anomaly maps as jobs.query reads and shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from jobs.cli.console import echo
from jobs.cli.verdict_rules import verdict_rules
from ops.archives.layouts import composed
from ops.archives.views import views_of
from ops.storage.paths import Out
from pipelines.tables import current_regions, run_records
from pipelines.tables.gone import Listing
from pipelines.tables.model_names import NamedModel


class RegionRows:
    """The regions that the settings of jobs.query ask for."""

    noun: ClassVar[str] = "region"
    schema: ClassVar[pa.Schema] = current_regions.VIEW
    on_screen: ClassVar[str] = (
        "p_value,largest,area,product,number,box_x,box_y,box_width,box_height,touches_border,uri"
    )

    def __init__(self, settings: Any, out: Out, model: NamedModel, listing: Listing | None) -> None:
        """Raises SettingError for rules that exclude each other, UserError if none is known."""
        self._settings, self._model, self._listing = settings, model, listing
        record = run_records.of_model(out, model.model_id, "held_out") or {}
        self._rules = verdict_rules(settings, out, model.model_id, record)
        self._views = views_of(record)
        _warn_of_higher_rate(settings.false_alarm_rate, out, model.model_id)

    def read(
        self, database: duckdb.DuckDBPyConnection, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Regions of current images with the columns of `schema`."""
        return current_regions.query(
            database,
            self._model.model_id,
            where=self._settings.where,
            product=composed(self._settings.product),
            limit=limit,
            rules=self._rules,
            only=self._settings.inventory,
            views=self._views,
            listing=self._listing,
        )


def _warn_of_higher_rate(asked: float | dict[str, float] | None, out: Out, model_id: str) -> None:
    """Warn if a rate is higher than that of the newest run, whose regions are all there is."""
    rate = max(asked.values(), default=None) if isinstance(asked, dict) else asked
    record = run_records.of_model(out, model_id, "regions")
    if record is None or rate is None:
        return
    recorded = record["regions"]["false_alarm_rate"]
    if rate > recorded:
        echo(
            f"warning: regions were recorded at a false-alarm rate of {recorded:g}, so {rate:g} "
            f"shows no more of them; score again with --regions.false-alarm-rate {rate:g}"
        )
