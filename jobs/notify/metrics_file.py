"""Counts and rates of a night as a text file of Prometheus, for the collector of node exporter."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from jobs.notify.message import counts, status_of
from ops.plain_text import printable
from ops.redact import redact
from pipelines.reports.product_counts import ProductCounts
from pipelines.tables import night_metrics as names
from pipelines.tables.night_metrics import NightMetric


def render(
    night: Mapping[str, Any], out: str, products: Sequence[ProductCounts], last_good: str | None
) -> bytes:
    """The file of a night, given its record.

    `products` are those of its run; `last_good` is when the last night ended that did not fail.
    Every sample has the output folder as a label: files of several folders can lie together.
    """
    figures = _Figures(printable(redact(out)))
    totals = night.get("totals", {})
    figures.add(names.FAILED, status_of(night) == "failed")
    figures.add(names.STARTED, _seconds(night["started"]))
    figures.add(names.ENDED, _seconds(night["ended"]))
    if last_good:
        figures.add(names.LAST_GOOD, _seconds(last_good))
    figures.add(names.WARNINGS, len(night.get("warnings", ())))
    for state, images in counts(night).items():
        figures.add(names.IMAGES, images, state=state)
    for status, images in totals.get("statuses", {}).items():
        figures.add(names.STATUS_IMAGES, images, status=status)
    if totals.get("images_per_second") is not None:
        figures.add(names.SPEED, totals["images_per_second"])
    for row in products:
        product = printable(row.product or "")
        of_product = {"scored": row.images, "failed": row.failed, "anomalous": row.anomalous}
        for state, images in of_product.items():
            figures.add(names.PRODUCT_IMAGES, images, product=product, state=state)
    return generate_latest(figures.registry)


def _seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()


class _Figures:
    """Gauges with the label `out`, made when they are first used."""

    def __init__(self, out: str) -> None:
        self.registry = CollectorRegistry()
        self._out = out
        self._gauges: dict[str, Gauge] = {}

    def add(self, metric: NightMetric, value: float, **labels: str) -> None:
        """Set a sample of a gauge."""
        if metric.name not in self._gauges:
            self._gauges[metric.name] = Gauge(
                metric.name, metric.meaning, ["out", *metric.labels], registry=self.registry
            )
        self._gauges[metric.name].labels(out=self._out, **labels).set(value)
