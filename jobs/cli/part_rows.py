"""Parts of several views as jobs.query reads and shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from jobs.cli.console import echo
from ops.archives.layouts import composed
from ops.errors import SettingError
from ops.results import part_table
from ops.storage.paths import Out
from pipelines.tables import current_parts, run_records
from pipelines.tables.current_parts import PartRules
from pipelines.tables.gone import Listing
from pipelines.tables.model_names import NamedModel


class PartRows:
    """The parts that the settings of jobs.query ask for."""

    noun: ClassVar[str] = "part"
    schema: ClassVar[pa.Schema] = part_table.SCHEMA
    on_screen: ClassVar[str] = (
        "is_anomalous,p_value,product,part,worst_view,views_scored,failed_views,missing_views,uri"
    )

    def __init__(self, settings: Any, out: Out, model: NamedModel, listing: Listing | None) -> None:
        """Raises SettingError for a threshold, or if no false-alarm rate is known."""
        self._settings, self._model, self._listing = settings, model, listing
        self._rules = _rules(out, model.model_id, settings.threshold, settings.false_alarm_rate)

    def read(
        self, database: duckdb.DuckDBPyConnection, limit: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Current parts with the columns of `schema`."""
        return current_parts.query(
            database,
            self._model.model_id,
            self._rules,
            where=self._settings.where,
            product=composed(self._settings.product),
            limit=limit,
            only=self._settings.inventory,
            listing=self._listing,
        )


def _rules(
    out: Out, model_id: str, threshold: object, rate: float | dict[str, float] | None
) -> PartRules:
    """How to judge parts; without a rate, by that of the model."""
    if threshold is not None:
        raise SettingError(
            "--threshold is one of images, whose scores say nothing of a part; judge parts by "
            "--false-alarm-rate"
        )
    if isinstance(rate, dict):
        raise SettingError("--parts judges by one rate for all products: --false-alarm-rate 0.01")
    if rate is not None and not 0 < rate < 1:
        raise SettingError(f"false_alarm_rate {rate} must lie between 0 and 1")
    found = PartRules.of(out, model_id, rate or _rate(out, model_id))
    if not found.calibrations:
        echo(
            f"warning: model {model_id} was fitted without held-out parts, so parts have no "
            "p-values; fit it on an inventory whose pattern has {part}"
        )
    return found


def _rate(out: Out, model_id: str) -> float:
    """The false-alarm rate of a model, by the newest record of a run."""
    for record in reversed(run_records.started(out)):
        if record.get("model_id") == model_id and "false_alarm_rate" in record:
            return float(record["false_alarm_rate"])
    raise SettingError(
        f"no run in {out.runs()} records the false-alarm rate of model {model_id}; name one with "
        "--false-alarm-rate"
    )
