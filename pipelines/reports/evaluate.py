"""Evaluating a published score table against labels and masks, per product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import FetchSettings
from ops.errors import UserError
from ops.images.inspection import InspectionMask
from ops.images.resize import InputSettings
from ops.progress import ProgressCallback
from ops.results import metrics
from ops.results.anomaly_map import Scale
from ops.results.metrics import PixelHistogram
from ops.results.plots import PRO_LIMIT, Separation
from ops.results.regions import RegionRules
from ops.storage import parquet
from pipelines.cluster.resources import Resources
from pipelines.reports.labels import Joined, join_labels
from pipelines.reports.part_metrics import part_metrics
from pipelines.reports.pixel_comparison import ComparePixels, ProductPixels, compare_pixels

SCHEMA = pa.schema(
    [
        parquet.column(name, kind, meaning)
        for name, kind, meaning in (
            ("product", pa.string(), "one row each; the last, `mean`, is their unweighted mean"),
            ("good", pa.int64(), "scored images with label 0"),
            ("defective", pa.int64(), "scored images with label 1"),
            ("not_scored", pa.int64(), "labelled images without a score; not part of any metric"),
            ("image_auroc", pa.float64(), "null if there are no good or no defective images"),
            ("image_ap", pa.float64(), "average precision; null if there are no defective images"),
            ("pixel_auroc", pa.float64(), "over all pixels at the size of the maps"),
            (
                "pixel_auroc_error",
                pa.float64(),
                "bound on the error from rounding maps to grey levels",
            ),
            ("pro", pa.float64(), "per-region overlap, area up to a false positive rate of 0.3"),
            ("pro_error", pa.float64(), "bound on the error from rounding maps to grey levels"),
            ("pro_0_05", pa.float64(), "the same area up to a false positive rate of 0.05"),
            ("pro_0_05_error", pa.float64(), "bound on the error from rounding to grey levels"),
            (
                "oracle_threshold",
                pa.float64(),
                "threshold of the best F1 on these labels; too optimistic for use",
            ),
            ("oracle_f1", pa.float64(), "F1 at that threshold"),
            ("oracle_false_alarms", pa.int64(), "good images at or above it"),
            ("oracle_misses", pa.int64(), "defective images below it"),
            ("oracle_errors", pa.int64(), "sum of both"),
            (
                "oracle_pixel_threshold",
                pa.float64(),
                "value of maps from which pixels have the best F1 on these masks",
            ),
            ("oracle_pixel_f1", pa.float64(), "F1 of pixels at that value"),
            (
                "threshold",
                pa.float64(),
                "of the model, from held-out good images; null if it has none",
            ),
            ("false_alarms", pa.int64(), "good images with the verdict anomalous"),
            ("misses", pa.int64(), "defective images with the verdict normal"),
            (
                "pixel_f1",
                pa.float64(),
                "F1 of pixels if those above the model's threshold are called defective",
            ),
            ("pixel_images", pa.int64(), "images that the pixel metrics rest on"),
            (
                "no_usable_mask",
                pa.int64(),
                "defective images not among them: no mask, an empty one, one that does not fit, or "
                "one outside of what is inspected",
            ),
            ("regions", pa.int64(), "connected defects in the masks at the size of the maps"),
            ("regions_drawn", pa.int64(), "the same at full size; resizing may lose or merge some"),
            (
                "region_recall",
                pa.float64(),
                "share of `regions` that a region of the run touches; null without thresholds",
            ),
            (
                "false_regions",
                pa.float64(),
                "regions of the run that touch no defect, for each of the `pixel_images`",
            ),
            ("good_parts", pa.int64(), "parts whose images all have label 0; null without parts"),
            ("defective_parts", pa.int64(), "parts of which an image has label 1"),
            (
                "part_auroc",
                pa.float64(),
                "of parts by the highest score of their images; null if views have own detectors",
            ),
            ("part_ap", pa.float64(), "average precision of parts by that score"),
            (
                "note",
                pa.string(),
                "why pixel metrics are missing, masks that did not fit or turned",
            ),
        )
    ],
    metadata={"nightloupe": "evaluation 5"},
)
#: Columns for which a mean over products is meaningless.
_NO_MEAN = ("oracle_threshold", "oracle_pixel_threshold", "threshold")
#: The false positive rate up to which small defects decide (MVTec AD 2).
_STRICT = 0.05


class NothingLabelled(UserError):
    """No scored image has a label."""


class Evaluation(NamedTuple):
    """The table (`SCHEMA`), the curves to draw of each product, and how labels were joined."""

    table: pa.Table
    separations: list[Separation]
    joined: Joined


def evaluate(
    scored: pa.Table,
    labelled: pa.Table,
    thresholds: Mapping[str, float | None],
    input_settings: InputSettings,
    fetch_settings: FetchSettings,
    resources: Resources,
    progress: ProgressCallback,
    scale: Scale | None = None,
    masks: Mapping[str, InspectionMask] | None = None,
    has_parts: bool = True,
    decided: pa.Table | None = None,
    grown_by: Sequence[str] = (),
    regions: RegionRules = RegionRules(),
) -> Evaluation:
    """Metrics per product of a score table against an inventory's labels.

    Rows of splits `train` and `validation`, and images that the model was `grown_by`, are left out,
    because models are made of them. An image whose version is not labelled is taken with the label
    of its address. `thresholds` are those of the model, and `scale` is that of its maps; without
    it, thresholds of pixels are unknown. Pixels outside of the model's inspection `masks` count for
    no metric of pixels. Parts are rated unless `has_parts` says that their views have detectors of
    their own, with scores of no common unit. What people `decided` of images, as
    `decisions.current` gives it, goes before the labels of the inventory. `regions` are the rules
    by which the run told regions, which need the `scale`.
    Raises NothingLabelled if no labelled image was scored.
    """
    columns = ["image_id", "uri", "product", "status", "score", "is_anomalous", "map_uri"]
    columns += ["width", "height", "content_sha256", "part"]
    rows, joined = join_labels(scored.select(columns), labelled, decided, grown_by)
    if not len(rows):
        raise NothingLabelled(
            "no scored image has a label; take an inventory with --layout or --pattern"
        )
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    compare = ComparePixels(input_settings, fetch_settings, masks or {}, scale, regions)
    pixels = compare_pixels(ok, compare, resources, progress)
    products = sorted(set(rows["product"].to_pylist()) - {None})
    table, separations = [], []
    for product in products:
        of_product = rows.filter(pc.equal(rows["product"], product))
        separation = _separation(product, of_product, thresholds.get(product), pixels.get(product))
        separations.append(separation)
        row = _metrics(separation, of_product, pixels.get(product), scale)
        if has_parts:
            row |= part_metrics(ok.filter(pc.equal(ok["product"], product)))
        table.append(row)
    return Evaluation(pa.Table.from_pylist([*table, _mean(table)], SCHEMA), separations, joined)


def _separation(
    product: str, rows: pa.Table, threshold: float | None, pixels: ProductPixels | None
) -> Separation:
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    labels = ok["label"].to_numpy() == 1
    values = ok["score"].to_numpy()
    histogram = pixels.histogram if pixels else PixelHistogram()
    return Separation(
        product,
        good=values[~labels],
        defective=values[labels],
        threshold=threshold,
        image_roc=metrics.roc(values, labels),
        pixel_roc=histogram.roc(),
        pro=histogram.pro_curve(),
    )


def _metrics(
    separation: Separation, rows: pa.Table, pixels: ProductPixels | None, scale: Scale | None
) -> dict[str, Any]:
    """A product's row of the table."""
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    row: dict[str, Any] = {
        "product": separation.product,
        "good": len(separation.good),
        "defective": len(separation.defective),
        "not_scored": len(rows) - len(ok),
        "image_auroc": separation.image_roc and separation.image_roc.area(),
        "image_ap": metrics.average_precision(ok["score"].to_numpy(), ok["label"].to_numpy() == 1),
        "threshold": separation.threshold,
    }
    row |= _best_f1(ok) | _verdict_errors(ok)
    if pixels is None:
        has_masks = ok["mask_uri"].null_count < len(ok)
        row["note"] = "maps are missing: score with --maps all" if has_masks else "no masks"
        return row
    return row | {
        "pixel_auroc": separation.pixel_roc and separation.pixel_roc.area(),
        "pixel_auroc_error": separation.pixel_roc and separation.pixel_roc.area_error(),
        "pro": separation.pro and separation.pro.area(PRO_LIMIT),
        "pro_error": separation.pro and separation.pro.area_error(PRO_LIMIT),
        "pro_0_05": separation.pro and separation.pro.area(_STRICT),
        "pro_0_05_error": separation.pro and separation.pro.area_error(_STRICT),
        **_pixel_f1(pixels.histogram, separation.threshold, scale),
        "pixel_images": pixels.histogram.images,
        "no_usable_mask": pixels.no_usable_mask,
        "regions": pixels.histogram.regions,
        "regions_drawn": pixels.regions_drawn,
        **_regions(pixels),
        "note": "; ".join(pixels.notes()) or None,
    }


