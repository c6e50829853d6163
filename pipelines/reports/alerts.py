"""Warnings about a night: too many failures, scores that drifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ops.failure import max_failures

#: Significance level of the drift test, adjusted for the number of products.
_SIGNIFICANCE = 0.01
_MOST_PRODUCTS_NAMED = 10


@dataclass(frozen=True)
class AlertLimits:
    """Limits beyond which a night warns."""

    failed: str
    """Failures among the images scored tonight, as a count or share."""
    drift: float
    """Population stability index of a product's scores against all earlier ones."""


def find_alerts(totals: Mapping[str, Any], drift: pa.Table, limits: AlertLimits) -> list[str]:
    """A sentence for each limit that a night exceeds; products in descending order of drift.

    `totals` are those of a run and `drift` is its drift table. A shift that chance may explain
    (Kolmogorov-Smirnov test, adjusted for the number of products) gives no warning.
    """
    alerts = []
    if totals["failed"] > max_failures(limits.failed, totals["images"]):
        failures = {k: v for k, v in totals["statuses"].items() if k != "ok"}
        counts = ", ".join(f"{count:,} {status}" for status, count in failures.items())
        alerts.append(
            f"{totals['failed']:,} of {totals['images']:,} images failed ({counts}), more than "
            f"--warn-failed {limits.failed} allows"
        )
    drifted = [row for row in drift.to_pylist() if has_drifted(row, limits.drift)]
    drifted.sort(key=lambda row: -row["psi"])
    for row in drifted[:_MOST_PRODUCTS_NAMED]:
        alerts.append(
            f"scores of {row['product']!r} drifted: PSI {row['psi']:.2f} exceeds "
            f"--warn-drift {limits.drift:g}; the median {row['measure']} changed from "
            f"{row['median_a']:.4g} ({row['tested_a']:,} images) to {row['median_b']:.4g} "
            f"({row['tested_b']:,} images)"
        )
    if len(drifted) > _MOST_PRODUCTS_NAMED:
        alerts.append(
            f"scores of {len(drifted) - _MOST_PRODUCTS_NAMED:,} more products drifted by more than "
            f"--warn-drift {limits.drift:g}"
        )
    return alerts


def has_drifted(row: Mapping[str, Any], limit: float) -> bool:
    """Whether a product's PSI exceeds a limit and the shift is statistically significant."""
    return row["psi"] is not None and row["psi"] > limit and row["ks_q"] < _SIGNIFICANCE
