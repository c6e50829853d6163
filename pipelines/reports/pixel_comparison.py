"""Comparing anomaly maps with masks, pixel by pixel, on a Ray cluster."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from ops.archives.fetch import FetchSettings, fetch
from ops.failure import Failure
from ops.images.decode import DecodeSettings, Pixels, decode
from ops.images.inspection import InspectionMask
from ops.images.orientation import UPRIGHT, orientation, upright
from ops.images.resize import InputSettings, binarise, geometry, map_size, resize_mask
from ops.progress import ProgressCallback
from ops.results import map_png, metrics
from ops.results.anomaly_map import Scale
from ops.results.metrics import PixelHistogram, RegionHits
from ops.results.regions import RegionRules
from pipelines.cluster.resources import Resources


@dataclass
class ProductPixels:
    """The map values of one product's images, by what their masks say."""

    histogram: PixelHistogram = field(default_factory=PixelHistogram)
    no_usable_mask: int = 0
    """Defective images without a mask, or with one that is empty at the size of the maps."""
    regions_drawn: int = 0
    """Connected defects of the masks at full size."""
    regions_hit: int | None = None
    """Defects of `histogram.regions` that a region of the map touches; None without thresholds."""
    false_regions: int | None = None
    """Regions of maps that touch no defect."""
    turned: int = 0
    """Masks that were turned like their pictures, as EXIF says."""
    either_way: int = 0
    """Masks of turned pictures that fit turned and as they are; they are taken as they are."""
    misfits: int = 0
    """Masks and maps that do not fit their pictures; their images have no usable mask."""
    example: str = ""
    """The first misfit."""
    unreadable: int = 0
    """Masks that cannot be read; their images have no usable mask."""
    reason: str = ""
    """Why the first of them cannot be read."""

    def notes(self) -> list[str]:
        """What people must know about the masks, a sentence each."""
        notes = []
        if self.unreadable:
            notes.append(f"{self.unreadable} masks cannot be read: {self.reason}")
        if self.misfits:
            notes.append(f"{self.misfits} masks or maps do not fit their pictures: {self.example}")
        if self.turned:
            notes.append(
                f"{self.turned} masks were turned by the EXIF orientation of their pictures"
            )
        if self.either_way:
            notes.append(
                f"{self.either_way} masks belong to pictures with an EXIF orientation and fit both "
                "ways; they are taken as drawn on the upright picture"
            )
        return notes

    @property
    def images(self) -> int:
        """Number of images, those without a usable mask included."""
        return self.histogram.images + self.no_usable_mask

    def merge(self, other: ProductPixels) -> None:
        """Add the images of another batch."""
        self.histogram.merge(other.histogram)
        self.no_usable_mask += other.no_usable_mask
        self.regions_drawn += other.regions_drawn
        self.add_regions(other.regions_hit, other.false_regions)
        self.turned += other.turned
        self.either_way += other.either_way
        self.misfits += other.misfits
        self.example = self.example or other.example
        self.unreadable += other.unreadable
        self.reason = self.reason or other.reason

    def add_regions(self, hit: int | None, false: int | None) -> None:
        """Add counts of regions, if they are known."""
        if hit is not None and false is not None:
            self.regions_hit = (self.regions_hit or 0) + hit
            self.false_regions = (self.false_regions or 0) + false


#: Masks are decoded in one way whatever the model's settings: files of one page, integers on the
#: scale of their own file, 16 bits where that has none, floating point from 0 to 1.
_MASK_DECODING = DecodeSettings(bit_depth=16, range="0,1")


class Join(Enum):
    """How a mask was laid over its picture."""

    AS_IS = "as it is"
    TURNED = "turned"
    EITHER_WAY = "as it is, and would fit turned"


class Misfit(Exception):
    """A mask or a map has another shape than its picture."""


class _MapAndMask(NamedTuple):
    levels: npt.NDArray[np.uint16] | None
    mask: npt.NDArray[np.bool_] | None
    """None if there is no usable mask."""
    regions_drawn: int
    join: Join = Join.AS_IS
    misfit: str = ""
    unreadable: str = ""
    inside: npt.NDArray[np.bool_] | None = None
    """The pixels of the map that are inspected; None if all are."""
    regions: RegionHits | None = None
    """None without a pixel threshold."""


_NO_MASK = _MapAndMask(None, None, 0)


