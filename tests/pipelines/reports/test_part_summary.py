"""What a night says of its parts."""

from __future__ import annotations

import pytest

from ops.storage.paths import Out
from pipelines.reports.part_summary import PartSummary, incomplete_parts, part_summary
from pipelines.tables import current_scores
from tests.pipelines.tables.test_current_scores import MODELS, publish, row


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def image(part, view, status="ok", product="bolt"):
    uri = f"u/{product}/{part}/{view}"
    return row(uri, part=part, view=view, status=status, product=product)


def record(out, run_id):
    table = out.table(run_id[:10], run_id)
    return {"run_id": run_id, "model_id": MODELS[0], "totals": {"table": table}}


def test_incomplete_parts_of_the_night_are_counted_and_named(out):
    publish(out, 0, [image("0", "side"), image("0", "top"), image("9", "top")])
    rows = [image("1", "side"), image("1", "top", "unreadable"), image("2", "side")]
    rows += [image("9", "side")]  # whose other view came a night before
    run_id = publish(out, 1, [*rows, image("1", "side", product="nut"), row("u/none")])
    with current_scores.opened(out) as database:
        found = part_summary(database, [out.table(run_id[:10], run_id)], [run_id], MODELS[0])
    assert found.products == [
        {"product": "bolt", "parts": 3, "failed": 1, "missing": 1},
        {"product": "nut", "parts": 1, "failed": 0, "missing": 0},
    ]
    assert found.sentences == [
        "1 of 4 parts have a view of which no image could be scored, such as bolt 1",
        "1 of 4 parts lack the image of a view that other parts of their product have, such as "
        "bolt 2",
    ]
    assert incomplete_parts(out, record(out, run_id)) == found.sentences


def test_images_of_no_part_give_no_summary(out):
    run_id = publish(out, 0, [row("u/0"), row("u/1", view="top")])
    table = out.table(run_id[:10], run_id)
    with current_scores.opened(out) as database:
        assert part_summary(database, [table], [run_id], MODELS[0]) == PartSummary()
    assert incomplete_parts(out, record(out, run_id)) == []
