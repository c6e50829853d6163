"""A few images and a sample of a fit, timed where the fit will run: on a GPU if workers have it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import torch
from torch import Tensor

from ops.detectors.fit_cost import FitSize
from ops.detectors.registry import detector_class
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.images.read_images import Read
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import put
from pipelines.fitting.request import FitRequest

_IMAGES = 8  # images that are read and added to a detector to be timed
_PATIENCE = 600.0  # seconds in which a GPU must become free


@dataclass(frozen=True)
class Rehearsal:
    """What was measured."""

    read: float
    """Seconds to read an image."""
    add: float
    """Seconds to add an image, or a tile of one, to a detector."""
    fit: float
    """Seconds of the fits of all detectors, extrapolated."""
    gpu_bytes: int = 0
    """Memory of the GPU; 0 without one."""
    gpu_used: int = 0
    """The most of it that the network, its images and the libraries used, before any fit."""


def rehearse(
    rows: pa.Table,
    request: FitRequest,
    sizes: Mapping[str, FitSize],
    network: Backbone,
    device: str,
) -> Rehearsal:
    """Measure in this process; `network` is a backbone on `device`."""
    kind = detector_class(request.method)
    detector = kind(request.settings, network)
    image = torch.zeros(1, 3, *request.input.sides[::-1], device=device)
    detector.add_images(image, torch.tensor([0]))
    read = _seconds(lambda: _read(Read(request.input, request.decode, request.fetch), rows), device)
    add = _seconds(
        lambda: [detector.add_images(image, torch.tensor([n])) for n in range(1, _IMAGES + 1)],
        device,
    )
    memory = gpu_memory() if device == "cuda" else (0, 0)
    work, times = None, 0.0
    for size in sizes.values():
        if probe := kind.timing_probe(request.settings, replace(size, backbone=network)):
            work = work or probe.work  # keeps one probe only, as its network may be large
            times += probe.times
    fit = _seconds(work, device) * times if work else 0.0
    return Rehearsal(read / max(1, len(rows)), add / _IMAGES, fit, *memory)


def _read(read: Read, rows: pa.Table) -> None:
    if not read.input.tiled:
        read(rows)
        return
    for _ in read.pieces(rows):
        pass  # a piece at a time is in memory


def rehearse_on_worker(
    rows: pa.Table,
    request: FitRequest,
    sizes: Mapping[str, FitSize],
    network: Backbone,
    resources: Resources,
) -> Rehearsal:
    """Measure in a task with a worker's resources if workers have GPUs, otherwise in this process.

    The process uses as many threads as a worker, but may run on a faster or slower machine.
    Raises UserError if no GPU becomes free.
    """
    rows = rows.slice(0, _IMAGES)
    if not resources.gpus:
        torch.set_num_threads(resources.threads)
        return rehearse(rows, request, sizes, network, "cpu")
    plain = {name: replace(size, backbone=None) for name, size in sizes.items()}
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(_of_worker)
    measured = task.remote(rows, request, plain, [put(network.state())], resources)
    try:
        found: Rehearsal = ray.get(measured, timeout=_PATIENCE)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(measured, force=True)
        raise UserError(
            f"no worker of {resources.cpus:g} CPUs and {resources.gpus:g} GPUs became free within "
            f"{_PATIENCE:g} seconds to measure on; wait for other jobs to end, or estimate with "
            "--resources.gpus 0, which measures on CPUs"
        ) from None
    return found


def _of_worker(
    rows: pa.Table,
    request: FitRequest,
    sizes: Mapping[str, FitSize],
    weights: list[Any],
    resources: Resources,
) -> Rehearsal:
    torch.set_num_threads(resources.threads)
    state: dict[str, Tensor] = {k: t.clone() for k, t in ray.get(weights[0]).items()}
    network = Backbone(request.backbone, state, resources.device)
    return rehearse(rows, request, sizes, network, resources.device)


def gpu_memory(share: float = 1.0) -> tuple[int, int]:
    """Bytes of this process's GPU, and the most that this process used of it, libraries included.

    Of what no counter of torch shows, the libraries' memory and other processes', its `share`.
    """
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    return total, int(others * share) + torch.cuda.max_memory_reserved()


def _seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
