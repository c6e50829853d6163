"""Chunks: rows that arrive in any order, twice, or in part end as whole files. No Ray."""

from __future__ import annotations

import datetime
import random

import pyarrow as pa
import pytest

from ops.archives.inventory import SCHEMA, Inventory, image_id
from ops.results import region_table
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.scoring.chunks import CHUNK, ROWS, Chunks, InvalidRun

NOW = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)


@pytest.fixture
def inventory(tmp_path):
    rows = [
        {"image_id": image_id(f"file:///{i}", "v"), "uri": f"file:///{i}", "version": "v"}
        for i in range(25)
    ]
    parquet.write(str(tmp_path / "i.parquet"), SCHEMA, [pa.Table.from_pylist(rows, SCHEMA)])
    return Inventory(str(tmp_path / "i.parquet"))


def rows(inventory, places, score=1.0):
    uris = inventory.read(["image_id", "uri"]).to_pylist()
    return pa.Table.from_pylist(
        [
            {
                **uris[place],
                "inventory_row": place,
                "product": "p",
                "content_sha256": "c0",
                "width": 8,
                "height": 8,
                "bit_depth": 8,
                "peak_x": 3,
                "peak_y": 4,
                "status": "ok",
                "score": score + place,
                "model_id": "m",
                "run_id": "r",
                "run_number": 1,
                "scored_at": NOW,
            }
            for place in places
        ],
        ROWS,
    )


def published(chunks):
    return pa.concat_tables(chunks.tables())


def chunks_of(inventory, tmp_path):
    return Chunks(Out(str(tmp_path / "out")), "r", inventory, 10)


def test_rows_in_any_order_and_twice_end_once_in_the_inventorys_order(inventory, tmp_path):
    chunks = chunks_of(inventory, tmp_path)
    places = [*range(25), 3, 4, 5, 24]
    random.Random(0).shuffle(places)
    for start in range(0, len(places), 4):
        chunks.add(rows(inventory, places[start : start + 4]))
    assert chunks.done == 25
    assert not list(chunks.missing())
    assert published(chunks)["score"].to_pylist() == [1.0 + i for i in range(25)]


def test_missing_rows_are_known_row_by_row(inventory, tmp_path):
    chunks = chunks_of(inventory, tmp_path)
    assert list(chunks.missing()) == [(0, 10), (10, 20), (20, 25)]
    chunks.add(rows(inventory, [*range(10), 12, 13, 19, 24]))
    assert list(chunks.missing()) == [(10, 12), (14, 19), (20, 24)]


def test_a_second_attempt_loads_finished_chunks_and_saved_rows(inventory, tmp_path):
    first = chunks_of(inventory, tmp_path)
    first.add(rows(inventory, [*range(10), 12, 24]))
    first.save_partial()
    second = chunks_of(inventory, tmp_path)
    assert second.done == 12
    assert list(second.missing()) == [(10, 12), (13, 20), (20, 24)]
    second.add(rows(inventory, range(25), score=100.0))
    values = published(second)["score"].to_pylist()
    assert values[:10] == [1.0 + i for i in range(10)]
    assert (values[12], values[24]) == (13.0, 25.0)
    assert chunks_of(inventory, tmp_path).done == 25


def test_rows_of_an_unfinished_chunk_that_were_not_saved_are_scored_again(inventory, tmp_path):
    chunks_of(inventory, tmp_path).add(rows(inventory, [*range(10), 12, 24]))
    assert list(chunks_of(inventory, tmp_path).missing()) == [(10, 20), (20, 25)]


