"""Other verdicts than the recorded ones: the rules that --threshold and --false-alarm-rate mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.cli.console import echo
from ops.archives.layouts import composed
from ops.archives.views import Views, views_of
from ops.errors import SettingError, UserError
from ops.plain_text import printable
from ops.results.calibration import promised_rate
from ops.results.false_alarm_rates import by_product
from ops.storage.paths import Out
from pipelines.tables import run_records
from pipelines.tables.verdict_rules import VerdictRule


def verdict_rules(settings: Any, out: Out, model_id: str) -> tuple[dict[str, VerdictRule], Views]:
    """The rule of each detector by the settings, and what it is for; empty to keep verdicts."""
    threshold, rate = settings.threshold, settings.false_alarm_rate
    if threshold is not None and rate is not None:
        raise SettingError("--threshold and --false-alarm-rate exclude each other")
    if threshold is None and rate is None:
        return {}, "pooled"
    if isinstance(threshold, dict):
        rules = threshold.items()
        named = {composed(product): VerdictRule(threshold=value) for product, value in rules}
        return named, _views(out, model_id)
    held_out, views = _held_out(out, model_id), _views(out, model_id)
    if rate is not None:
        rates = by_product(rate, held_out)
        _warn_of_few_held_out(rates, held_out)
        at_rate = VerdictRule.at_rate
        return {name: at_rate(of_name, held_out[name]) for name, of_name in rates.items()}, views
    return {product: VerdictRule(threshold=threshold) for product in held_out}, views


def _views(out: Out, model_id: str) -> Views:
    """Whether views have detectors of their own, from the record of a run."""
    record = run_records.of_model(out, model_id, "views")
    return views_of(record) if record else "pooled"


def _warn_of_few_held_out(rates: Mapping[str, float], held_out: Mapping[str, int]) -> None:
    """Warn of products whose p-values cannot be as low as a false-alarm rate."""
    promised = {name: promised_rate(rate, held_out[name]) for name, rate in rates.items()}
    higher = {name: lowest for name, lowest in promised.items() if lowest > rates[name]}
    if higher:
        worst = max(higher, key=lambda product: higher[product])
        echo(
            f"warning: {len(higher)} of {len(rates)} products have too few held-out images for "
            f"a false-alarm rate of {rates[worst]:g}, such as {printable(worst)}: its "
            f"{held_out[worst]} images promise {higher[worst]:.3g}, which is used"
        )


def _held_out(out: Out, model_id: str) -> dict[str, int]:
    """How many images of each product were held out for a model, from the record of a run."""
    held_out = run_records.held_out(out, model_id)
    if not held_out:
        raise UserError(
            f"no run in {out.runs()} records the held-out images of model {model_id}; "
            """name thresholds by product: --threshold '{"PRODUCT": 1.5}'"""
        )
    return held_out
