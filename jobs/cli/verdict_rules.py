"""Other verdicts than the recorded ones: the rules that --threshold and --false-alarm-rate mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.cli.console import echo
from ops.archives.layouts import composed
from ops.errors import SettingError, UserError
from ops.plain_text import printable
from ops.results.calibration import promised_rate
from ops.results.false_alarm_rates import by_product
from ops.storage.paths import Out
from pipelines.tables import run_records
from pipelines.tables.verdict_rules import VerdictRule


def verdict_rules(
    settings: Any, out: Out, model_id: str, record: Mapping[str, Any]
) -> dict[str, VerdictRule]:
    """The rule of each detector of a model by the settings; empty to keep verdicts.

    `record` is that of a run under the model, or empty.
    """
    threshold, rate = settings.threshold, settings.false_alarm_rate
    if threshold is not None and rate is not None:
        raise SettingError("--threshold and --false-alarm-rate exclude each other")
    if threshold is None and rate is None:
        return {}
    if isinstance(threshold, dict):
        rules = threshold.items()
        return {composed(product): VerdictRule(threshold=value) for product, value in rules}
    held_out = run_records.held_out(record)
    if not held_out:
        raise UserError(
            f"no run in {out.runs()} records the held-out images of model {model_id}; "
            """name thresholds by product: --threshold '{"PRODUCT": 1.5}'"""
        )
    if rate is None:
        return {product: VerdictRule(threshold=threshold) for product in held_out}
    rates = by_product(rate, held_out)
    _warn_of_few_held_out(rates, held_out)
    return {name: VerdictRule.at_rate(each, held_out[name]) for name, each in rates.items()}


def _warn_of_few_held_out(rates: Mapping[str, float], held_out: Mapping[str, int]) -> None:
    """Warn of products whose p-values cannot be as low as a false-alarm rate."""
    promised = {name: promised_rate(rate, held_out[name]) for name, rate in rates.items()}
    higher = {name: lowest for name, lowest in promised.items() if lowest > rates[name]}
    if higher:
        worst = max(higher, key=lambda product: higher[product])
        echo(
            f"warning: {len(higher)} of {len(rates)} products have too few held-out images, or "
            f"parts, for a false-alarm rate of {rates[worst]:g}, such as {printable(worst)}: its "
            f"{held_out[worst]} promise {higher[worst]:.3g}, which is used"
        )
