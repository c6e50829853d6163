"""Counts and rates of a night as a text file of Prometheus, for the collector of node exporter."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from jobs.notify.message import counts, status_of
from jobs.tracking.redact import redact
from ops.plain_text import printable
from pipelines.reports.product_counts import ProductCounts


def render(
    night: Mapping[str, Any], out: str, products: Sequence[ProductCounts], last_good: str | None
) -> bytes:
    """The file of a night, given its record.

    `products` are those of its run; `last_good` is when the last night ended that did not fail.
    Every sample has the output folder as a label: files of several folders can lie together.
    """
    figures = _Figures(printable(redact(out)))
    totals = night.get("totals", {})
    figures.add("night_failed", "1 if the night failed, else 0", status_of(night) == "failed")
    figures.add("night_start_timestamp_seconds", "When it started", _seconds(night["started"]))
    figures.add("night_end_timestamp_seconds", "When it ended", _seconds(night["ended"]))
    if last_good:
        figures.add(
            "last_good_night_timestamp_seconds",
            "When the last night ended that did not fail",
            _seconds(last_good),
        )
    figures.add("night_warnings", "Its warnings", len(night.get("warnings", ())))
    for state, images in counts(night).items():
        figures.add("night_images", "Images of the night", images, state=state)
    for status, images in totals.get("statuses", {}).items():
        figures.add("night_status_images", "Images by status", images, status=status)
    if totals.get("images_per_second") is not None:
        rate = totals["images_per_second"]
        figures.add("night_images_per_second", "Images scored per second", rate)
    for row in products:
        product = printable(row.product or "")
        of_product = {"images": row.images, "failed": row.failed, "anomalous": row.anomalous}
        for state, images in of_product.items():
            labels = {"product": product, "state": "scored" if state == "images" else state}
            figures.add("night_product_images", "Images of a product", images, **labels)
    return generate_latest(figures.registry)


def _seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()


class _Figures:
    """Gauges with the label `out`, made when they are first used."""

    def __init__(self, out: str) -> None:
        self.registry = CollectorRegistry()
        self._out = out
        self._gauges: dict[str, Gauge] = {}

    def add(self, name: str, meaning: str, value: float, **labels: str) -> None:
        """Set a sample of a gauge, which always has the same labels."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(
                f"nightloupe_{name}", meaning, ["out", *labels], registry=self.registry
            )
        self._gauges[name].labels(out=self._out, **labels).set(value)
