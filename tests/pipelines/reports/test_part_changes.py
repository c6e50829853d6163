"""Parts with an anomalous image in one run or the other."""

from __future__ import annotations

import pytest

from ops.storage.paths import Out
from pipelines.reports.part_changes import PartChanges, part_changes
from pipelines.reports.sides import Runs
from tests.pipelines.reports.test_region_changes import record
from tests.pipelines.tables.test_current_scores import publish, row


def image(part, view, score):
    return row(f"u/{part}/{view}", part=part, view=view, score=score)  # anomalous above 5


@pytest.fixture
def sides(tmp_path):
    out = Out(str(tmp_path))
    before = [image("1", "side", 9.0), image("2", "top", 9.0), image("3", "top", 1.0)]
    after = [image("1", "top", 8.0), image("2", "top", 1.0), image("3", "top", 6.0)]
    before += [image("4", "top", 9.0), row("u/none", score=9.0)]
    runs = [publish(out, number, rows) for number, rows in enumerate((before, after))]
    return Runs(out, *(record(run_id) | {"views": "separate"} for run_id in runs))


def test_parts_in_both_runs_are_counted_whichever_view_is_anomalous(sides):
    def read(database):
        changes = part_changes(database)
        sides.name_detectors(database)
        names = "SELECT DISTINCT product FROM sides ORDER BY product"
        return changes, [name for (name,) in database.sql(names).fetchall()]

    found, products = sides.read(read)
    assert found == PartChanges(3, 1, 1, 1)
    assert found.sentence == (
        "of 3 parts in A and B, 1 have an anomalous image in both, 1 only in A, 1 only in B"
    )
    assert products == ["bolt", "bolt/side", "bolt/top"]


def test_runs_without_parts_have_nothing_to_say():
    assert PartChanges(0, 0, 0, 0).sentence == ""