def test_regions_stay_with_their_images_and_are_counted_over_attempts(inventory, tmp_path):
    region = {"number": 1, "box_x": 1, "box_y": 2, "box_width": 3, "box_height": 4, "area": 12.0}
    region |= {"centroid_x": 2.0, "centroid_y": 3.5, "largest": 9.0, "mean": 8.0, "p_value": 0.1}
    region |= {"touches_border": False}

    def with_regions(places):
        table = rows(inventory, places).to_pylist()
        for row in table:
            odd = row["inventory_row"] % 2
            row |= {"regions": [region] if odd else [], "regions_hidden": 2}
        return pa.Table.from_pylist(table, ROWS)

    first = chunks_of(inventory, tmp_path)
    first.add(with_regions([*range(10), 13, 24]))
    first.save_partial()
    second = chunks_of(inventory, tmp_path)
    assert (second.regions, second.regions_hidden) == (6, 24)
    second.add(with_regions(range(25)))
    assert (second.regions, second.regions_hidden) == (12, 50)
    table = region_table.unnested(published(second))
    uris = inventory.read(["image_id"])["image_id"].to_pylist()
    assert table["image_id"].to_pylist() == uris[1::2]
    assert {name: table[name][0].as_py() for name in region} == region
    assert set(table["run_id"].to_pylist()) == {"r"}


def with_status(inventory, status):
    table = rows(inventory, range(10)).to_pylist()
    for row in table[:3]:
        row |= {"status": status, "reason": "a sentence", "score": None}
    return pa.Table.from_pylist(table, ROWS)


def test_failures_are_counted_also_over_attempts(inventory, tmp_path):
    chunks = chunks_of(inventory, tmp_path)
    chunks.add(with_status(inventory, "unreadable"))
    assert chunks.failed == 3
    assert chunks_of(inventory, tmp_path).statuses == {"ok": 7, "unreadable": 3}


@pytest.mark.parametrize("status", ["missing", "forbidden", "unavailable", "crashed_worker"])
def test_transient_failures_are_tried_again_by_the_next_attempt(inventory, tmp_path, status):
    chunks_of(inventory, tmp_path).add(with_status(inventory, status))
    second = chunks_of(inventory, tmp_path)
    assert second.failed == 0
    assert list(second.missing()) == [(0, 3), (10, 20), (20, 25)]
    second.add(rows(inventory, range(25)))
    assert published(second)["status"].to_pylist() == ["ok"] * 25


def test_a_chunk_with_foreign_missing_or_invalid_rows_is_not_published(inventory, tmp_path):
    chunks = chunks_of(inventory, tmp_path)
    chunks.add(rows(inventory, range(25)))
    place = chunks.out.chunk("r", 1)
    good = parquet.read(place)
    parquet.write(place, CHUNK, [good.slice(1)])
    with pytest.raises(InvalidRun, match="chunk 1"):
        published(chunks)
    swapped = pa.concat_tables([good.slice(1, 1), good.slice(0, 1), good.slice(2)])
    parquet.write(place, CHUNK, [swapped])
    with pytest.raises(InvalidRun, match="chunk 1"):
        published(chunks)
    column = pa.array([None] * len(good), pa.float64())
    where = good.schema.get_field_index("score")
    parquet.write(place, CHUNK, [good.set_column(where, "score", column)])
    with pytest.raises(InvalidRun, match="ok rows without a finite score"):
        published(chunks)


def test_rows_without_their_map_are_counted_kept_and_drawn_by_the_next_attempt(inventory, tmp_path):
    table = rows(inventory, range(10)).to_pylist()
    for place, error in ((3, "no space"), (5, "still none")):
        table[place] |= {"map_error": error}
    first = chunks_of(inventory, tmp_path)
    first.add(pa.Table.from_pylist(table, ROWS))
    assert (first.done, first.failed) == (10, 0)
    assert (first.without_map, first.map_error) == (2, "no space")
    assert list(first.missing()) == [(10, 20), (20, 25)]  # this attempt tries no map twice
    first.save_partial()
    kept = parquet.read(str(tmp_path / "out" / "_work" / "r" / "kept-00000.parquet"))
    assert kept["score"].to_pylist() == [1.0 + i for i in range(10)]
    second = chunks_of(inventory, tmp_path)
    assert (second.done, second.without_map) == (8, 0)
    assert list(second.missing()) == [(3, 4), (5, 6), (10, 20), (20, 25)]
    second.add(rows(inventory, range(25)))
    assert published(second)["score"].to_pylist() == [1.0 + i for i in range(25)]
