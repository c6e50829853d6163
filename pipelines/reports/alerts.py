"""What people should look at in the morning: more failures than usual, scores that drifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.cluster.failure_limit import max_failures

#: Chance of one false alarm in a hundred, over all products of a night.
_SIGNIFICANT = 0.01
_NAMED = 10


@dataclass(frozen=True)
class Limits:
    """How much of it a night may have."""

    failed: str
    """Of the images scored tonight, as a count or share."""
    drift: float
    """Of a product: population stability index against all earlier scores."""


def concerns(totals: Mapping[str, Any], drift: pa.Table, limits: Limits) -> list[str]:
    """A sentence for each limit that a night passes; the products that drifted most come first.

    `totals` are those of a run, `drift` is its drift table. A shift that chance
    explains (Kolmogorov-Smirnov, adjusted for all products) is none, however large.
    """
    said = []
    allowed = max_failures(limits.failed, totals["images"])
    if totals["failed"] > allowed:
        kinds = {k: v for k, v in totals["statuses"].items() if k != "ok"}
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        said.append(
            f"{totals['failed']} of {totals['images']} images failed ({counts}), more than "
            f"--warn-failed {limits.failed} allows"
        )
    moved = [row for row in drift.to_pylist() if drifted(row, limits.drift)]
    moved.sort(key=lambda row: -row["psi"])
    for row in moved[:_NAMED]:
        said.append(
            f"scores of {row['product']!r} drifted: PSI {row['psi']:.2f} is more than "
            f"--warn-drift {limits.drift:g}; the median {row['measure']} went from "
            f"{row['median_a']:.4g} ({row['tested_a']} images) to {row['median_b']:.4g} "
            f"({row['tested_b']})"
        )
    if len(moved) > _NAMED:
        said.append(f"{len(moved) - _NAMED} more products drifted by more than that")
    return said


def drifted(row: Mapping[str, Any], limit: float) -> bool:
    """Whether a product's scores moved by more than a limit, and not by chance."""
    return row["psi"] is not None and row["psi"] > limit and row["ks_q"] < _SIGNIFICANT
