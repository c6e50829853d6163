"""Parts with an anomalous image in one run or the other."""

from __future__ import annotations

import pytest

from ops.storage.paths import Out
from pipelines.reports.drift import load_sides, name_detectors
from pipelines.reports.part_changes import PartChanges, part_changes
from pipelines.tables.database import opened
from tests.pipelines.tables.test_current_scores import publish, row


def image(part, view, score):
    return row(f"u/{part}/{view}", part=part, view=view, score=score)  # anomalous above 5


@pytest.fixture
def tables(tmp_path):
    out = Out(str(tmp_path))
    before = [image("1", "side", 9.0), image("2", "top", 9.0), image("3", "top", 1.0)]
    after = [image("1", "top", 8.0), image("2", "top", 1.0), image("3", "top", 6.0)]
    before += [image("4", "top", 9.0), row("u/none", score=9.0)]
    runs = [publish(out, number, rows) for number, rows in enumerate((before, after))]
    return [out.table(run_id[:10], run_id) for run_id in runs]


def test_parts_in_both_runs_are_counted_whichever_view_is_anomalous(tables):
    with opened() as database:
        load_sides(database, *tables)
        found = part_changes(database)
        name_detectors(database, "separate")
        names = "SELECT DISTINCT product FROM sides ORDER BY product"
        products = [name for (name,) in database.sql(names).fetchall()]
    assert found == PartChanges(3, 1, 1, 1)
    assert found.sentence == (
        "of 3 parts in both runs, 1 have an anomalous image in both, 1 only in A, 1 only in B"
    )
    assert products == ["bolt", "bolt/side", "bolt/top"]


def test_runs_without_parts_have_nothing_to_say():
    assert PartChanges(0, 0, 0, 0).sentence == ""
