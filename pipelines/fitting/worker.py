"""The program that each worker of a fit runs: read its images, then fit with the others."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import torch

from ops.archives.views import product_of
from ops.detectors.detector import Checkpoint, Detector
from ops.detectors.image_batches import (
    Inspection,
    TileBatch,
    Tiles,
    inspected_images,
    to_images,
)
from ops.detectors.registry import detector_class
from ops.distributed import Distributed, Group
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.images.resize import InputSettings
from ops.images.tiles import tile_id
from pipelines.cluster.resources import Resources
from pipelines.fitting.coordinator import Content, DetectorResult, failures_of
from pipelines.fitting.heartbeat import send_signs
from pipelines.fitting.plan import GpuNeeds
from pipelines.fitting.rehearsal import gpu_memory
from pipelines.fitting.request import DETECTOR, ROW, FitRequest


def program(config: dict[str, Any]) -> None:
    """Fit the detectors one after the other; all workers fit the same ones in the same order."""
    coordinator, resources, request = config["coordinator"], config["resources"], config["request"]
    send_signs(coordinator, ray.train.get_context().get_world_rank())
    if ray.get(coordinator.refusal.remote()):
        return  # Ray Train restarted the workers of a fit that cannot succeed
    torch.set_num_threads(resources.threads)
    weights = {name: tensor.clone() for name, tensor in ray.get(config["backbone"]).items()}
    backbone = Backbone(request.backbone, weights, resources.device)
    try:
        check_gpu(backbone, request, resources, config["gpu"])
    except UserError as error:  # the stream then ends on every rank
        ray.get(coordinator.set_refusal.remote(str(error)))
    finished = set(ray.get(coordinator.finished.remote()))  # before a restart
    remaining = [detector for detector in config["detectors"] if detector not in finished]
    stream = Stream(resources, coordinator, config["limit"], request, remaining)
    group = Distributed()
    for name in remaining:
        detector = detector_class(request.method)(request.settings, backbone)
        detector.product = product_of(name, request.views)
        if group.rank == 0 and name in config["earlier_fits"]:
            state, counts = config["earlier_fits"][name]
            tensors = {key: tensor.clone() for key, tensor in ray.get(state).items()}
            with stream.ending_on_refusal(name):
                detector.grow(tensors, counts)
        _add_images(name, detector, stream, group)
        if not _fit(name, detector, coordinator, group):
            return


def check_gpu(
    backbone: Backbone, request: FitRequest, resources: Resources, needs: GpuNeeds
) -> None:
    """Check that this worker's share of its GPU can hold the fit, before any feature is computed.

    Raises NotEnoughMemory.
    """
    if not resources.gpus:
        return
    width, height = request.input.sides
    backbone(torch.zeros(resources.images_per_batch, 3, height, width, device=resources.device))
    needs.check(*gpu_memory(resources.gpu_share), resources.gpu_share)


def _add_images(name: str, detector: Detector, stream: Stream, group: Group) -> None:
    """Add all images of a detector, on whichever workers they are. Collective.

    The stream is ordered by detector, so a worker whose next image is for another detector has
    added all of its images of this one.
    """
    while True:
        mine = stream.detector == name
        if mine:
            with stream.ending_on_refusal(name):
                stream.take()(detector)
        if mine and not detector.exchanges:
            continue
        if not int(group.all_reduce(torch.tensor([int(mine)]), "max")):
            return
        if detector.exchanges:
            detector.exchange(group)


def _fit(name: str, detector: Detector, coordinator: Any, group: Group) -> bool:
    """Fit a detector and report the result. Collective; False on every rank if it was refused."""

    def progress(stage: str, done: int, total: int, failed: int = 0) -> None:  # noqa: ARG001 - as in ProgressCallback
        if group.rank == 0:
            coordinator.set_progress.remote(stage, done, total)

    refused = torch.tensor([int(bool(ray.get(coordinator.refusal.remote())))])
    if int(group.all_reduce(refused, "max")):
        return False
    try:
        fitted = detector.fit(group, progress, DetectorCheckpoint(coordinator, name))
    except UserError as error:  # the contract says that every rank raises it
        ray.get(coordinator.set_refusal.remote(f"{name}: {error}"))
        return False
    if group.rank == 0:
        tensors = {key: tensor.cpu() for key, tensor in detector.state().items()}
        result = DetectorResult(fitted, tensors, detector.map_ceiling())
        ray.get(coordinator.set_result.remote(name, result))
    return True


class DetectorCheckpoint(Checkpoint):
    """The checkpoint of one detector's fit, kept by the coordinator, which outlives workers."""

    def __init__(self, coordinator: Any, detector: str) -> None:
        self._coordinator, self._detector = coordinator, detector

    def read(self) -> Any:
        """Load from the coordinator."""
        return ray.get(self._coordinator.load_checkpoint.remote(self._detector))

    def write(self, content: Any) -> None:
        """Save to the coordinator without waiting for it."""
        self._coordinator.save_checkpoint.remote(self._detector, content)