@dataclass(frozen=True)
class ComparePixels:
    """Reads the maps and masks of a batch of rows."""

    input: InputSettings
    fetch: FetchSettings
    masks: Mapping[str, InspectionMask] = field(default_factory=dict)
    """Inspection masks by detector; pixels outside count neither as good nor as defective."""
    scale: Scale | None = None
    """That of the maps; without it no region is looked for."""
    regions: RegionRules = field(default_factory=RegionRules)
    """The pixel threshold of each detector, and the smallest area of a region."""

    def __call__(self, rows: pa.Table) -> dict[str, ProductPixels]:
        """Pixels by product. A good image needs no mask; a defective image needs its own."""
        by_product: dict[str, ProductPixels] = {}
        with ThreadPoolExecutor(8) as pool:
            pairs = pool.map(self._read, rows.to_pylist())
            for product, pair in zip(rows["product"].to_pylist(), pairs, strict=True):
                pixels = by_product.setdefault(product, ProductPixels())
                pixels.regions_drawn += pair.regions_drawn
                pixels.turned += pair.join is Join.TURNED
                pixels.either_way += pair.join is Join.EITHER_WAY
                pixels.misfits += bool(pair.misfit)
                pixels.example = pixels.example or pair.misfit
                pixels.unreadable += bool(pair.unreadable)
                pixels.reason = pixels.reason or pair.unreadable
                if pair.levels is None or pair.mask is None:
                    pixels.no_usable_mask += 1
                else:
                    pixels.histogram.add(pair.levels, pair.mask, pair.inside)
                    pixels.add_regions(*(pair.regions or (None, None)))
        return by_product

    def _read(self, row: dict[str, Any]) -> _MapAndMask:
        if row["label"] and not row["mask_uri"]:
            return _NO_MASK
        levels = map_png.decode(fetch(row["map_uri"], None, None, self.fetch)).levels
        width, height = map_size(row["width"], row["height"], self.input)
        if levels.shape != (height, width):
            return _NO_MASK._replace(
                misfit=f"the map {row['map_uri']} has {levels.shape[1]} x {levels.shape[0]} px, "
                f"not the {width} x {height} of the model's input"
            )
        inspected = self.masks.get(row["product"])
        inside = inspected.on_map(row["width"], row["height"], self.input) if inspected else None
        if not row["label"]:
            none = np.zeros(levels.shape, dtype=bool)
            return _MapAndMask(
                levels, none, 0, inside=inside, regions=self._regions(levels, none, row)
            )
        try:
            mask = decode(fetch(row["mask_uri"], None, None, self.fetch), _MASK_DECODING)
            pixels, join = self._fitted(mask.pixels, row)
        except Failure as failure:
            return _NO_MASK._replace(unreadable=f"{row['mask_uri']}: {failure}")
        except Misfit as misfit:
            return _NO_MASK._replace(misfit=str(misfit))
        drawn, resized = binarise(pixels), resize_mask(pixels, self.input)
        if inspected and inside is not None:
            drawn = drawn & inspected.rows((row["width"], row["height"]), 0, row["height"])
            resized = resized & inside
        regions_drawn = metrics.count_regions(drawn)
        usable = resized if resized.any() else None
        regions = self._regions(levels, resized, row)
        return _MapAndMask(levels, usable, regions_drawn, join, inside=inside, regions=regions)

    def _regions(
        self, levels: npt.NDArray[np.uint16], mask: npt.NDArray[np.bool_], row: dict[str, Any]
    ) -> RegionHits | None:
        """How the regions of a map lie to those of a mask of its size."""
        threshold = self.regions.thresholds.get(row["product"])
        if threshold is None or self.scale is None:
            return None
        where = geometry(row["width"], row["height"], self.input)
        least = self.regions.min_area / (where.step_x * where.step_y)
        return metrics.compare_regions(levels >= self.scale.level_above(threshold), mask, least)

    def _fitted(self, mask: Pixels, row: dict[str, Any]) -> tuple[Pixels, Join]:
        """A mask (H, W[, 3]) in the shape of its upright picture. Raises Misfit, or a Failure.

        Whoever drew it saw the picture upright, or as it is stored: the shapes tell which.
        """
        shape = (row["height"], row["width"])
        how = UPRIGHT  # a mask of an unreadable or replaced picture still fits if it is upright
        with contextlib.suppress(Failure):
            data = fetch(row["uri"], row["member"], row["bytes"], self.fetch)
            if hashlib.sha256(data).hexdigest() == row["content_sha256"]:
                how = orientation(data)
        as_seen = np.ascontiguousarray(upright(mask, how))
        if mask.shape[:2] == shape:
            either = how != UPRIGHT and as_seen.shape[:2] == shape
            return mask, Join.EITHER_WAY if either else Join.AS_IS
        if as_seen.shape[:2] == shape:
            return as_seen, Join.TURNED
        height, width = mask.shape[:2]
        raise Misfit(
            f"the mask {row['mask_uri']} has {width} x {height} px, its picture "
            f"{row['width']} x {row['height']}; a mask must have the size of its picture"
        )


@ray.remote
def _compare(compare: ComparePixels, rows: pa.Table) -> dict[str, ProductPixels]:
    return compare(rows)


def compare_pixels(
    ok: pa.Table, compare: ComparePixels, resources: Resources, progress: ProgressCallback
) -> dict[str, ProductPixels]:
    """Pixels of the products that have masks, and a map of every image.

    Products with some maps only are left out, because their metrics would be biased. `ok` are
    scored rows with label and mask.
    """
    rows = _rows_with_maps(ok)
    by_product: dict[str, ProductPixels] = {}
    done = 0
    for batch in _compare_batches(rows, compare, resources):
        for product, pixels in batch.items():
            by_product.setdefault(product, ProductPixels()).merge(pixels)
            done += pixels.images
        progress("pixels", done, len(rows), 0)
    return by_product


def _rows_with_maps(ok: pa.Table) -> pa.Table:
    without_map = set(ok.filter(pc.is_null(ok["map_uri"]))["product"].to_pylist())
    with_mask = set(ok.filter(pc.is_valid(ok["mask_uri"]))["product"].to_pylist())
    products = pa.array(sorted(with_mask - without_map), pa.string())
    return ok.filter(pc.is_in(ok["product"], products)).sort_by("product")


def _compare_batches(
    rows: pa.Table, compare: ComparePixels, resources: Resources
) -> Iterator[dict[str, ProductPixels]]:
    task: Any = _compare.options(num_cpus=resources.reader_cpus)
    size = max(64, -(-len(rows) // 1000))
    waiting = [task.remote(compare, rows.slice(i, size)) for i in range(0, len(rows), size)]
    while waiting:
        ready, waiting = ray.wait(waiting)
        yield ray.get(ready[0])
