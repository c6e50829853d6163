"""Alarms where a product differs from its earlier nights under the same model.

A product has an alarm if its median score or its share of anomalous images lies outside those of
all its earlier nights under the model, and chance does not explain it: neither the images of a
night, nor the variation between nights. P-values are adjusted for all products and both figures,
so if nothing changed, at most about one night in a hundred has an alarm at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.results.drift import adjusted_p_values
from ops.results.prediction import median_variance, prediction_p_value, share_as_angle
from ops.storage.paths import Out
from pipelines.reports import run_summary
from pipelines.reports.report_queries import Row
from pipelines.tables import run_records

#: Probability of an alarm in a night without a change.
LEVEL = 0.01
#: Number of earlier nights under the model below which nothing is expected of a product.
LEAST_NIGHTS = 8
_NAMED = 10  # products that warnings name
#: Columns of summaries that alarms need.
COLUMNS = (
    *("product", "run_number", "model_id", "images", "failed", "anomalous"),
    *("q25", "median", "q75"),
)


class Alarm(NamedTuple):
    """A figure of a product in the last night that its earlier nights do not let expect."""

    product: str | None
    figure: str
    """`median score` or `share of anomalous images`."""
    value: float
    low: float
    """The smallest value of the earlier nights."""
    high: float
    nights: int
    """Number of earlier nights."""
    q: float
    """The adjusted p-value."""

    def __str__(self) -> str:
        form = "{:.1%}" if "share" in self.figure else "{:.4g}"
        value, low, high = map(form.format, (self.value, self.low, self.high))
        return (
            f"the {self.figure} of {self.product!r} is {value}, outside of the {low} to {high} of "
            f"its {self.nights:,} earlier nights under this model (q = {self.q:.1g})"
        )


def warnings_of(out: Out, record: dict[str, Any], nights: int, level: float) -> list[str]:
    """A sentence for each alarm of a finished run among the last `nights`, given its record.

    Writes the summaries that are missing.
    """
    records = run_records.with_totals(out)[-nights:]
    without = run_summary.complete(out, records)
    ids = [str(each["run_id"]) for each in records if each["run_id"] not in without]
    summaries = run_summary.read([out.run_summary(run_id) for run_id in ids])
    found = find(summaries, record["number"], level)
    sentences = list(map(str, found[:_NAMED]))
    if len(found) > _NAMED:
        more = len(found) - _NAMED
        sentences.append(f"{more:,} more figures of products lie outside of their earlier nights")
    return sentences


def find(summaries: pa.Table, run_number: int, level: float = LEVEL) -> list[Alarm]:
    """The alarms of a run, the least likely first, given rows with `COLUMNS` of several runs."""
    candidates = list(_candidates(summaries, run_number))
    adjusted = adjusted_p_values([alarm.q for alarm in candidates])
    alarms = [
        alarm._replace(q=q)
        for alarm, q in zip(candidates, adjusted, strict=True)
        if q is not None and q < level
    ]
    return sorted(alarms, key=lambda alarm: (alarm.q, alarm.product or ""))


def _candidates(summaries: pa.Table, run_number: int) -> Iterator[Alarm]:
    """Both figures of each product of a run, with their p-values before they are adjusted."""
    scored = pc.greater(summaries["images"], summaries["failed"])
    known = summaries.filter(pc.and_(scored, pc.less_equal(summaries["run_number"], run_number)))
    by_product: dict[str | None, list[Row]] = {}
    for row in known.sort_by("run_number").to_pylist():
        by_product.setdefault(row["product"], []).append(row)
    for product, rows in by_product.items():
        last = rows[-1]
        of_model = [row for row in rows if row["model_id"] == last["model_id"]]
        if last["run_number"] != run_number or len(of_model) <= LEAST_NIGHTS:
            continue
        yield from _of_product(product, of_model)


def _of_product(product: str | None, rows: Sequence[Row]) -> Iterator[Alarm]:
    counts = [(row["anomalous"], row["images"] - row["failed"]) for row in rows]
    shares = np.array([part / whole for part, whole in counts])
    angles = np.array([share_as_angle(*pair) for pair in counts])
    medians = np.array([row["median"] for row in rows], np.float64)
    variances = np.array(
        [median_variance(r["q25"], r["q75"], n) for r, (_, n) in zip(rows, counts, strict=True)]
    )
    for figure, shown, values, spread in (
        ("median score", medians, medians, variances),
        ("share of anomalous images", shares, angles[:, 0], angles[:, 1]),
    ):
        before, last = shown[:-1], float(shown[-1])
        low, high = float(before.min()), float(before.max())
        p_value: float | None = 1.0  # of what stayed within its past
        if not low <= last <= high:
            p_value = prediction_p_value(values[:-1], spread[:-1], values[-1], spread[-1])
        if p_value is not None:
            yield Alarm(product, figure, last, low, high, len(before), p_value)
