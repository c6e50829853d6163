"""Images that are gone from the archive, over drawn nights."""

from __future__ import annotations

import pyarrow as pa
import pytest

from ops.archives.inventory import SCHEMA
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores, gone, run_records
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

ROOT = "file:///parts"


@pytest.fixture
def out(tmp_path):
    return drawn(Out(str(tmp_path / "out")))


def drawn(out):
    """Two runs over more than the archive, whose newest listing holds less."""
    first = ["a.png", "b.png", "t.tar#1", "t.tar#2", "cut.tar#1", "q.parquet?column=x#1"]
    rows = [row(f"{ROOT}/{name}") for name in first]
    rows += [row("file:///parts2/c.png"), row("s3://bucket/d.png")]
    record(out, publish(out, 0, rows), 1)
    list_images(out, ["b.png", "t.tar#2"], damaged="cut.tar")
    night = gone.before_listing(out, ["/parts/"])
    assert night == {"archive": [ROOT], "last_run": 1}
    files.write_json(out.night("00000001-a"), night)
    record(out, publish(out, 1, [row(f"{ROOT}/later.png")]), 2)
    return out


def record(out, run_id, number):
    content = {"run_id": run_id, "number": number, "started": "2026", "model_id": MODELS[0]}
    content |= {"totals": {"images": 1}, "method": "padim"}
    files.write_json(out.run(run_id), content)


def list_images(out, names, damaged):
    listed = [{"image_id": name, "uri": f"{ROOT}/{name}"} for name in names]
    listed.append({"image_id": "x", "uri": f"{ROOT}/{damaged}", "problem": "cut off"})
    parquet.write(out.warehouse(), SCHEMA, [pa.Table.from_pylist(listed, SCHEMA)])


def current(out, listing):
    with current_scores.opened(out, "1GB", out.warehouse()) as database:
        rows = [
            each["uri"]
            for batch in current_scores.query(database, MODELS[0], listing=listing)
            for each in batch.to_pylist()
        ]
        return sorted(rows), gone.count(database)


KEPT = [
    *("file:///parts/b.png", "file:///parts/cut.tar#1", "file:///parts/later.png"),
    *("file:///parts/t.tar#2", "file:///parts2/c.png", "s3://bucket/d.png"),
]
GONE = ["file:///parts/a.png", "file:///parts/q.parquet?column=x#1", "file:///parts/t.tar#1"]


def test_what_the_last_listing_of_the_archive_lacks_is_gone(out):
    assert current(out, gone.newest_listing(out)) == (KEPT, 3)
    assert current(out, None) == (sorted(KEPT + GONE), 0)


def test_without_a_listing_of_an_archive_nothing_is_gone(out):
    by_inventory = {"archive": [], "last_run": 5}
    files.write_json(out.night("00000002-a"), by_inventory)
    assert gone.newest_listing(out) == (out.warehouse(), [ROOT], 1)
    files.remove_file(out.warehouse())
    assert gone.newest_listing(out) is None
    assert [night["last_run"] for night in run_records.nights(out)] == [5, 1]


def test_an_image_that_came_back_is_current_again(out):
    list_images(out, ["a.png", "b.png"], damaged="t.tar")
    assert current(out, gone.newest_listing(out))[1] == 2