def _regions(pixels: ProductPixels) -> dict[str, Any]:
    """What the regions of a run are worth; empty without a pixel threshold."""
    hit, false, drawn = pixels.regions_hit, pixels.false_regions, pixels.histogram.regions
    if hit is None or false is None:
        return {}
    recall = hit / drawn if drawn else None
    return {"region_recall": recall, "false_regions": false / pixels.histogram.images}


def _pixel_f1(
    histogram: PixelHistogram, threshold: float | None, scale: Scale | None
) -> dict[str, Any]:
    """F1 of pixels at its best, and where the model's threshold for images lies on its maps."""
    best = histogram.best_f1()
    if best is None or scale is None:
        return {"oracle_pixel_f1": best and best.f1}
    own = None if threshold is None else histogram.f1_at(scale.level_above(threshold))
    return {
        "oracle_pixel_threshold": scale.offset + scale.scale * best.level,
        "oracle_pixel_f1": best.f1,
        "pixel_f1": own,
    }


def _best_f1(ok: pa.Table) -> dict[str, Any]:
    best = metrics.best_f1(ok["score"].to_numpy(), ok["label"].to_numpy() == 1)
    if best is None:
        return {}
    errors = best.false_alarms + best.misses
    return {f"oracle_{k}": v for k, v in best._asdict().items()} | {"oracle_errors": errors}


def _verdict_errors(ok: pa.Table) -> dict[str, Any]:
    """Errors of the model's verdicts; empty if it is not calibrated."""
    if ok["is_anomalous"].null_count:
        return {}
    anomalous = ok["is_anomalous"].to_numpy()
    defective = ok["label"].to_numpy() == 1
    return {
        "false_alarms": int((anomalous & ~defective).sum()),
        "misses": int((~anomalous & defective).sum()),
    }


def _mean(products: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Unweighted means of rates, sums of counts; notes which rates lack some products."""
    mean: dict[str, Any] = {"product": "mean"}
    fewer = []
    for field in SCHEMA:
        values = [p[field.name] for p in products if p.get(field.name) is not None]
        if field.name in _NO_MEAN or pa.types.is_string(field.type) or not values:
            continue
        is_count = pa.types.is_integer(field.type)
        mean[field.name] = sum(values) if is_count else float(np.mean(values))
        is_rate = pa.types.is_floating(field.type) and not field.name.endswith("_error")
        if is_rate and len(values) < len(products):
            fewer.append(f"{field.name} {len(values)}")
    if fewer:
        mean["note"] = f"products with a value, of {len(products)}: {', '.join(fewer)}"
    return mean
