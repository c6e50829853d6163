"""Parts of several views as jobs.query reads and shows them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import duckdb
import pyarrow as pa

from jobs.cli.console import echo
from ops.archives.layouts import composed
from ops.errors import SettingError
from ops.results import false_alarm_rates, part_table
from ops.results.false_alarm_rates import Rates, by_product
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


def _rules(out: Out, model_id: str, threshold: object, rates: Rates) -> PartRules:
    """How to judge parts; without a rate, by those of the newest run of the model."""
    if threshold is not None:
        raise SettingError(
            "--threshold is one of images, whose scores say nothing of a part; judge parts by "
            "--false-alarm-rate"
        )
    calibrations = current_parts.calibrations(out, model_id)
    found = PartRules(calibrations, _rates(out, model_id, rates, calibrations))
    if not calibrations:
        echo(
            f"warning: model {model_id} was fitted without held-out parts, so parts have no "
            "p-values; fit it on an inventory whose pattern has {part}"
        )
    return found


def _rates(out: Out, model_id: str, rates: Rates, products: Collection[str]) -> Mapping[str, float]:
    """The false-alarm rate of each product: the named one, or that of the model's newest run."""
    false_alarm_rates.check(rates)
    named = by_product(rates, products)
    if named.keys() >= set(products):
        return named
    record = run_records.of_model(out, model_id, "false_alarm_rates")
    if record is None:
        raise SettingError(
            f"no run in {out.runs()} records the false-alarm rate of model {model_id}; name one "
            "with --false-alarm-rate"
        )
    # With a detector for each view, none of their rates is one of parts.
    recorded = {composed(name): rate for name, rate in record["false_alarm_rates"].items()}
    return {
        name: named.get(name, recorded.get(name, record["false_alarm_rate"])) for name in products
    }
