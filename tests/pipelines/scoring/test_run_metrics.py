"""Metrics of a run: what the gauges are set to, and that Ray exports them."""

from __future__ import annotations

import time
import urllib.request
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.scoring import run_metrics
from pipelines.scoring.run_metrics import RunMetrics


def rows_of(*rows):
    names = ("product", "status", "is_anomalous")
    kinds = (pa.string(), pa.string(), pa.bool_())
    columns = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    return pa.table(dict(zip(names, columns, strict=True)))


BATCH = rows_of(
    ("bolt", "ok", True),
    ("bolt", "ok", False),
    ("bolt", "unreadable", None),
    ("nut\u202e", "ok", False),
    (None, "ok", True),
)


def chunks():
    """Chunks after the batch, of which two rows were there before."""
    statuses = Counter({"ok": 6, "unreadable": 1})
    return SimpleNamespace(done=7, failed=1, anomalous=2, statuses=statuses)


@pytest.fixture
def samples(monkeypatch):
    """What gauges were set to, by name and labels."""
    found = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            self.name, self.keys = name, tag_keys

        def set(self, value, tags):
            assert set(tags) == set(self.keys)
            found[self.name, *(tags[key] for key in self.keys[1:])] = value
            assert tags["out"] == "s3://***@o\\x1b"

    monkeypatch.setattr(run_metrics, "Gauge", Gauge)
    return found


def test_gauges_have_the_counts_of_the_run(samples):
    before = SimpleNamespace(done=2, failed=0, anomalous=0, statuses=Counter())
    metrics = RunMetrics("s3://key:secret@o\x1b", before)
    metrics.add(BATCH)
    assert samples == {}  # less than a second ago
    vars(before).update(vars(chunks()))
    metrics.update()
    assert samples.pop(("nightloupe_night_images_per_second",)) > 0
    assert samples == {
        ("nightloupe_night_images", "scored"): 7,
        ("nightloupe_night_images", "failed"): 1,
        ("nightloupe_night_images", "anomalous"): 2,
        ("nightloupe_night_status_images", "ok"): 6,
        ("nightloupe_night_status_images", "unreadable"): 1,
        **{
            ("nightloupe_night_product_images", product, state): images
            for product, counts in {
                "bolt": (3, 1, 1),
                "nut\\u202e": (1, 0, 0),
                "": (1, 0, 1),
            }.items()
            for state, images in zip(("scored", "failed", "anomalous"), counts, strict=True)
        },
    }


def test_the_number_of_labels_is_bounded_and_updates_come_once_a_second(samples, monkeypatch):
    monkeypatch.setattr(run_metrics, "_INTERVAL", 0.0)
    metrics = RunMetrics("s3://key:secret@o\x1b", chunks())
    metrics.add(rows_of(*((f"p{i}", "ok", False) for i in range(150))))
    metrics.add(rows_of(("p0", "ok", True), ("p149", "ok", True)))
    products = {key[1] for key in samples if "product" in key[0]}
    assert len(products) == 101
    assert samples["nightloupe_night_product_images", run_metrics.OTHER, "scored"] == 51
    assert samples["nightloupe_night_product_images", "p0", "anomalous"] == 1


@pytest.mark.ray
def test_ray_exports_them(cluster):
    import ray

    metrics = RunMetrics("out", chunks())
    metrics.add(BATCH)
    metrics.update()
    port = ray.nodes()[0]["MetricsExportPort"]
    for _ in range(60):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        if "nightloupe_night_product_images" in text:
            break
        time.sleep(1)
    found = {
        (sample.name, sample.labels.get("state"), sample.labels.get("product")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("out") == "out"
    }
    assert found["ray_nightloupe_night_images", "scored", None] == 7
    assert found["ray_nightloupe_night_product_images", "failed", "bolt"] == 1
