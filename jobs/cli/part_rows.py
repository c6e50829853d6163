"""Parts of several views as jobs.query reads and shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from jobs.cli.console import echo
from ops.archives.layouts import composed
from ops.errors import SettingError
from ops.plain_text import printable
from ops.storage.paths import Out
from pipelines.tables import current_parts, run_records
from pipelines.tables.current_parts import PartRules


def rules(out: Out, model_id: str, threshold: object, rate: float | None) -> PartRules:
    """How to judge parts; without a rate, by that of the model. Raises SettingError."""
    if threshold is not None:
        raise SettingError(
            "--threshold is one of images, whose scores say nothing of a part; judge parts by "
            "--false-alarm-rate"
        )
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


def read(
    database: duckdb.DuckDBPyConnection,
    model_id: str,
    part_rules: PartRules,
    settings: Any,
    limit: int | None,
) -> Iterator[pa.RecordBatch]:
    """Current parts by the settings of jobs.query."""
    return current_parts.query(
        database,
        model_id,
        part_rules,
        where=settings.where,
        product=composed(settings.product),
        limit=limit,
        only=settings.inventory,
    )


def show(parts: Sequence[Mapping[str, Any]]) -> int:
    """Print parts, the most anomalous first; what is missing or failed stands with each."""
    if parts:
        echo(f"{'p':>7} {'bad':>3} {'views':>5} {'product':16} {'part':16} {'worst':10} address")
    for row in parts:
        p_value = "-" if row["p_value"] is None else f"{row['p_value']:.3g}"
        bad = {True: "yes", False: "no", None: "-"}[row["is_anomalous"]]
        names = (printable(row[name])[:16] for name in ("product", "part"))
        product, part = names
        view = printable(row["worst_view"] or "-")[:10]
        uri = printable(row["uri"] or "-")
        echo(
            f"{p_value:>7} {bad:>3} {row['views_scored']:>5} {product:16} {part:16} {view:10} {uri}"
        )
        for what in ("failed", "missing"):
            if row[f"views_{what}"]:
                echo(f"{'':17} {what}: {printable(row[f'{what}_views'] or '(without a name)')}")
    return len(parts)
