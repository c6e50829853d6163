"""Other verdicts than the recorded ones, by a threshold or a p-value; nothing is scored again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ops.results.calibration import promised_rate

#: Absorbs rounding: p-values are multiples of 1 / (1 + held-out units).
ROUNDING = 1e-12
_SCHEMA = pa.schema(
    [("detector", pa.string()), ("threshold", pa.float64()), ("p_value", pa.float64())]
)


@dataclass(frozen=True)
class VerdictRule:
    """Replaces the verdicts of the rows of one detector.

    An image is anomalous if its score exceeds `threshold`, or its p-value is at most `p_value`.
    """

    threshold: float | None = None
    p_value: float | None = None

    @classmethod
    def at_rate(cls, false_alarm_rate: float, held_out: int) -> VerdictRule:
        """Gives the same verdicts as `Calibration.threshold` at this rate."""
        return cls(p_value=promised_rate(false_alarm_rate, held_out) + ROUNDING)


def register(database: duckdb.DuckDBPyConnection, rules: Mapping[str, VerdictRule] | None) -> None:
    """Create the table `rules`, with a row for the rule of each detector."""
    rows = [
        {"detector": name, "threshold": rule.threshold, "p_value": rule.p_value}
        for name, rule in (rules or {}).items()
    ]
    database.register("rules", pa.Table.from_pylist(rows, _SCHEMA))
