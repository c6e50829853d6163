"""What a fit will take, worked out from the inventory and a short measurement, before it starts."""

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

_IMAGES = 8  # images that are read and put through the network to be timed


@dataclass(frozen=True)
class Plan:
    """A fit, before it starts; by detector."""

    workers: int
    loads: dict[str, FitSize]
    held_out: int
    estimates: dict[str, ResourceEstimate]
    backbone_bytes: int
    memory: int
    """Bytes of detectors that a worker keeps loaded."""

    @property
    def images(self) -> dict[str, int]:
        """To fit on."""
        return {detector: load.images for detector, load in self.loads.items()}

    @property
    def fit_bytes(self) -> int:
        """Memory of each worker of the fit; detectors are fitted one after the other."""
        own = max(estimate.fit_bytes for estimate in self.estimates.values())
        return PROCESS_BYTES + 2 * self.backbone_bytes + own

    @property
    def score_bytes(self) -> int:
        """Memory of each worker that scores, once it has met every detector."""
        own = cached_bytes(
            [estimate.score_bytes for estimate in self.estimates.values()], 2 * self.memory
        )
        return PROCESS_BYTES + 2 * self.backbone_bytes + own

    @property
    def model_bytes(self) -> int:
        """Size of the model folder."""
        return self.backbone_bytes + sum(
            estimate.model_bytes for estimate in self.estimates.values()
        )


def of_fit(chosen: Split, request: FitRequest, backbone: Backbone, resources: Resources) -> Plan:
    """The plan of a fit on these images, on this cluster."""
    counts = chosen.fit[DETECTOR].value_counts().to_pylist()
    kind, size, workers = detector_class(request.method), request.input.size, resources.count()
    shapes = _shapes(backbone, size)
    loads = {
        entry["values"]: FitSize(size, shapes, entry["counts"], workers, backbone)
        for entry in counts
    }
    return Plan(
        workers=workers,
        loads=loads,
        held_out=len(chosen.held_out),
        estimates={
            detector: kind.estimate(request.settings, load) for detector, load in loads.items()
        },
        backbone_bytes=sum(t.numel() * t.element_size() for t in backbone.state().values()),
        memory=resources.detector_cache,
    )


def _shapes(backbone: Backbone, size: int) -> list[LayerShape]:
    maps = backbone(torch.zeros(1, 3, size, size))
    return [(layer.shape[1], layer.shape[2], layer.shape[3]) for layer in maps]


def check(plan: Plan) -> None:
    """Refuse a fit whose workers cannot hold what it takes. Raises NotEnoughMemory."""
    name, worst = max(plan.estimates.items(), key=lambda item: item[1].fit_bytes)
    check_workers(f"the fit of {name!r}", plan.fit_bytes, plan.workers, worst.remedy)


@dataclass(frozen=True)
class Minutes:
    """What each stage will take, from a measurement on the driver's machine."""

    extract: float
    fit: float
    calibrate: float


def minutes(
    plan: Plan, chosen: Split, request: FitRequest, backbone: Backbone, resources: Resources
) -> Minutes:
    """Time a few of the images and a sample of the fit on one worker's threads here, and scale."""
    torch.set_num_threads(resources.threads)
    kind = detector_class(request.method)
    method = kind(request.settings, backbone)
    rows = chosen.fit.slice(0, _IMAGES)
    image = torch.zeros(1, 3, request.input.size, request.input.size)
    method.add_images(image, torch.tensor([0]))
    read = _seconds(lambda: Read(request.input, request.decode, request.fetch)(rows)) / len(rows)
    per_image = (
        read
        + _seconds(
            lambda: [method.add_images(image, torch.tensor([n])) for n in range(1, _IMAGES + 1)]
        )
        / _IMAGES
    )
    work, times = None, 0.0
    for load in plan.loads.values():
        if timing_probe := kind.timing_probe(request.settings, load):
            work = work or timing_probe.work  # one network at a time, as each may be large
            times += timing_probe.times
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
