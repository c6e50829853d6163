"""Counts and quantiles of products by run, over generated nights."""

from __future__ import annotations

import pytest

from ops.storage.paths import Out
from pipelines.reports.product_nights import product_nights
from pipelines.tables import run_records
from tests.runs import Part, finish, model_of


def test_each_product_has_a_row_for_each_run(tmp_path):
    out, model = str(tmp_path), model_of(["bolt", "nut"])
    bolts = [Part(f"b{i}.png", "bolt", 1.0 + i / 100) for i in range(101)]
    nuts = [Part("n0.png", "nut", 3.0), Part("n1.png", "nut", None), Part("n2.png", "nut", 1.0)]
    finish(out, [*bolts, *nuts], model, "2026-11-20")
    finish(out, [Part("n3.png", "nut", None, version="v2")], model, "2026-11-21")
    records = run_records.latest(Out(out), 2)
    first, second = (record["run_id"] for record in records)
    rows = product_nights(Out(out), records)
    assert [(row.run_id, row.product, row.images, row.failed, row.anomalous) for row in rows] == [
        (first, "bolt", 101, 0, 0),
        (first, "nut", 3, 1, 1),
        (second, "nut", 1, 1, 0),
    ]
    assert rows[0].scores == pytest.approx((1.05, 1.25, 1.5, 1.75, 1.95), abs=0.02)
    assert (rows[1].flagged, rows[2].flagged, rows[2].scores) == (0.5, None, None)
    assert [row.run_id for row in product_nights(Out(out), records[1:])] == [second]
