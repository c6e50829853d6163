"""The CPUs and GPUs of a cluster, and how many workers and readers fit into them."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ops.errors import UserError
from pipelines.cluster.answers import GRACE, STATE, answered, try_for
from pipelines.cluster.timeouts import Stalled

log = logging.getLogger(__name__)


def _resources() -> dict[str, float]:
    return answered(lambda: dict(ray.cluster_resources()), STATE, "its resources")  # type: ignore[no-untyped-call]


def _free_resources() -> dict[str, float]:
    return answered(lambda: dict(ray.available_resources()), STATE, "its resources")  # type: ignore[no-untyped-call]


def describe_cluster() -> str:
    """A clause with the nodes that are alive and the CPUs and GPUs that are free."""
    try:
        return answered(_description, GRACE, "its state")
    except Stalled:
        return "the cluster does not answer"


def lives() -> bool:
    """Whether the cluster's store of its state and this node's object store answer."""

    def ask() -> None:
        _description()
        ray.put(bytes(2**20))  # objects of this size lie in the raylet

    return try_for(ask, 2 * GRACE, "a sign of life")


def _description() -> str:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = sum(bool(node["Alive"]) for node in nodes)
    free = dict(ray.available_resources())  # type: ignore[no-untyped-call]
    everything = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    total = {kind: count for kind, count in everything.items() if kind in {"CPU", "GPU"}}
    counts = [f"{free.get(kind, 0.0):g} of {count:g} {kind}s" for kind, count in total.items()]
    return (
        f"the cluster has {alive} node{'s' * (alive != 1)} alive, and {' and '.join(counts)} free"
    )


@dataclass(frozen=True)
class Resources:
    """The cluster resources that a job uses."""

    workers: int = 0
    """Worker processes that run the network, in a fit or in scoring. 0 chooses as many as the
    cluster has room for."""
    cpus: float = 1.0
    """CPUs per worker; also its number of threads."""
    gpus: float = 0.0
    """GPUs per worker. They are not detected, because the driver's node may have none."""
    max_workers: int = 0
    """Lets the pool of scoring workers autoscale up to this number while images wait, also onto
    nodes that join during the run. 0 keeps the number it starts with."""
    detector_cache: int = 2**32
    """Bytes of detectors that each worker keeps in memory. Of a model with more products, the
    least recently used detectors are evicted."""
    reader_cpus: float = 0.5
    """CPUs per task that fetches and decodes images or writes maps."""
    batch: int = 0
    """Images per batch that a worker scores or a reader reads at once. 0 = 16, and 64 with GPUs."""
    wait_for_nodes: float = 0.0
    """Seconds to wait for nodes that `workers` needs and that have not joined yet. An autoscaler
    is asked for them."""
    wait_for_room: float = 14400.0
    """Seconds to wait for CPUs and GPUs that other jobs on the cluster hold. A job reserves what it
    uses as a whole, before it starts. With `workers` 0 it takes what is free, if that is enough
    for one worker and two readers."""
    stall_timeout: float = 900.0
    """Seconds without a finished image after which a run fails. A step that takes longer than
    `stall_timeout / 6` is killed and retried; an image that keeps hanging is recorded with status
    `crashed_worker`. 0 disables both limits."""

    @property
    def device(self) -> str:
        """The torch device of a worker."""
        return "cuda" if self.gpus else "cpu"

    @property
    def gpu_share(self) -> float:
        """Share of a GPU's memory that a worker may use; 0 without one."""
        return min(1.0, self.gpus)

    @property
    def images_per_batch(self) -> int:
        """Images per batch."""
        return self.batch or (64 if self.gpus else 16)

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus))

    def count(self) -> int:
        """The number of workers. Raises UserError if they and two readers need more than there is.

        Workers that reserved every CPU would wait for ever for the tasks that read their images.
        """
        cpus, gpus, room = self._room(_resources())
        if self.workers > room and self.wait_for_nodes:
            self._await_nodes()
            cpus, gpus, room = self._room(_resources())
        workers = self.workers or _share(room)
        if workers > room:
            raise UserError(
                f"{workers} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs do not fit beside "
                f"two readers of {self.reader_cpus:g} CPUs into {cpus:g} CPUs and {gpus:g} GPUs; "
                f"lower --resources.workers to {max(room, 0)} or lower --resources.cpus"
            )
        return workers

    def max_count(self) -> int:
        """The largest number of workers that scoring may autoscale to on the present nodes."""
        return max(self.count(), min(self.max_workers, self._room(_resources())[2]))

    def count_free(self) -> int:
        """The number of workers that fit beside two readers into what is free now; 0 if none do."""
        room = self._room(_free_resources())[2]
        if self.workers:
            return self.workers if self.workers <= room else 0
        return _share(room) if room >= 1 else 0

    def _room(self, total: dict[str, float]) -> tuple[float, float, int]:
        """CPUs and GPUs of `total`, and the number of workers that fit into them."""
        cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
        if self.cpus:
            workers = math.floor((cpus - 2 * self.reader_cpus) / self.cpus)
        else:
            workers = self.workers or 1
        if self.gpus:
            workers = min(workers, math.floor(gpus / self.gpus))
        return cpus, gpus, workers

    def _await_nodes(self) -> None:
        """Ask an autoscaler for nodes with placement groups, which are removed again.

        Ray removes them also if this process dies meanwhile.
        """
        log.warning(
            "waiting up to %g s for nodes that hold %d workers", self.wait_for_nodes, self.workers
        )
        groups = self.request(self.workers, 2)
        deadline = time.monotonic() + self.wait_for_nodes
        for group in groups.values():
            group.wait(max(0, math.ceil(deadline - time.monotonic())))  # it takes whole seconds
        for group in groups.values():
            remove_placement_group(group)

    def request(self, workers: int, readers: int) -> dict[str, PlacementGroup]:
        """Ask the cluster for room for "workers" and for "readers": all of each, or none.

        In a group of bundles of several sizes, Ray may assign a worker to a node whose bundles hold
        it in sum but not one by one, and the worker then waits for ever.
        """
        sizes = {
            "workers": ({"CPU": self.cpus, "GPU": self.gpus}, workers),
            "readers": ({"CPU": self.reader_cpus}, readers),
        }
        bundles = {
            name: [{kind: n for kind, n in size.items() if n}] * count
            for name, (size, count) in sizes.items()
            if any(size.values()) and count
        }
        return {name: placement_group(each) for name, each in bundles.items()}

    def max_readers(self, workers: int) -> int:
        """The most reading tasks at once, such that one task that writes maps has a CPU share.

        It grows with `max_workers`; Ray Data's own budgets then keep that share.
        """
        readers = max(1, self.reader_shares(workers, _resources()) - 1)
        return readers * math.ceil(max(self.max_workers, workers) / workers)

    def free_reader_shares(self, workers: int) -> int:
        """How many readers fit into what is free now beside workers that are yet to start."""
        return self.reader_shares(workers, _free_resources())

    def reader_shares(self, workers: int, total: dict[str, float]) -> int:
        """How many readers fit into `total` beside workers."""
        free = total.get("CPU", 0.0) - workers * self.cpus
        return math.floor(free / self.reader_cpus + 1e-6)

    def worker_options(self) -> dict[str, Any]:
        """Options of Ray for processes that run the network: where they run."""
        return {}

    def reader_options(self) -> dict[str, Any]:
        """Options of Ray for tasks that read or write: where they run."""
        return {}

    def isolated_options(self) -> dict[str, Any]:
        """Options of Ray for single tasks, after a stream: where they run."""
        return {}

    def limit(self, context: DataContext) -> None:
        """Tell Ray Data what a stream may use, if that is not the whole cluster."""


def _share(room: int) -> int:
    """How many workers are started where `room` fit: the rest is for readers."""
    return max(1, min(room, math.floor(room * 0.75) or 1))
