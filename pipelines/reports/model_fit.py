"""Warnings that a model does not fit what it scores: calls, sizes, depths and products.

They need no earlier night: a model promises a false-alarm rate, and its card tells the sizes and
depths of the images that it was made from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from ops.archives.inventory import Inventory
from ops.archives.layouts import composed
from ops.archives.views import detector_names, detector_sql
from ops.detectors.model_card import ModelCard, ProductCard
from ops.results.drift import chance_of_flagged
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.tables.database import load, opened

#: Significance level of the tests, divided by the number of products.
_SIGNIFICANCE = 0.01
_NAMED = 10  # products that are named
#: Share of images of an unknown size or depth, beyond chance, that is worth a warning.
_OTHER_SHARE = 0.1
_COUNTS = """
    SELECT {detector}, width, height, bit_depth, count(*), count(*) FILTER (is_anomalous)
    FROM run WHERE status = 'ok' GROUP BY ALL
"""
_UNITS = """
    SELECT {detector}, count(DISTINCT part) + count(*) FILTER (part IS NULL)
    FROM run WHERE status = 'ok' GROUP BY ALL
"""


@dataclass
class ProductCounts:
    """Scored images of one product in a run."""

    images: int = 0
    anomalous: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    """Number of images by `WIDTHxHEIGHT`."""
    depths: Counter[str] = field(default_factory=Counter)
    """Number of images by bit depth."""
    units: int = 0
    """Number of parts, and of images of no part."""


def of_run(out: Out, record: Mapping[str, Any], card: ModelCard, limit: float) -> list[str]:
    """Warnings about a finished run, given its record and the card of its model.

    `limit` is the share of a product's images that may be anomalous beyond the promised rate.
    """
    table = out.table(str(record["night"]), str(record["run_id"]))
    columns = ("product", "part", "view", "status", "width", "height", "bit_depth", "is_anomalous")
    counts: dict[str, ProductCounts] = {}
    with opened() as database:
        load(database, "run", table, columns)
        name = detector_sql(card.views)
        found = database.sql(_COUNTS.format(detector=name)).fetchall()
        for detector, width, height, depth, images, anomalous in found:
            of_product = counts.setdefault(composed(detector), ProductCounts())
            of_product.images += images
            of_product.anomalous += anomalous
            of_product.sizes[f"{width}x{height}"] += images
            of_product.depths[str(depth)] += images
        for detector, units in database.sql(_UNITS.format(detector=name)).fetchall():
            counts[composed(detector)].units += units
    return find_misfits(counts, card, record["false_alarm_rates"], limit)


def find_misfits(
    counts: Mapping[str, ProductCounts],
    card: ModelCard,
    rates: Mapping[str, float],
    limit: float,
) -> list[str]:
    """A sentence for each product whose calls, sizes or depths are not those that it was made for.

    A share that chance may explain gives none. Calls come first, the largest shares first.
    """
    known = {name: each for name, each in counts.items() if name in card.products and each.images}
    level = _SIGNIFICANCE / max(1, len(known)) - 1e-9  # absorbs rounding
    ordered = sorted(known.items(), key=lambda item: -item[1].anomalous / item[1].images)
    return [
        *_shortened(
            (
                _calls(name, each, card.products[name], rates[name], limit, level)
                for name, each in ordered
            ),
            "have more anomalous images than their calibration promises",
        ),
        *_shortened(
            (_sizes(name, each, card.products[name], level) for name, each in ordered),
            "have images of other sizes than those that calibrated the model",
        ),
        *_shortened(
            (_depths(name, each, card.products[name]) for name, each in ordered),
            "have images of other bit depths than those of the fit",
        ),
    ]


def _shortened(sentences: Iterable[str], of_the_rest: str) -> list[str]:
    """The sentences that are not empty; one sentence stands for those of too many products."""
    found = list(filter(None, sentences))
    if len(found) <= _NAMED:
        return found
    return [*found[:_NAMED], f"{len(found) - _NAMED:,} more products {of_the_rest}"]


def _calls(
    name: str, counts: ProductCounts, card: ProductCard, rate: float, limit: float, level: float
) -> str:
    """Empty unless more images are anomalous than was promised, by a margin and beyond chance."""
    promised, share = card.calibration.promised_rate(rate), counts.anomalous / counts.images
    if promised is None or share <= promised + limit:
        return ""
    held_out = len(card.calibration.scores)
    # Images of a part are called alike: as evidence they count together, as when calibrated.
    flagged = counts.anomalous * counts.units // counts.images
    if chance_of_flagged(flagged, counts.units, promised, held_out) >= level:
        return ""
    return (
        f"{counts.anomalous:,} of {counts.images:,} images of {name!r} ({share:.0%}) are called "
        f"anomalous, and calibration promises {promised:.2%} of good images on average: is it "
        "another model, light, lens or camera? Or did the fit see several images of a part whose "
        "paths do not name it ({part})? Look at the images before you trust the verdicts"
    )


def _sizes(name: str, counts: ProductCounts, card: ProductCard, level: float) -> str:
    """Empty unless more images have a new size than the variety of known sizes lets expect."""
    if not card.sizes:
        return ""
    other = {size: images for size, images in counts.sizes.items() if size not in card.sizes}
    share, seen = sum(other.values()) / counts.images, sum(card.sizes.values())
    once = sum(images == 1 for images in card.sizes.values())
    # Good and Turing: the share of unseen sizes is that of sizes which were seen once.
    expected = (once + 1) / (seen + 1)
    if share <= min(expected, 1) + _OTHER_SHARE:
        return ""
    if chance_of_flagged(sum(other.values()), counts.images, expected, seen) >= level:
        return ""
    example, usual = _most_frequent(other), _most_frequent(card.sizes)
    return (
        f"{sum(other.values()):,} of {counts.images:,} images of {name!r} have other sizes than "
        f"those that calibrated the model, such as {_pixels(example)} instead of {_pixels(usual)} "
        "pixels: is it another camera or another cut?"
    )


def _depths(name: str, counts: ProductCounts, card: ProductCard) -> str:
    """Empty unless many images have a bit depth of which the fit had none."""
    if not card.bit_depths:
        return ""
    other = {bits: images for bits, images in counts.depths.items() if bits not in card.bit_depths}
    if sum(other.values()) <= _OTHER_SHARE * counts.images:
        return ""
    fitted = ", ".join(sorted(card.bit_depths, key=int))
    return (
        f"{sum(other.values()):,} of {counts.images:,} images of {name!r} have "
        f"{_most_frequent(other)} bits, and the model was fitted on images of {fitted} bits"
    )


def _most_frequent(counts: Mapping[str, int]) -> str:
    return min(counts, key=lambda name: (-counts[name], name))


def _pixels(size: str) -> str:
    return size.replace("x", " x ")


def unknown_products(inventory: Inventory, card: ModelCard) -> str:
    """A sentence about images of products that a model does not know; empty if there is none.

    Reads two columns of the inventory, and nothing of the archive.
    """
    images: Counter[str] = Counter()
    with parquet.opened(inventory.location) as table:
        for batch in table.iter_batches(2**20, columns=["product", "view"]):
            rows = pa.Table.from_batches([batch])
            for entry in detector_names(rows, card.views).value_counts().to_pylist():
                if entry["values"] is not None:
                    images[composed(entry["values"])] += entry["counts"]
    unknown = Counter({name: n for name, n in images.items() if name not in card.products})
    if not unknown:
        return ""
    worst = _most_frequent(unknown)
    similar = get_close_matches(worst, card.products, 1)
    hint = f" (did you mean {similar[0]!r}?)" if similar else ""
    known = ", ".join(map(repr, sorted(card.products)[:_NAMED]))
    more = len(card.products) - _NAMED
    return (
        f"the model has no detector for {len(unknown):,} of {len(images):,} products, such as "
        f"{worst!r}{hint}: {unknown.total():,} images will have no score. It knows {known}"
        + (f" and {more:,} more" if more > 0 else "")
        + "; correct --pattern or --product, or fit the products"
    )
