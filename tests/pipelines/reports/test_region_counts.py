"""Counts of the regions of a report's images."""

from __future__ import annotations

import pyarrow as pa

from ops.results import region_table
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.reports.drift import load_runs
from pipelines.reports.region_counts import ProductRegions, RegionCounts, region_counts
from pipelines.tables import current_scores
from tests.pipelines.tables.test_current_regions import region
from tests.pipelines.tables.test_current_scores import MODELS, publish, row


def test_regions_are_counted_by_product_and_image(tmp_path):
    out = Out(str(tmp_path))
    rows = [row("u/1"), row("u/2"), row("u/3", product="nut"), row("u/4", product="nut")]
    runs = [publish(out, 0, rows), publish(out, 1, rows[:1])]
    found = [region("u/1", runs[0], n) for n in (1, 2, 3)]
    found += [region("u/2", runs[0], 1), region("u/3", runs[0], 1)]
    table = pa.Table.from_pylist(found, region_table.SCHEMA)
    parquet.write(out.region_table(runs[0][:10], runs[0]), region_table.SCHEMA, [table])
    records = [
        {"night": runs[0][:10], "run_id": runs[0], "totals": {"regions_hidden": 7}},
        {"night": runs[1][:10], "run_id": runs[1], "totals": {"regions_hidden": None}},
    ]
    asked = [each["image_id"] for each in rows[1:]]

    def counted(*chosen: int) -> RegionCounts:
        with current_scores.opened(out) as database:
            load_runs(database, [runs[number] for number in chosen], MODELS[0])
            return region_counts(database, out, [records[number] for number in chosen], asked)

    of_first = counted(0)
    assert of_first.products == {"bolt": ProductRegions(4, 2), "nut": ProductRegions(1, 1)}
    assert of_first.images == {asked[0]: 1, asked[1]: 1}
    assert of_first.hidden == 7
    # The second run scored the first image again, and found no region.
    assert counted(0, 1).products == {"bolt": ProductRegions(1, 1), "nut": ProductRegions(1, 1)}
    assert counted(1) == RegionCounts()
