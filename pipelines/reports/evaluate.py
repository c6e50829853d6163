"""Evaluating: a published score table against labels and masks, per product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from ops.errors import UserError
from ops.images.decode import DecodeSettings, decode
from ops.images.failure import Failure
from ops.images.fetch import FetchSettings, fetch
from ops.images.resize import InputSettings, binarise, resize_mask
from ops.progress import ProgressCallback
from ops.results import anomaly_map, metrics
from ops.results.metrics import PixelHistogram
from ops.results.plots import PRO_LIMIT, Separation
from ops.storage import parquet
from pipelines.cluster.resources import Resources

SCHEMA = pa.schema(
    [
        parquet.column(name, kind, meaning)
        for name, kind, meaning in (
            ("product", pa.string(), "one row each; the last, `mean`, is their unweighted mean"),
            ("good", pa.int64(), "scored images with label 0"),
            ("defective", pa.int64(), "scored images with label 1"),
            ("not_scored", pa.int64(), "labelled images without a score; in no figure here"),
            ("image_auroc", pa.float64(), "null if one of the two kinds is missing"),
            ("pixel_auroc", pa.float64(), "over all pixels at the size of the maps"),
            (
                "pixel_auroc_error",
                pa.float64(),
                "rounding maps to grey levels changed at most this",
            ),
            ("pro", pa.float64(), "per-region overlap, area up to a false positive rate of 0.3"),
            ("pro_error", pa.float64(), "rounding maps to grey levels changed at most this"),
            ("oracle_threshold", pa.float64(), "F1-optimal on these labels, so never for use"),
            ("oracle_f1", pa.float64(), "F1 at it"),
            ("oracle_false_alarms", pa.int64(), "good images at or above it"),
            ("oracle_misses", pa.int64(), "defective images below it"),
            ("oracle_errors", pa.int64(), "false alarms and misses at it"),
            ("threshold", pa.float64(), "the model's own, from held-out good images; null: none"),
            ("false_alarms", pa.int64(), "good images that the model called anomalous"),
            ("misses", pa.int64(), "defective images that it did not"),
            ("pixel_images", pa.int64(), "images that the pixel figures rest on"),
            ("no_usable_mask", pa.int64(), "defective images left out there: no mask, or empty"),
            ("regions", pa.int64(), "connected defects in the masks at the size of the maps"),
            ("regions_drawn", pa.int64(), "the same at full size: what shrinking lost or merged"),
            ("note", pa.string(), "why pixel figures are missing, if they are"),
        )
    ],
    metadata={"nightloupe": "evaluation 2"},
)
#: What a mean over products would mean nothing for.
_NO_MEAN = ("oracle_threshold", "threshold")


class NothingLabelled(UserError):
    """No scored image has a label."""


class Evaluation(NamedTuple):
    """The table (`SCHEMA`), and what there is to draw of each product."""

    table: pa.Table
    separations: list[Separation]


@dataclass
class _Pixels:
    histogram: PixelHistogram
    unusable: int = 0
    regions_drawn: int = 0


@dataclass(frozen=True)
class ComparePixels:
    """Reads maps and masks of some rows into one histogram per product."""

    input: InputSettings
    fetch: FetchSettings

    def __call__(self, rows: pa.Table) -> dict[str, _Pixels]:
        """Histograms by product. A good image has an empty mask; a defective one needs its own."""
        found: dict[str, _Pixels] = {}
        with ThreadPoolExecutor(8) as pool:
            pairs = pool.map(self._read, rows.to_pylist())
            for product, pair in zip(rows["product"].to_pylist(), pairs, strict=True):
                pixels = found.setdefault(product, _Pixels(PixelHistogram()))
                levels, mask, drawn = pair
                pixels.regions_drawn += drawn
                if mask is None:
                    pixels.unusable += 1
                else:
                    pixels.histogram.add(levels, mask)
        return found

    def _read(self, row: dict[str, Any]) -> tuple[Any, Any, int]:
        """Map, mask (None if it is of no use), and connected defects of the mask as drawn."""
        if row["label"] and not row["mask_uri"]:
            return None, None, 0
        levels = anomaly_map.decode(fetch(row["map_uri"], None, None, self.fetch)).levels
        if not row["label"]:
            return levels, np.zeros(levels.shape, dtype=bool), 0
        try:
            mask = decode(fetch(row["mask_uri"], None, None, self.fetch), DecodeSettings())
        except Failure:
            return None, None, 0
        drawn = metrics.count_regions(binarise(mask.pixels))
        shrunk = resize_mask(mask.pixels, self.input)
        return levels, shrunk if shrunk.any() else None, drawn


def evaluate(
    scored: pa.Table,
    labelled: pa.Table,
    thresholds: Mapping[str, float | None],
    input_settings: InputSettings,
    fetch_settings: FetchSettings,
    resources: Resources,
    watch: ProgressCallback,
) -> Evaluation:
    """Metrics per product of a score table against an inventory's labels.

    Rows of split `train` are left out: a detector has seen them. `thresholds` are the model's.
    Raises NothingLabelled if no labelled image was scored.
    """
    test = labelled.filter(pc.is_valid(labelled["label"]))
    test = test.filter(pc.fill_null(pc.not_equal(test["split"], "train"), True))
    columns = ["image_id", "product", "status", "score", "is_anomalous", "map_uri"]
    scored = scored.select(columns)
    rows = scored.join(
        test.select(["image_id", "label", "mask_uri"]), "image_id", join_type="inner"
    )
    if not len(rows):
        raise NothingLabelled(
            "no scored image has a label; take an inventory with --layout or --pattern"
        )
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    pixels = _pixels(ok, ComparePixels(input_settings, fetch_settings), resources, watch)
    products = sorted(set(rows["product"].to_pylist()) - {None})
    found, separations = [], []
    for product in products:
        mine = rows.filter(pc.equal(rows["product"], product))
        seen = _separation(product, mine, thresholds.get(product), pixels.get(product))
        separations.append(seen)
        found.append(_figures(seen, mine, pixels.get(product)))
    return Evaluation(pa.Table.from_pylist([*found, _mean(found)], SCHEMA), separations)


@ray.remote
def _compare(compare: ComparePixels, rows: pa.Table) -> dict[str, _Pixels]:
    return compare(rows)


def _pixels(
    ok: pa.Table, compare: ComparePixels, resources: Resources, watch: ProgressCallback
) -> dict[str, _Pixels]:
    """Pixel histograms of the products all of whose images have maps: no figure on a selection."""
    without = set(ok.filter(pc.is_null(ok["map_uri"]))["product"].to_pylist())
    masked = set(ok.filter(pc.is_valid(ok["mask_uri"]))["product"].to_pylist())
    wanted = sorted(masked - without)
    rows = ok.filter(pc.is_in(ok["product"], pa.array(wanted, pa.string())))
    rows = rows.sort_by("product")
    task: Any = _compare.options(num_cpus=resources.reader_cpus)
    step = max(64, -(-len(rows) // 1000))
    waiting = [task.remote(compare, rows.slice(i, step)) for i in range(0, len(rows), step)]
    found: dict[str, _Pixels] = {}
    done = 0
    while waiting:
        ready, waiting = ray.wait(waiting)
        for product, pixels in ray.get(ready[0]).items():
            mine = found.setdefault(product, _Pixels(PixelHistogram()))
            mine.histogram.merge(pixels.histogram)
            mine.unusable += pixels.unusable
            mine.regions_drawn += pixels.regions_drawn
            done += pixels.histogram.images + pixels.unusable
        watch("pixels", done, len(rows), 0)
    return found


def _separation(
    product: str, rows: pa.Table, threshold: float | None, pixels: _Pixels | None
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


def _figures(seen: Separation, rows: pa.Table, pixels: _Pixels | None) -> dict[str, Any]:
    """A product's row of the table."""
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    out: dict[str, Any] = {
        "product": seen.product,
        "good": len(seen.good),
        "defective": len(seen.defective),
        "not_scored": len(rows) - len(ok),
        "image_auroc": seen.image_roc and seen.image_roc.area(),
        "threshold": seen.threshold,
    }
    out |= _oracle(ok) | _calls(ok)
    if pixels is None:
        masked = ok["mask_uri"].null_count < len(ok)
        out["note"] = "maps are missing: score --maps all" if masked else "no masks"
        return out
    return out | {
        "pixel_auroc": seen.pixel_roc and seen.pixel_roc.area(),
        "pixel_auroc_error": seen.pixel_roc and seen.pixel_roc.area_error(),
        "pro": seen.pro and seen.pro.area(PRO_LIMIT),
        "pro_error": seen.pro and seen.pro.area_error(PRO_LIMIT),
        "pixel_images": pixels.histogram.images,
        "no_usable_mask": pixels.unusable,
        "regions": pixels.histogram.regions,
        "regions_drawn": pixels.regions_drawn,
    }


