"""Earlier runs under a model that judged by other false-alarm rates than a night does."""

from __future__ import annotations

from ops.detectors.model_folder import ModelCard
from ops.results.false_alarm_rates import Rates, by_product
from ops.storage.paths import Out
from pipelines.tables import run_records


def sentence(out: Out, card: ModelCard, rates: Rates) -> str:
    """Tells how many there are, as a night changes none of their rows; empty if there are none."""
    tonight = card.rates(by_product(rates, card.products))
    count = sum(
        record.get("model_id") == card.model_id and record.get("false_alarm_rates") != tonight
        for record in run_records.started(out)
    )
    if not count:
        return ""
    return (
        f"earlier runs that judged by other false-alarm rates than this night does: {count:,}. "
        "Their images keep their verdicts; jobs.query --false-alarm-rate judges all images alike"
    )
