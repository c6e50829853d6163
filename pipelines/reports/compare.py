"""Comparing two runs over the same images: what changed for each image, and for each product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from ops.archives.views import views_of
from ops.errors import SettingError
from ops.progress import ProgressCallback
from ops.results import drift as measures
from ops.results import plots
from ops.results.plots import Shift
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.reports import image_pairs
from pipelines.reports.drift import (
    COUNT,
    DRIFT,
    REAL,
    SAMPLE,
    Measure,
    drift_of,
    load_sides,
    measure_of,
    name_detectors,
    schema,
    values_of,
)
from pipelines.reports.labels import Joined
from pipelines.reports.part_changes import PartChanges, part_changes
from pipelines.reports.region_changes import RegionChanges, region_changes
from pipelines.tables import run_records
from pipelines.tables.database import opened

PRODUCTS = schema(
    "comparison 1",
    *((field.name, field.type, field.metadata[b"meaning"].decode()) for field in DRIFT),
    ("both", COUNT, "images in both runs"),
    ("only_in_a", COUNT, "images of the first run alone"),
    ("only_in_b", COUNT, "images of the second run alone"),
    ("status", COUNT, "images in both whose status changed"),
    ("moved", COUNT, "images in both whose product changed; counted under the second run's"),
    ("became_anomalous", COUNT, "images that only the second run found anomalous"),
    ("became_normal", COUNT, "images that only the first run found anomalous"),
    ("ranked", COUNT, "pairs of scores that the correlations rest on; a sample if more"),
    ("spearman", REAL, "rank correlation of their scores"),
    ("kendall", REAL, "rank correlation of their scores, tau-b"),
    ("labelled", COUNT, "images with a label and a verdict in both runs"),
    ("errors_a", COUNT, "of these, verdicts of the first run that the label contradicts"),
    ("errors_b", COUNT, "of these, verdicts of the second run that the label contradicts"),
)


@dataclass(frozen=True)
class CompareSettings:
    """How two runs are compared."""

    join: Literal["image_id", "uri"] = "image_id"
    """How images of both runs are matched: by image_id (same address and version) or by uri (same
    address, any version)."""
    movers: int = 20
    """How many images to list per product: those whose rank or p-value changed most."""
    moved_by: Literal["rank", "p_value"] = "rank"
    """How change is measured: by the rank within the product, or by the p-value."""
    sample: int = SAMPLE
    """Maximum number of scores per product and run for tests, correlations and pictures."""
    pictures: int = 40
    """Maximum number of products with a picture: those that drifted most."""

    def __post_init__(self) -> None:
        """Check values. Raises SettingError."""
        for name, least in (("movers", 0), ("sample", 2), ("pictures", 0)):
            if (value := getattr(self, name)) < least:
                raise SettingError(f"{name} {value} must be at least {least}")


class Compared(NamedTuple):
    """The tables `PRODUCTS` and `image_pairs.MOVERS`, locations of pictures by product, how labels
    were joined (None without labels), and the addresses whose versions differ unpaired.
    """

    products: pa.Table
    movers: pa.Table
    pictures: dict[str, str]
    joined: Joined | None
    other_versions: int
    parts: PartChanges = PartChanges(0, 0, 0, 0)
    regions: RegionChanges = RegionChanges()


def compare(
    out: Out,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    labels: str,
    settings: CompareSettings,
    progress: ProgressCallback,
) -> Compared:
    """Compare two finished runs, given their records; writes tables and pictures below `out`.

    `labels` is an inventory whose labels tell which verdicts are right, or empty.
    """
    runs = str(before["run_id"]), str(after["run_id"])
    measure = measure_of(before, after)
    with opened() as database:
        tables = (out.table(record["night"], record["run_id"]) for record in (before, after))
        with run_records.unexpired(out, before, after):
            load_sides(database, *tables)
            places = [out.region_table(one["night"], one["run_id"]) for one in (before, after)]
            regions = region_changes(database, places[0], places[1], settings.join)
        parts = part_changes(database)
        separate = views_of(before) == views_of(after) == "separate"
        name_detectors(database, "separate" if separate else "pooled")
        image_pairs.pair_images(database, labels, settings.join)
        rows = _compare_products(database, measure, settings)
        products = pa.Table.from_pylist(rows, PRODUCTS)
        movers = image_pairs.movers(database, settings.moved_by, settings.movers)
        changes = image_pairs.changes(database)
        joined = image_pairs.count_labels(database) if labels else None
        other_versions = image_pairs.count_other_versions(database)
        parquet.write(out.comparison(*runs, "products"), PRODUCTS, [products])
        parquet.write(out.comparison(*runs, "changes"), image_pairs.CHANGES, changes)
        parquet.write(out.comparison(*runs, "movers"), image_pairs.MOVERS, movers)
        pictures: dict[str, str] = {}
        for row in _most_drifted(rows, settings.pictures):
            pictures[row["product"]] = out.compared(*runs, row["product"])
            shift = _shift(database, row, before, after, measure)
            files.write_bytes(pictures[row["product"]], plots.draw_shift(shift))
            progress("pictures", len(pictures), min(len(rows), settings.pictures), 0)
    ranked = parquet.read(out.comparison(*runs, "movers"))
    return Compared(products, ranked, pictures, joined, other_versions, parts, regions)


def _compare_products(
    database: duckdb.DuckDBPyConnection, measure: Measure, settings: CompareSettings
) -> list[dict[str, Any]]:
    """Rows of `PRODUCTS`."""
    counts = image_pairs.count_changes(database)
    rows = []
    for row in drift_of(database, measure, settings.sample).to_pylist():
        # A product has no pairs if all of its images moved to other products.
        of_product = counts.get(row["product"], dict.fromkeys(image_pairs.COUNTS, 0))
        scores = image_pairs.scores_and_ranks(database, row["product"], settings.sample)
        agreement = measures.agreement(scores["score_a"], scores["score_b"])._asdict()
        rows.append(row | of_product | agreement | {"ranked": len(scores["score_a"])})
    return rows


def _most_drifted(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    tested = [
        row for row in rows if row["product"] is not None and row["tested_a"] + row["tested_b"]
    ]
    return sorted(tested, key=lambda row: (-(row["ks"] or 0), row["product"]))[:most]


def _shift(
    database: duckdb.DuckDBPyConnection,
    row: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    measure: Measure,
) -> Shift:
    product = row["product"]
    pairs = image_pairs.scores_and_ranks(database, product, plots.POINTS)
    kind = "score" if measure == "score" else "rank"
    return Shift(
        product,
        measure,
        before=values_of(database, "a", product),
        after=values_of(database, "b", product),
        pair_kind=kind,
        pairs=(pairs[f"{kind}_a"], pairs[f"{kind}_b"]),
        threshold=after.get("thresholds", {}).get(product) if measure == "score" else None,
        runs=(str(before["run_id"]), str(after["run_id"])),
        title=f"KS {row['ks']:.3f}, PSI {row['psi']:.3f}" if row["ks"] is not None else "",
    )
