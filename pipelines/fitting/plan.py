"""What a fit will take, worked out from the inventory and a short measurement, before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
import torch

from ops.detectors.detector import Shape
from ops.detectors.fit_cost import FitSize, ResourceEstimate
from ops.detectors.registry import detector_class
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.images.read_images import Read
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.fitting.request import DETECTOR, FitRequest, Split

#: A process that has imported everything and loaded a network, before it meets an image.
_PROCESS = 3 * 2**28
_IMAGES = 8  # images that are read and put through the network to be timed


class DoesNotFit(UserError):
    """More memory than the cluster's nodes have."""


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
        return _PROCESS + 2 * self.backbone_bytes + own

    @property
    def score_bytes(self) -> int:
        """Memory of each worker that scores, once it has met every detector."""
        own = _held([estimate.score_bytes for estimate in self.estimates.values()], 2 * self.memory)
        return _PROCESS + 2 * self.backbone_bytes + own

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


def _shapes(backbone: Backbone, size: int) -> list[Shape]:
    maps = backbone(torch.zeros(1, 3, size, size))
    return [(layer.shape[1], layer.shape[2], layer.shape[3]) for layer in maps]


def check(plan: Plan) -> None:
    """Refuse a fit whose workers cannot hold what it takes. Raises DoesNotFit."""
    name, worst = max(plan.estimates.items(), key=lambda item: item[1].fit_bytes)
    _check(f"the fit of {name!r}", plan.fit_bytes, plan.workers, worst.remedy)


def check_scoring(model: SharedModel, resources: Resources) -> None:
    """Refuse a model whose detectors a worker cannot hold. Raises DoesNotFit."""
    own = model.bytes_of_backbone + _held(model.bytes_of_detectors, resources.detector_cache)
    remedy = "lower --resources.detector_cache or --resources.max_workers, or fit smaller detectors"
    _check("scoring with this model", _PROCESS + 2 * own, resources.at_most(), remedy)


def _held(sizes: Sequence[int], memory: int) -> int:
    """What a worker keeps of detectors once it has met them all: one at least."""
    return max(max(sizes, default=0), min(sum(sizes), memory))


def _check(what: str, needed: int, workers: int, remedy: str) -> None:
    room = _memory_of_nodes()
    each = math.ceil(workers / len(room))
    if each * needed > min(room):
        raise DoesNotFit(
            f"{what} takes {needed / 2**30:.1f} GiB of each of {workers} workers, {each} to a "
            f"node, but a node has {min(room) / 2**30:.1f} GiB for them: {remedy}, or give it "
            "more nodes"
        )


def _memory_of_nodes() -> list[int]:
    """What each node offers to workers, in bytes."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # it has no types
    working = [n["Resources"] for n in nodes if n["Alive"] and n["Resources"].get("CPU")]
    return [int(resources.get("memory", 0)) for resources in working] or [0]


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
