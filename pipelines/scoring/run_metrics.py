"""Metrics of a run while it scores, through Ray's own: the driver sets gauges about once a second.

Ray exports them with the prefix `ray_` at the metrics port of the driver's node.
"""

from __future__ import annotations

import time
from collections import Counter

import pyarrow as pa
from ray.util.metrics import Gauge

from ops.plain_text import printable
from ops.redact import redact
from pipelines.scoring.chunks import Chunks
from pipelines.tables.night_metrics import (
    IMAGES,
    PRODUCT_IMAGES,
    SPEED,
    STATUS_IMAGES,
    NightMetric,
)

#: Products with a label of their own; later ones are counted together as `OTHER`.
PRODUCTS = 100
OTHER = "(other products)"
#: Seconds between two updates.
_INTERVAL = 1.0


class RunMetrics:
    """The gauges of one run. Images of products are those that this process has scored."""

    def __init__(self, out: str, chunks: Chunks) -> None:
        self._out, self._chunks = printable(redact(out)), chunks
        self._resumed, self._started = chunks.done, time.monotonic()
        self._updated = self._started
        self._gauges: dict[str, Gauge] = {}
        self._products: dict[str, Counter[str]] = {}

    def add(self, rows: pa.Table) -> None:
        """Count rows that joined the chunks, and update the gauges if it is time."""
        columns = (rows[name].to_pylist() for name in ("product", "status", "is_anomalous"))
        for (product, status, is_anomalous), images in Counter(zip(*columns, strict=True)).items():
            counts = self._counts_of(product or "")
            counts["scored"] += images
            counts["failed"] += images * (status != "ok")
            counts["anomalous"] += images * bool(is_anomalous)
        if time.monotonic() - self._updated >= _INTERVAL:
            self.update()

    def _counts_of(self, product: str) -> Counter[str]:
        name = printable(product)
        if name not in self._products and len(self._products) >= PRODUCTS:
            name = OTHER
        return self._products.setdefault(name, Counter())

    def update(self) -> None:
        """Set all gauges."""
        chunks, self._updated = self._chunks, time.monotonic()
        counts = {"scored": chunks.done, "failed": chunks.failed, "anomalous": chunks.anomalous}
        for state, images in counts.items():
            self._set(IMAGES, images, state=state)
        for status, images in chunks.statuses.items():
            self._set(STATUS_IMAGES, images, status=status)
        for product, of_product in self._products.items():
            for state, images in of_product.items():
                self._set(PRODUCT_IMAGES, images, product=product, state=state)
        seconds = max(self._updated - self._started, 1e-9)
        self._set(SPEED, (chunks.done - self._resumed) / seconds)

    def _set(self, metric: NightMetric, value: float, **labels: str) -> None:
        if metric.name not in self._gauges:
            tags = ("out", *metric.labels)
            self._gauges[metric.name] = Gauge(metric.name, metric.meaning, tag_keys=tags)
        self._gauges[metric.name].set(value, tags={"out": self._out, **labels})
