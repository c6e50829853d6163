"""Sizes of a few of a fit's pictures, from which the number of tiles and the detail seen follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray

from ops.images.read_images import Read
from ops.images.resize import InputSettings, geometry, tiling
from pipelines.fitting.request import DETECTOR, FitRequest, Split

#: Pictures that are read of each detector's, and of how many detectors.
_PICTURES, _DETECTORS = 4, 16
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
    if settings.tiled:
        return 1 / settings.scale
    return max(geometry(*size, settings)[:2])


def read_sizes(chosen: Split, request: FitRequest) -> PictureSizes:
    """Read a few pictures, evenly chosen; those that cannot be read are left out."""
    return PictureSizes(
        {detector: _sizes(rows, request) for detector, rows in _samples(chosen).items()}
    )


def read_sizes_apart(chosen: Split, request: FitRequest) -> PictureSizes:
    """As `read_sizes`, in processes of a cluster, as a picture may crash the one that reads it.

    Pictures that crash a process, or that take longer than `_PATIENCE`, are left out.
    """
    return PictureSizes(
        {detector: _sizes_apart(rows, request) for detector, rows in _samples(chosen).items()}
    )


def _sizes(rows: pa.Table, request: FitRequest) -> list[tuple[int, int]]:
    # As squares of one pixel: nothing else of them is kept.
    tiny = replace(request.input, fit="squash", size=1, exposure="as_is")
    done = Read(tiny, request.decode, request.fetch)(rows)
    sizes = zip(done["width"].to_pylist(), done["height"].to_pylist(), strict=True)
    return [size for size in sizes if size[0] is not None]


def _sizes_apart(rows: pa.Table, request: FitRequest) -> list[tuple[int, int]]:
    # Without a CPU of its own, so that it need not wait for other jobs to end.
    task = ray.remote(num_cpus=0, max_retries=0)(_sizes).remote(rows, request)
    try:
        found: list[tuple[int, int]] = ray.get(task, timeout=_PATIENCE)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        return []
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        if len(rows) == 1:
            return []
        halves = rows.slice(0, len(rows) // 2), rows.slice(len(rows) // 2)
        return [size for half in halves for size in _sizes_apart(half, request)]
    return found


def _samples(chosen: Split) -> dict[str, pa.Table]:
    """The rows of a few pictures of some detectors, by detector."""
    samples, names = {}, chosen.detectors
    for detector in names[:: -(-len(names) // _DETECTORS) or 1]:
        rows = chosen.fit.filter(pc.equal(chosen.fit[DETECTOR], detector))
        samples[detector] = rows.take(list(range(0, len(rows), -(-len(rows) // _PICTURES))))
    return samples
