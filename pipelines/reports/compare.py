"""Comparing two runs or models over the same images: what changed, by image and by product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from ops.errors import SettingError
from ops.progress import ProgressCallback
from ops.results import drift as measures
from ops.results import plots
from ops.results.plots import Shift
from ops.storage import files, parquet
from pipelines.reports import image_pairs, unseen_labels
from pipelines.reports.drift import (
    COUNT,
    DRIFT,
    REAL,
    SAMPLE,
    drift_of,
    measure_of,
    schema,
    values_of,
)
from pipelines.reports.labels import Joined
from pipelines.reports.part_changes import PartChanges, part_changes
from pipelines.reports.region_changes import RegionChanges, region_changes
from pipelines.reports.sides import Sides

PRODUCTS = schema(
    "comparison 1",
    *((field.name, field.type, field.metadata[b"meaning"].decode()) for field in DRIFT),
    ("both", COUNT, "images in A and B"),
    ("only_in_a", COUNT, "images of A alone"),
    ("only_in_b", COUNT, "images of B alone"),
    ("status", COUNT, "images in both whose status changed"),
    ("moved", COUNT, "images in both whose product changed; counted under B's"),
    ("became_anomalous", COUNT, "images that only B found anomalous"),
    ("became_normal", COUNT, "images that only A found anomalous"),
    ("ranked", COUNT, "pairs of scores that the correlations rest on; a sample if more"),
    ("spearman", REAL, "rank correlation of their scores"),
    ("kendall", REAL, "rank correlation of their scores, tau-b"),
    ("labelled", COUNT, "images with a label and a verdict in A and B"),
    ("errors_a", COUNT, "of these, verdicts of A that the label contradicts"),
    ("errors_b", COUNT, "of these, verdicts of B that the label contradicts"),
)


@dataclass(frozen=True)
class CompareSettings:
    """How two runs or models are compared."""

    join: Literal["image_id", "uri"] = "image_id"
    """How images of A and B are matched: by image_id (same address and version) or by uri (same
    address, any version)."""
    movers: int = 20
    """How many images to list per product: those whose rank or p-value changed most."""
    moved_by: Literal["rank", "p_value"] = "rank"
    """How change is measured: by the rank within the product, or by the p-value."""
    sample: int = SAMPLE
    """Maximum number of scores per product and side for tests, correlations and pictures."""
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
    sides: Sides, labels: str, settings: CompareSettings, progress: ProgressCallback
) -> Compared:
    """Compare two runs or two models; writes tables and pictures to their folder.

    `labels` is an inventory whose labels tell which verdicts are right, or empty.
    """

    def compare_rows(database: duckdb.DuckDBPyConnection) -> Compared:
        regions = region_changes(database, settings.join)
        parts = part_changes(database)
        sides.name_detectors(database)
        unseen_labels.create(database, sides, labels)
        image_pairs.pair_images(database, settings.join)
        rows = _compare_products(database, sides, settings)
        products = pa.Table.from_pylist(rows, PRODUCTS)
        _write(sides, "products", PRODUCTS, [products])
        _write(sides, "changes", image_pairs.CHANGES, image_pairs.changes(database))
        movers = image_pairs.movers(database, settings.moved_by, settings.movers)
        return Compared(
            products,
            parquet.read(_write(sides, "movers", image_pairs.MOVERS, movers)),
            _draw(database, sides, _most_drifted(rows, settings.pictures), progress),
            image_pairs.count_labels(database) if labels else None,
            image_pairs.count_other_versions(database),
            parts,
            regions,
        )

    return sides.read(compare_rows)


def _write(sides: Sides, name: str, schema: pa.Schema, rows: Iterable[pa.RecordBatch]) -> str:
    """The location of a table of the comparison, which is written."""
    location = sides.out.comparison(sides.before.name, sides.after.name, name)
    parquet.write(location, schema, rows)
    return location


def _compare_products(
    database: duckdb.DuckDBPyConnection, sides: Sides, settings: CompareSettings
) -> list[dict[str, Any]]:
    """Rows of `PRODUCTS`."""
    measure = measure_of(sides.before.model_id, sides.after.model_id)
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


def _draw(
    database: duckdb.DuckDBPyConnection,
    sides: Sides,
    rows: list[dict[str, Any]],
    progress: ProgressCallback,
) -> dict[str, str]:
    """Draw a picture of each of these rows of `PRODUCTS`; their locations by product."""
    pictures: dict[str, str] = {}
    for row in rows:
        location = sides.out.compared(sides.before.name, sides.after.name, row["product"])
        files.write_bytes(location, plots.draw_shift(_shift(database, sides, row)))
        pictures[row["product"]] = location
        progress("pictures", len(pictures), len(rows), 0)
    return pictures


def _shift(database: duckdb.DuckDBPyConnection, sides: Sides, row: Mapping[str, Any]) -> Shift:
    product = row["product"]
    pairs = image_pairs.scores_and_ranks(database, product, plots.POINTS)
    thresholds = sides.after.record.get("thresholds", {})
    same_unit = row["measure"] == "score"
    kind = "score" if same_unit else "rank"
    return Shift(
        product,
        row["measure"],
        before=values_of(database, "a", product),
        after=values_of(database, "b", product),
        pair_kind=kind,
        pairs=(pairs[f"{kind}_a"], pairs[f"{kind}_b"]),
        threshold=thresholds.get(product) if same_unit else None,
        sides=(sides.before.short, sides.after.short),
        title=f"KS {row['ks']:.3f}, PSI {row['psi']:.3f}" if row["ks"] is not None else "",
    )
