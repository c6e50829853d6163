"""Regions of current images: of published runs alone, in order, and removed with their rows."""

from __future__ import annotations

import pyarrow as pa
import pytest

from ops.archives.inventory import image_id
from ops.errors import SettingError
from ops.results import region_table
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables import current_regions, current_scores, retention
from pipelines.tables.verdict_rules import VerdictRule
from tests.pipelines.tables.test_current_scores import MODELS, publish, row


def region(uri, run_id, number, largest=4.0, p_value=0.1, version="1"):
    box = {"box_x": 3, "box_y": 4, "box_width": 10, "box_height": 5, "area": 40.0}
    place = {"centroid_x": 8.0, "centroid_y": 6.0, "touches_border": False}
    values = {"largest": largest, "mean": largest / 2, "p_value": p_value}
    names = {"image_id": image_id(uri, version), "run_id": run_id, "model_id": MODELS[0]}
    return names | {"number": number} | box | place | values


def write_regions(out, run_id, regions):
    table = pa.Table.from_pylist(regions, region_table.SCHEMA)
    parquet.write(out.region_table(run_id[:10], run_id), region_table.SCHEMA, [table])


@pytest.fixture
def out(tmp_path):
    """Two nights, of which the second supersedes u/1, and a run that published no scores yet."""
    out = Out(str(tmp_path / "out"))
    nights = [
        [row("u/1"), row("u/2", score=9.0, product="nut")],
        [row("u/1", score=7.0), row("u/3")],
    ]
    first, second = (publish(out, 20 * day, rows) for day, rows in enumerate(nights))
    write_regions(out, first, [region("u/1", first, 1), region("u/2", first, 1, 5.0, 0.02)])
    write_regions(out, second, [region("u/1", second, n, 6.0 - n, n / 50) for n in (1, 2)])
    write_regions(out, "2026-11-22-killed", [region("u/3", "2026-11-22-killed", 1)])
    for number, run_id in enumerate((first, second)):
        record = {"run_id": run_id, "number": number, "started": "", "totals": {"images": 2}}
        files.write_json(out.run(run_id), record | {"model_id": MODELS[0]})
    return out


def shown(out, **parameters):
    def read(database, _):
        batches = current_regions.query(database, MODELS[0], **parameters)
        return pa.Table.from_batches(batches, current_regions.VIEW).to_pylist()

    rows = current_scores.read_consistently(out, read, regions=True)
    return [(each["uri"], each["number"], each["p_value"]) for each in rows]


def test_regions_of_current_rows_of_published_runs_come_in_order(out):
    assert shown(out) == [("u/1", 1, 0.02), ("u/2", 1, 0.02), ("u/1", 2, 0.04)]
    assert shown(out, limit=1) == [("u/1", 1, 0.02)]
    assert shown(out, product="nut") == [("u/2", 1, 0.02)]
    assert shown(out, where="box_width * number > 10") == [("u/1", 2, 0.04)]
    with pytest.raises(SettingError):
        shown(out, where="score > 3")


def test_a_higher_threshold_or_a_lower_rate_leaves_regions_out(out):
    assert shown(out, rules={"bolt": VerdictRule(threshold=4.5)}) == [
        ("u/1", 1, 0.02),
        ("u/2", 1, 0.02),
    ]
    rules = {"bolt": VerdictRule(p_value=0.01), "nut": VerdictRule(p_value=0.02)}
    assert shown(out, rules=rules) == [("u/2", 1, 0.02)]


def test_without_tables_of_regions_there_are_none(tmp_path):
    out = Out(str(tmp_path))
    publish(out, 0, [row("u/1")])
    assert shown(out) == []


def test_regions_expire_with_the_rows_of_their_images(out, monkeypatch):
    before, table = shown(out), out.region_table("2026-11-20", "2026-11-20-0000")
    write = parquet.write

    def killed(location, *rest):
        if location.startswith(out.scores()):
            raise KeyboardInterrupt
        return write(location, *rest)

    monkeypatch.setattr(parquet, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        retention.expire(out, 1, [], remove=True)
    monkeypatch.undo()
    assert shown(out) == before
    (expired,) = retention.expire(out, 1, [], remove=True).tables
    assert (expired.rows, expired.kept_rows, expired.regions) == (2, 1, table)
    kept = parquet.read(table)
    assert kept.schema.equals(region_table.SCHEMA)
    assert kept["image_id"].to_pylist() == [image_id("u/2", "1")]
    assert shown(out) == before
    publish(out, 40, [row("u/2", product="nut")])
    retention.expire(out, 1, [], remove=True)
    assert not files.exists(table)
