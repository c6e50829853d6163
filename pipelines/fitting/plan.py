"""Estimates of memory and time of a fit, from the inventory and a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ops.detectors.fit_cost import FitSize, ResourceEstimate
from ops.detectors.registry import detector_class
from ops.features.backbone import Backbone, LayerShape
from ops.images.read_images import Read
from pipelines.cluster.memory import PROCESS_BYTES, cached_bytes, check_workers
from pipelines.cluster.resources import Resources
from pipelines.fitting.request import DETECTOR, FitRequest, Split

_IMAGES = 8  # images that are read and added to a detector to be timed


@dataclass(frozen=True)
class Plan:
    """Size and cost of a fit; dictionaries are by detector."""

    workers: int
    sizes: dict[str, FitSize]
    held_out: int
    estimates: dict[str, ResourceEstimate]
    backbone_bytes: int
    detector_cache: int
    """Bytes of detectors that a worker of a run keeps loaded."""

    @property
    def images(self) -> dict[str, int]:
        """Number of images to fit on."""
        return {detector: size.images for detector, size in self.sizes.items()}

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
    def model_bytes(self) -> int:
        """Size of the model folder."""
        return self.backbone_bytes + sum(
            estimate.model_bytes for estimate in self.estimates.values()
        )


def of_fit(chosen: Split, request: FitRequest, backbone: Backbone, resources: Resources) -> Plan:
    """The plan of a fit on these images with these workers."""
    counts = chosen.fit[DETECTOR].value_counts().to_pylist()
    kind, workers = detector_class(request.method), resources.count()
    shapes = _layer_shapes(backbone, request.input.size)
    sizes = {
        entry["values"]: FitSize(request.input.size, shapes, entry["counts"], workers, backbone)
        for entry in counts
    }
    return Plan(
        workers=workers,
        sizes=sizes,
        held_out=len(chosen.held_out),
        estimates={
            detector: kind.estimate(request.settings, size) for detector, size in sizes.items()
        },
        backbone_bytes=sum(t.numel() * t.element_size() for t in backbone.state().values()),
        detector_cache=resources.detector_cache,
    )


def _layer_shapes(backbone: Backbone, size: int) -> list[LayerShape]:
    maps = backbone(torch.zeros(1, 3, size, size))
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


def minutes(
    plan: Plan, chosen: Split, request: FitRequest, backbone: Backbone, resources: Resources
) -> Minutes:
    """Time a few images and a sample of the fit in this process, and extrapolate.

    The process uses as many threads as a worker, but may run on a faster or slower machine.
    """
    torch.set_num_threads(resources.threads)
    kind = detector_class(request.method)
    detector = kind(request.settings, backbone)
    rows = chosen.fit.slice(0, _IMAGES)
    image = torch.zeros(1, 3, request.input.size, request.input.size)
    detector.add_images(image, torch.tensor([0]))
    read = _seconds(lambda: Read(request.input, request.decode, request.fetch)(rows)) / len(rows)
    per_image = (
        read
        + _seconds(
            lambda: [detector.add_images(image, torch.tensor([n])) for n in range(1, _IMAGES + 1)]
        )
        / _IMAGES
    )
    work, times = None, 0.0
    for size in plan.sizes.values():
        if probe := kind.timing_probe(request.settings, size):
            work = work or probe.work  # keeps one probe only, as its network may be large
            times += probe.times
    fit = _seconds(work) * times if work else 0.0
    images = sum(plan.images.values())
    return Minutes(
        extract=images * per_image / plan.workers / 60,
        fit=fit / 60,
        calibrate=plan.held_out * 2 * per_image / plan.workers / 60,
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