class Stream:
    """This worker's readable images in batches of one detector; all rows are reported as read."""

    def __init__(
        self,
        resources: Resources,
        coordinator: Any,
        limit: int,
        request: FitRequest,
        detectors: list[str],
    ) -> None:
        """Skips images for other than these `detectors`."""
        self._resources, self._coordinator, self._limit = resources, coordinator, limit
        self._input, self._request = request.input, request
        self._has_picks = detector_class(request.method).has_picks
        wanted = set(detectors)
        self._batches = (batch for batch in self._read() if batch.detector in wanted)
        self._next = next(self._batches, None)

    @property
    def detector(self) -> str | None:
        """The detector that the next images are for; None at the end."""
        return self._next.detector if self._next else None

    def take(self) -> Callable[[Detector], None]:
        """What adds the next images, or tiles, to their detector."""
        assert self._next
        add = self._next.add
        self._next = next(self._batches, None)
        return add

    @contextlib.contextmanager
    def ending_on_refusal(self, name: str) -> Iterator[None]:
        """End the stream if this worker raises UserError; `_fit` then ends the fit on all ranks."""
        try:
            yield
        except UserError as error:
            ray.get(self._coordinator.set_refusal.remote(f"{name}: {error}"))
            self._next = None

    def _read(self) -> Iterator[_DetectorBatch]:
        shard: Any = ray.train.get_dataset_shard("images")
        for batch in shard.iter_batches(
            # Readers bound the bytes of whole pictures; batches of rows would join them again.
            batch_size=None if self._input.tiled else self._resources.images_per_batch,
            batch_format="pyarrow",
            prefetch_batches=1,
        ):
            broken = batch.filter(pc.not_equal(batch["status"], "ok"))
            failures = failures_of(broken)
            rows = batch[ROW].to_pylist()
            good = batch.filter(pc.equal(batch["status"], "ok"))
            contents = _contents(good) if self._has_picks else {}
            report = self._coordinator.add_images.remote(
                rows, failures, _pictures(good), _sizes(good), contents
            )
            failed, refused = ray.get(report)
            if refused:
                return  # `_fit` then ends the fit on all ranks
            if failed > self._limit:
                refusal = (
                    f"{failed} images of the fit cannot be read, more than --max_failed allows "
                    f"({self._limit}), such as {next(iter(failures.values()), '')}"
                )
                ray.get(self._coordinator.set_refusal.remote(refusal))
                return
            for detector in dict.fromkeys(good[DETECTOR].to_pylist()):
                mine = good.filter(pc.equal(good[DETECTOR], detector))
                for add in self._additions(mine):
                    yield _DetectorBatch(detector, add)

    def _additions(self, rows: pa.Table) -> Iterator[Callable[[Detector], None]]:
        """What adds the images of some rows, at most a batch at a time, to their detector."""
        device, numbers = self._resources.device, rows[ROW].to_pylist()
        inspection = _inspection(rows, self._request)
        if not self._input.tiled:
            yield functools.partial(_add_rows, rows, self._input, device, inspection)
            return
        tiles = Tiles(rows, self._input, device, range(len(rows)), inspection)
        for part in tiles.batches(self._resources.images_per_batch):
            yield functools.partial(_add_tiles, part, numbers)


def _inspection(rows: pa.Table, request: FitRequest) -> Inspection | None:
    """What is inspected of the pictures of some rows; None if all of all of them is."""
    masks = [request.masks.get(product) for product in rows["product"].to_pylist()]
    return Inspection(masks, request.backbone.normalisation[0]) if any(masks) else None


def _add_rows(
    rows: pa.Table,
    settings: InputSettings,
    device: str,
    inspection: Inspection | None,
    detector: Detector,
) -> None:
    numbers = torch.tensor(rows[ROW].to_pylist())
    if inspection is None:
        detector.add_images(to_images(rows, settings, device), numbers)
        return
    images, inside = inspected_images(rows, settings, device, range(len(rows)), inspection)
    detector.add_inside(images, numbers, inside)


def _add_tiles(part: TileBatch, numbers: list[int], detector: Detector) -> None:
    """Add tiles; the ids that they have as images follow from picture and tile alone."""
    ids = [
        tile_id(numbers[row], number) for row, number in zip(part.rows, part.numbers, strict=True)
    ]
    if part.inside is None:
        detector.add_images(part.images, torch.tensor(ids))
    else:
        detector.add_inside(part.images, torch.tensor(ids), part.inside)


def _pictures(rows: pa.Table) -> dict[int, tuple[str, int, str]]:
    columns = (rows[name].to_pylist() for name in (ROW, "product", "bit_depth", "uri"))
    return {row: (product, depth, uri) for row, product, depth, uri in zip(*columns, strict=True)}


def _contents(rows: pa.Table) -> dict[int, Content]:
    columns = (rows[name].to_pylist() for name in (ROW, *Content._fields))
    return {row: Content(*content) for row, *content in zip(*columns, strict=True)}


def _sizes(rows: pa.Table) -> dict[str, set[tuple[int, int]]]:
    """Widths and heights of pictures, by product."""
    columns = (rows[name].to_pylist() for name in ("product", "width", "height"))
    found: dict[str, set[tuple[int, int]]] = {}
    for product, *size in zip(*columns, strict=True):
        found.setdefault(product, set()).add((size[0], size[1]))
    return found


@dataclass(frozen=True)
class _DetectorBatch:
    detector: str
    add: Callable[[Detector], None]
