"""Regions of two runs that overlap in the same image."""

from __future__ import annotations

import pyarrow as pa
import pytest

from ops.results import region_table
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.reports.region_changes import RegionChanges, region_changes
from pipelines.reports.sides import Runs
from tests.pipelines.tables.test_current_regions import region
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

#: By address, the left and top side of regions of 10 x 10 pixels in the first and second run.
BEFORE = {"u/1": [(0, 0), (50, 50)], "u/2": [(0, 0)], "u/3": [(0, 0)]}
AFTER = {"u/1": [(9, 9), (5, 5), (60, 50)], "u/2": [], "u/4": [(0, 0)]}


def write(out: Out, number: int, found: dict[str, list[tuple[int, int]]], version: str) -> str:
    """A run that scored these images, and one that failed; its table of regions."""
    rows = [row(uri, version=version) for uri in found] + [row("u/5", status="missing")]
    run_id = publish(out, number, rows)
    ids = {each["uri"]: each["image_id"] for each in rows}
    regions = [
        region(uri, run_id, place)
        | {"image_id": ids[uri], "box_x": x, "box_y": y, "box_width": 10, "box_height": 10}
        for uri, boxes in found.items()
        for place, (x, y) in enumerate(boxes, 1)
    ]
    location = out.region_table(run_id[:10], run_id)
    table = pa.Table.from_pylist(regions, region_table.SCHEMA)
    parquet.write(location, region_table.SCHEMA, [table])
    return run_id


def record(run_id: str) -> dict[str, str]:
    return {"run_id": run_id, "night": run_id[:10], "model_id": MODELS[0]}


def compared(out: Out, runs: list[str], join: str) -> RegionChanges:
    return Runs(out, *map(record, runs)).read(lambda database: region_changes(database, join))


@pytest.mark.parametrize(("version", "join"), [("v1", "image_id"), ("v1", "uri"), ("v2", "uri")])
def test_regions_of_images_in_both_runs_are_matched_by_their_boxes(tmp_path, version, join):
    out = Out(str(tmp_path))
    runs = [write(out, 0, BEFORE, "v1"), write(out, 1, AFTER, version)]
    # Boxes that share a border do not overlap.
    found = compared(out, runs, join)
    assert found == RegionChanges(3, 3, 1, 2)
    assert found.sentence == (
        "regions of images in A and B: 3 in A, of which 1 overlap one in B, and 3 in B, of "
        "which 2 overlap one in A"
    )


def test_other_versions_are_other_images(tmp_path):
    out = Out(str(tmp_path))
    runs = [write(out, 0, BEFORE, "v1"), write(out, 1, AFTER, "v2")]
    assert compared(out, runs, "image_id") == RegionChanges()
    assert RegionChanges().sentence == ""


def test_a_run_without_a_table_of_regions_is_not_compared(tmp_path):
    out = Out(str(tmp_path))
    runs = [write(out, 0, BEFORE, "v1"), publish(out, 1, [row("u/1")])]
    assert compared(out, runs, "image_id") == RegionChanges()
