"""Connecting to a Ray cluster, and the resources that each stage reserves."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import worker
from ray.data import DataContext
from ray.util.placement_group import placement_group, remove_placement_group

from ops.errors import UserError

log = logging.getLogger(__name__)


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]  # it has no types


def describe_cluster() -> str:
    """A clause with the nodes that are alive and the CPUs and GPUs that are free."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = sum(bool(node["Alive"]) for node in nodes)
    free = dict(ray.available_resources())  # type: ignore[no-untyped-call]
    total = {kind: count for kind, count in _resources().items() if kind in {"CPU", "GPU"}}
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
    batch: int = 16
    """Images per batch that passes from one stage to the next."""
    wait_for_nodes: float = 0.0
    """Seconds to wait for nodes that `workers` needs and that have not joined yet. An autoscaler
    is asked for them."""
    stall_timeout: float = 900.0
    """Seconds without a finished image after which a run fails. A step that takes longer than
    `stall_timeout / 6` is killed and retried; an image that keeps hanging is recorded with status
    `crashed_worker`. 0 disables both limits."""

    @property
    def device(self) -> str:
        """The torch device of a worker."""
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus))

    def count(self) -> int:
        """The number of workers. Raises UserError if they and two readers need more than there is.

        Workers that reserved every CPU would wait for ever for the tasks that read their images.
        """
        cpus, gpus, room = self._room()
        if self.workers > room and self.wait_for_nodes:
            self._await_nodes()
            cpus, gpus, room = self._room()
        workers = self.workers or max(1, min(room, math.floor(room * 0.75) or 1))
        if workers > room:
            raise UserError(
                f"{workers} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs do not fit beside "
                f"two readers of {self.reader_cpus:g} CPUs into {cpus:g} CPUs and {gpus:g} GPUs; "
                f"lower --resources.workers to {max(room, 0)} or lower --resources.cpus"
            )
        return workers

    def max_count(self) -> int:
        """The largest number of workers that scoring may autoscale to on the present nodes."""
        return max(self.count(), min(self.max_workers, self._room()[2]))

    def _room(self) -> tuple[float, float, int]:
        """CPUs and GPUs of the cluster at present, and the number of workers that fit into them."""
        total = _resources()
        cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
        if self.cpus:
            workers = math.floor((cpus - 2 * self.reader_cpus) / self.cpus)
        else:
            workers = self.workers or 1
        if self.gpus:
            workers = min(workers, math.floor(gpus / self.gpus))
        return cpus, gpus, workers

    def _await_nodes(self) -> None:
        """Ask an autoscaler for nodes with a placement group, which is removed again.

        Ray removes it also if this process dies meanwhile.
        """
        log.warning(
            "waiting up to %g s for nodes that hold %d workers", self.wait_for_nodes, self.workers
        )
        worker = {"CPU": self.cpus, "GPU": self.gpus}
        bundles = [worker] * self.workers + [{"CPU": self.reader_cpus}] * 2
        nonzero = [{name: n for name, n in bundle.items() if n} for bundle in bundles]
        group = placement_group([bundle for bundle in nonzero if bundle])
        group.wait(math.ceil(self.wait_for_nodes))  # it takes whole seconds
        remove_placement_group(group)

    def max_readers(self, workers: int) -> int:
        """The most reading tasks at once, such that one task that writes maps has a CPU share.

        It grows with `max_workers`; Ray Data's own budgets then keep that share.
        """
        free = _resources().get("CPU", 0.0) - workers * self.cpus
        readers = max(1, math.floor(free / self.reader_cpus) - 1)
        return readers * math.ceil(max(self.max_workers, workers) / workers)


@contextlib.contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Connect to the cluster at `address`, or at RAY_ADDRESS (set for submitted jobs).

    Without either, starts a local cluster, which ends with the context. Ray's own messages are
    silenced.
    """
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    logging.getLogger("ray").setLevel(logging.ERROR)
    # The core worker, which is native code, prints messages of its own.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own: dict[str, Any] = {}
    if where == "local":
        own = {"num_cpus": cpus, "include_dashboard": False}
    with _stderr_discarded():  # Ray prints a note about that variable
        try:
            ray.init(
                address=where,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONWARNINGS": "ignore"}},
                **own,
            )
        except ConnectionError as error:
            raise UserError(f"there is no Ray cluster at {where}: {error}") from error
    silence_ray()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what is written to stderr, by native code too; exceptions still propagate."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def silence_ray() -> None:
    """Silence Ray's messages; jobs print their own progress and errors.

    Ray's log files in its session folder keep them, except those of Ray Data and Ray Train.
    """
    # Ray prints a message, partly with a traceback, for each worker that died and for each task or
    # actor that it starts again. `log_to_driver=False` does not stop these, and no public setting
    # does. Failures that outlast the retries are raised.
    worker._worker_logs_enabled = False
    # Bounds on retries have no named parameter yet; pyproject.toml stops before they change.
    warnings.filterwarnings("ignore", message=".*ray_remote_args")
    # A short inventory has fewer blocks than there are workers, which is harmless.
    warnings.filterwarnings(
        "ignore", message="The (min|max)imum number of concurrent (task|actor)s"
    )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray Data logs each block that failed, with a traceback, before its images are isolated.
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
