"""Counts of products in a run, over generated nights."""

from __future__ import annotations

from ops.storage.paths import Out
from pipelines.reports.product_counts import product_counts
from pipelines.tables import run_records
from tests.runs import Part, finish, model_of


def test_each_product_of_a_run_has_its_counts(tmp_path):
    out, model = str(tmp_path), model_of(["bolt", "nut"])
    bolts = [Part(f"b{i}.png", "bolt", 1.0 + i / 100) for i in range(101)]
    nuts = [Part("n0.png", "nut", 3.0), Part("n1.png", "nut", None), Part("n2.png", "nut", 1.0)]
    finish(out, [*bolts, *nuts], model, "2026-11-20")
    finish(out, [Part("n3.png", "nut", None, version="v2")], model, "2026-11-21")
    first, second = run_records.latest(Out(out), 2)
    assert product_counts(Out(out), first) == [("bolt", 101, 0, 0), ("nut", 3, 1, 1)]
    assert product_counts(Out(out), second) == [("nut", 1, 1, 0)]
