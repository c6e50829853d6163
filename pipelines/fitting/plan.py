"""Estimates of memory and time of a fit, from the inventory and a short measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ops.detectors.fit_cost import FitSize, ResourceEstimate
from ops.detectors.registry import detector_class
from ops.features.backbone import Backbone, LayerShape
from pipelines.cluster.memory import PROCESS_BYTES, cached_bytes, check_gpu, check_workers
from pipelines.cluster.resources import Resources
from pipelines.fitting.hold_out import unit_of
from pipelines.fitting.picture_sizes import PictureSizes
from pipelines.fitting.rehearsal import Rehearsal
from pipelines.fitting.request import DETECTOR, FitRequest, Split


@dataclass(frozen=True)
class GpuNeeds:
    """What the fit and the scoring of a model hold on a worker's GPU, beside network and images."""

    fit: int
    """Bytes of the fit."""
    score: int
    """Bytes of scoring."""
    largest: str
    """The detector whose fit holds the most."""
    remedy: str
    """The settings that lower it, as a clause for an error message."""

    def check(self, gpu_bytes: int, used: int, share: float) -> None:
        """Check that a `share` of a GPU can hold them beside the `used` bytes of network and
        images; `gpu_bytes` is the memory of the GPU, 0 without one. Raises NotEnoughMemory.
        """
        room = int(gpu_bytes * share)
        check_gpu(f"the fit of {self.largest!r}", used + self.fit, room, self.remedy)
        check_gpu("scoring with this model", used + self.score, room, self.remedy)


@dataclass(frozen=True)
class Plan:
    """Size and cost of a fit; dictionaries are by detector."""

    workers: int
    sizes: dict[str, FitSize]
    """Of the fits; with tiles, their images are tiles."""
    images: dict[str, int]
    """Number of images to fit on."""
    held_out: int
    estimates: dict[str, ResourceEstimate]
    backbone_bytes: int
    detector_cache: int
    """Bytes of detectors that a worker of a run keeps loaded."""
    held_out_units: int
    """Of what the held-out images are observations: parts, and images of no part."""

    @property
    def tiles(self) -> float:
        """Tiles of an image, on average; 1 without tiles."""
        return sum(size.images for size in self.sizes.values()) / sum(self.images.values())

    @property
    def patches(self) -> int:
        """Patches along the width of the input."""
        return self.layers[0][2]

    @property
    def layers(self) -> Sequence[LayerShape]:
        """Shapes of the features of an input."""
        return next(iter(self.sizes.values())).layers

    @property
    def fit_bytes(self) -> int:
        """Memory of each worker of the fit; detectors are fitted one after the other."""
        own = max(estimate.fit_bytes for estimate in self.estimates.values())
        return PROCESS_BYTES + 2 * self.backbone_bytes + own

    @property
    def score_bytes(self) -> int:
        """Memory of each worker of a run, once its detector cache is full."""
        own = cached_bytes(
            [estimate.score_bytes for estimate in self.estimates.values()], 2 * self.detector_cache
        )
        return PROCESS_BYTES + 2 * self.backbone_bytes + own

    @property
    def gpu(self) -> GpuNeeds:
        """What workers hold on their GPUs."""
        name, largest = max(self.estimates.items(), key=lambda item: item[1].fit_gpu_bytes)
        cached = cached_bytes(
            [estimate.score_bytes for estimate in self.estimates.values()], 2 * self.detector_cache
        )
        scratch = max(estimate.gpu_scratch for estimate in self.estimates.values())
        return GpuNeeds(largest.fit_gpu_bytes, cached + scratch, name, largest.remedy)

    @property
    def model_bytes(self) -> int:
        """Size of the model folder."""
        return self.backbone_bytes + sum(
            estimate.model_bytes for estimate in self.estimates.values()
        )


def of_fit(
    chosen: Split,
    request: FitRequest,
    backbone: Backbone,
    resources: Resources,
    pictures: PictureSizes = PictureSizes({}),
) -> Plan:
    """The plan of a fit on these images with these workers; `pictures` tell how many tiles."""
    counts = chosen.fit[DETECTOR].value_counts().to_pylist()
    images = {entry["values"]: entry["counts"] for entry in counts}
    kind, workers = detector_class(request.method), resources.count()
    shapes = layer_shapes(backbone, request.input.sides)
    sizes = {
        name: FitSize(
            request.input.sides,
            shapes,
            math.ceil(count * pictures.tiles(name, request)),
            workers,
            backbone,
        )
        for name, count in images.items()
    }
    return Plan(
        workers=workers,
        sizes=sizes,
        images=images,
        held_out=len(chosen.held_out),
        estimates={
            detector: kind.estimate(request.settings, size) for detector, size in sizes.items()
        },
        backbone_bytes=sum(t.numel() * t.element_size() for t in backbone.state().values()),
        detector_cache=resources.detector_cache,
        held_out_units=len({unit_of(row) for row in chosen.held_out.to_pylist()}),
    )


def layer_shapes(backbone: Backbone, sides: tuple[int, int]) -> list[LayerShape]:
    """Shapes of the features of an input of this width and height."""
    maps = backbone(torch.zeros(1, 3, *sides[::-1]))
    return [(layer.shape[1], layer.shape[2], layer.shape[3]) for layer in maps]


def check(plan: Plan) -> None:
    """Check that the nodes can hold the workers of a fit. Raises NotEnoughMemory."""
    name, largest = max(plan.estimates.items(), key=lambda item: item[1].fit_bytes)
    check_workers(f"the fit of {name!r}", plan.fit_bytes, plan.workers, largest.remedy)


@dataclass(frozen=True)
class Minutes:
    """Estimated minutes of each stage of a fit."""

    extract: float
    fit: float
    calibrate: float


def minutes(plan: Plan, measured: Rehearsal) -> Minutes:
    """Extrapolate a rehearsal."""
    images = sum(plan.images.values())
    per_image = measured.read + measured.add * plan.tiles
    return Minutes(
        extract=images * per_image / plan.workers / 60,
        fit=measured.fit / 60,
        calibrate=plan.held_out * 2 * per_image / plan.workers / 60,
    )
