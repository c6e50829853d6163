"""A few of a fit's pictures: their sizes, and small copies where their placement matters.

The number of tiles and the detail seen follow from the sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from ops.images.packed_pixels import views
from ops.images.placement import SIDE
from ops.images.read_images import Read
from ops.images.resize import InputSettings, geometry, tiling, unpack
from pipelines.fitting.request import DETECTOR, FitRequest, Split

#: Pictures that are read of each detector's, where their placement matters, and of how many
#: detectors.
_PICTURES, _PLACED, _DETECTORS = 4, 16, 16
#: Seconds in which the pictures of a detector must have been read.
_PATIENCE = 300.0
#: What a product's card records of `Detail`, among the metrics of its fit.
_METRICS = ("picture_width", "picture_height", "pixels_per_pixel_seen", "pixels_per_patch")


class Detail(NamedTuple):
    """What the network sees of a picture."""

    size: tuple[int, int]
    """Width and height of the picture."""
    step: float
    """The longest side of a pixel that is seen, in pixels of the picture."""
    patch: float
    """The longest side of a patch, in pixels of the picture."""

    def as_metrics(self) -> dict[str, float]:
        """By name, as the card of a product records it."""
        return dict(zip(_METRICS, (*self.size, self.step, self.patch), strict=True))

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> Detail | None:
        """The inverse of `as_metrics`; None where they are not among the metrics."""
        if not set(_METRICS) <= set(metrics):
            return None
        width, height, step, patch = (metrics[name] for name in _METRICS)
        return cls((int(width), int(height)), step, patch)


@dataclass(frozen=True)
class PictureSizes:
    """Width and height of a few pictures of some detectors."""

    by_detector: Mapping[str, list[tuple[int, int]]]
    small: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Grey pictures (n, SIDE, SIDE) by detector, where their placement matters."""

    @property
    def all(self) -> list[tuple[int, int]]:
        """The sizes of all detectors."""
        return [size for sizes in self.by_detector.values() for size in sizes]

    @property
    def medians(self) -> dict[str, tuple[int, int]]:
        """Median width and height by detector; of those whose pictures were read."""
        return {
            detector: (_median([w for w, _ in sizes]), _median([h for _, h in sizes]))
            for detector, sizes in self.by_detector.items()
            if sizes
        }

    def of(self, detector: str) -> list[tuple[int, int]]:
        """The sizes of a detector's pictures; of all detectors, if none of its own was read."""
        return self.by_detector.get(detector) or self.all

    def tiles(self, detector: str, request: FitRequest) -> float:
        """The mean number of tiles of a picture; 1 without tiles."""
        sizes = self.of(detector)
        if not request.input.tiled or not sizes:
            return 1.0
        return sum(tiling(*size, request.input).total for size in sizes) / len(sizes)

    def coarsest(self, request: FitRequest, patches: int) -> Detail | None:
        """The picture of which the least is seen, if one was read.

        `patches`: patches along the width of the input.
        """
        return coarsest(self.all, request.input, patches)


def coarsest(
    sizes: Iterable[tuple[int, int]], settings: InputSettings, patches: int
) -> Detail | None:
    """The picture, of some of these widths and heights, of which the least is seen.

    `patches`: patches along the width of the input.
    """
    steps = [(_step(size, settings), size) for size in sizes]
    if not steps:
        return None
    step, size = max(steps)
    return Detail(size, step, step * settings.sides[0] / patches)


def _median(lengths: list[int]) -> int:
    return sorted(lengths)[len(lengths) // 2]


def _step(size: tuple[int, int], settings: InputSettings) -> float:
    """The longest side of a pixel that is seen, in pixels of a picture of this size."""
    return max(pixel_seen(size, settings))


def pixel_seen(size: tuple[int, int], settings: InputSettings) -> tuple[float, float]:
    """Width and height of a pixel that is seen, in pixels of a picture of this size."""
    if settings.tiled:
        return 1 / settings.scale, 1 / settings.scale
    return geometry(*size, settings)[:2]


class Sample(NamedTuple):
    """A picture that was read: its size, and its pixels (side, side, channels) in 8 bits."""

    width: int
    height: int
    pixels: npt.NDArray[np.uint8]


def samples_of(read: pa.Table, side: int) -> Iterator[Sample]:
    """The good ones of some rows that were read as squares with this side."""
    described = read.select(["status", "width", "height", "channels", "bit_depth"]).to_pylist()
    for row, packed in zip(described, views(read["pixels"]), strict=True):
        if row["status"] == "ok":
            depth = row["bit_depth"]
            pixels = unpack(packed, row["channels"], depth, (side, side))
            eight_bits = (pixels / (2**depth - 1) * 255).astype(np.uint8)
            yield Sample(row["width"], row["height"], eight_bits)


def read_sizes(chosen: Split, request: FitRequest, placed: bool = False) -> PictureSizes:
    """Read a few pictures, evenly chosen; those that cannot be read are left out.

    `placed`: the placement of pictures matters, so more of them are read, and kept small.
    """
    side, chosen_rows = _plan(chosen, placed)
    return _of({name: _samples(rows, request, side) for name, rows in chosen_rows.items()}, placed)


def read_sizes_apart(chosen: Split, request: FitRequest, placed: bool = False) -> PictureSizes:
    """As `read_sizes`, in processes of a cluster, as a picture may crash the one that reads it.

    Pictures that crash a process, or that take longer than `_PATIENCE`, are left out.
    """
    side, chosen_rows = _plan(chosen, placed)
    return _of(
        {name: _samples_apart(rows, request, side) for name, rows in chosen_rows.items()}, placed
    )


def _of(samples: Mapping[str, list[Sample]], placed: bool) -> PictureSizes:
    sizes = {name: [(one.width, one.height) for one in found] for name, found in samples.items()}
    small = {
        name: np.stack([one.pixels.mean(axis=2).astype(np.uint8) for one in found])
        for name, found in samples.items()
        if placed and found
    }
    return PictureSizes(sizes, small)


def _samples(rows: pa.Table, request: FitRequest, side: int) -> list[Sample]:
    # As small squares: nothing else of them is kept.
    tiny = replace(request.input, fit="squash", size=side, exposure="as_is")
    return list(samples_of(Read(tiny, request.decode, request.fetch)(rows), side))


def _samples_apart(rows: pa.Table, request: FitRequest, side: int) -> list[Sample]:
    # Without a CPU of its own, so that it need not wait for other jobs to end.
    task = ray.remote(num_cpus=0, max_retries=0)(_samples).remote(rows, request, side)
    try:
        found: list[Sample] = ray.get(task, timeout=_PATIENCE)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        return []
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        if len(rows) == 1:
            return []
        halves = rows.slice(0, len(rows) // 2), rows.slice(len(rows) // 2)
        return [one for half in halves for one in _samples_apart(half, request, side)]
    return found


def _plan(chosen: Split, placed: bool) -> tuple[int, dict[str, pa.Table]]:
    """The side of the squares to read, and the rows of a few pictures of some detectors."""
    count, side = (_PLACED, SIDE) if placed else (_PICTURES, 1)
    samples, names = {}, chosen.detectors
    for detector in names[:: -(-len(names) // _DETECTORS) or 1]:
        rows = chosen.fit.filter(pc.equal(chosen.fit[DETECTOR], detector))
        samples[detector] = rows.take(list(range(0, len(rows), -(-len(rows) // count))))
    return side, samples
