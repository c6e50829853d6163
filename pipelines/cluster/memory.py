"""Whether the cluster's nodes have the memory that workers need."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ray

from ops.errors import UserError
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel

#: Bytes of a worker process that has imported everything and loaded a backbone, before any image.
PROCESS_BYTES = 3 * 2**28


class NotEnoughMemory(UserError):
    """The workers of a job need more memory than the cluster's nodes have."""


def check_scoring(model: SharedModel, resources: Resources) -> None:
    """Check that workers can hold a model's detectors. Raises NotEnoughMemory."""
    tensors = model.bytes_of_backbone + cached_bytes(
        model.bytes_of_detectors, resources.detector_cache
    )
    remedy = "lower --resources.detector_cache or --resources.max_workers, or fit smaller detectors"
    # Tensors count twice: those in use, and the copies made while they are loaded.
    needed = PROCESS_BYTES + 2 * tensors
    check_workers("scoring with this model", needed, resources.max_count(), remedy)


def cached_bytes(sizes: Sequence[int], cache: int) -> int:
    """Bytes of detectors in a full cache of `cache` bytes, which always holds at least one."""
    return max(max(sizes, default=0), min(sum(sizes), cache))


def check_workers(what: str, needed: int, workers: int, remedy: str) -> None:
    """Check that every node can hold its share of workers of `needed` bytes each.

    Raises NotEnoughMemory, with what is being done (`what`) and the settings to change (`remedy`).
    """
    nodes = memory_of_nodes()
    per_node = math.ceil(workers / len(nodes))
    if per_node * needed > min(nodes):
        raise NotEnoughMemory(
            f"{what} needs {needed / 2**30:.1f} GiB for each of {workers} workers, {per_node} per "
            f"node, but the smallest node has {min(nodes) / 2**30:.1f} GiB for workers: {remedy}, "
            "or add nodes"
        )


def check_gpu(what: str, needed: int, room: int, remedy: str) -> None:
    """Check that a worker's share of a GPU, `room` bytes, is enough; 0 if there is no GPU.

    Raises NotEnoughMemory, with what is being done (`what`) and the settings to change (`remedy`).
    """
    if room and needed > room:
        raise NotEnoughMemory(
            f"{what} needs {needed / 2**30:.1f} GiB of a GPU, but a worker's share of it is "
            f"{room / 2**30:.1f} GiB: {remedy}, or give each worker more of a GPU "
            "(--resources.gpus)"
        )


def memory_of_nodes() -> list[int]:
    """Bytes of memory that each node with CPUs offers to workers."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # it has no types
    working = [n["Resources"] for n in nodes if n["Alive"] and n["Resources"].get("CPU")]
    return [int(resources.get("memory", 0)) for resources in working] or [0]