def _oracle(ok: pa.Table) -> dict[str, Any]:
    best = metrics.best_f1(ok["score"].to_numpy(), ok["label"].to_numpy() == 1)
    if best is None:
        return {}
    errors = best.false_alarms + best.misses
    return {f"oracle_{k}": v for k, v in best._asdict().items()} | {"oracle_errors": errors}


def _calls(ok: pa.Table) -> dict[str, Any]:
    """Errors of what the model called anomalous; nothing if it was not calibrated."""
    if ok["is_anomalous"].null_count:
        return {}
    called = ok["is_anomalous"].to_numpy()
    bad = ok["label"].to_numpy() == 1
    return {"false_alarms": int((called & ~bad).sum()), "misses": int((~called & bad).sum())}


def _mean(products: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Unweighted means of rates, sums of counts; what rests on fewer products is noted."""
    out: dict[str, Any] = {"product": "mean"}
    fewer = []
    for field in SCHEMA:
        values = [p[field.name] for p in products if p.get(field.name) is not None]
        if field.name in _NO_MEAN or pa.types.is_string(field.type) or not values:
            continue
        out[field.name] = sum(values) if pa.types.is_integer(field.type) else float(np.mean(values))
        rate = pa.types.is_floating(field.type) and not field.name.endswith("_error")
        if rate and len(values) < len(products):
            fewer.append(f"{field.name} {len(values)}")
    if fewer:
        out["note"] = f"of {len(products)} products only these count: {', '.join(fewer)}"
    return out
