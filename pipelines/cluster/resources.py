"""Getting onto a Ray cluster, quietly, and how much of it each stage takes."""

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
from ray.data import DataContext
from ray.util.placement_group import placement_group, remove_placement_group

from ops.errors import UserError

log = logging.getLogger(__name__)


def _resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]  # it has no types


def offered() -> str:
    """What the cluster has now, and what of it is free, for people."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = sum(bool(node["Alive"]) for node in nodes)
    free = dict(ray.available_resources())  # type: ignore[no-untyped-call]
    there = {kind: count for kind, count in _resources().items() if kind in {"CPU", "GPU"}}
    shares = [f"{free.get(kind, 0.0):g} of {count:g} {kind}s" for kind, count in there.items()]
    return (
        f"the cluster has {alive} node{'s' * (alive != 1)} alive, and {' and '.join(shares)} free"
    )


@dataclass(frozen=True)
class Resources:
    """What a job takes of the cluster."""

    workers: int = 0
    """Processes that run the network: fit workers or detectors; 0 = as the cluster allows."""
    cpus: float = 1.0
    """CPUs of each of them, and so its threads."""
    gpus: float = 0.0
    """GPUs of each of them. Stated here, never guessed: the head node may have none."""
    max_workers: int = 0
    """Detectors that a run may grow to while images wait, as far as the cluster has room, also on
    nodes that join meanwhile; 0 = as many as at its start."""
    detector_cache: int = 2**32
    """Bytes of fitted detectors that each of them keeps loaded; of a model with more products,
    those used longest ago make room."""
    reader_cpus: float = 0.5
    """CPUs that one task of fetching and decoding, or of drawing maps, reserves."""
    batch: int = 16
    """Images that cross from one stage to the next at a time."""
    wait_for_nodes: float = 0.0
    """Seconds to wait for nodes that `workers` need and that have not joined yet; an autoscaler is
    asked for them."""
    stall_timeout: float = 900.0
    """Seconds without a finished image after which a run ends. A process that takes a sixth of
    them for one batch is ended, and its images are tried again. 0 = wait for ever."""

    @property
    def device(self) -> str:
        """Where networks run."""
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus))

    def count(self) -> int:
        """How many workers, such that reading and drawing find room. Raises UserError if none.

        A pool of actors that holds every CPU starves the tasks that feed it, for ever.
        """
        cpus, gpus, fitting = self._fitting()
        if self.workers > fitting and self.wait_for_nodes:
            self._await_nodes()
            cpus, gpus, fitting = self._fitting()
        wanted = self.workers or max(1, min(fitting, math.floor(fitting * 0.75) or 1))
        if wanted > fitting:
            raise UserError(
                f"{wanted} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs do not fit beside "
                f"two readers of {self.reader_cpus:g} into {cpus:g} CPUs and {gpus:g} GPUs; lower "
                f"--resources.workers to {max(fitting, 0)} or --resources.cpus"
            )
        return wanted

    def at_most(self) -> int:
        """How many detectors a run may grow to on the nodes that are there."""
        return max(self.count(), min(self.max_workers, self._fitting()[2]))

    def _fitting(self) -> tuple[float, float, int]:
        """CPUs and GPUs of the cluster as it is, and how many workers these hold."""
        total = _resources()
        cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
        fitting = (
            math.floor((cpus - 2 * self.reader_cpus) / self.cpus)
            if self.cpus
            else self.workers or 1
        )
        if self.gpus:
            fitting = min(fitting, math.floor(gpus / self.gpus))
        return cpus, gpus, fitting

    def _await_nodes(self) -> None:
        """Ask for room, wait for it, and give it back; what dies meanwhile asks no longer."""
        log.warning(
            "waiting up to %g s for nodes that hold %d workers", self.wait_for_nodes, self.workers
        )
        worker = {"CPU": self.cpus, "GPU": self.gpus}
        bundles = [worker] * self.workers + [{"CPU": self.reader_cpus}] * 2
        asked = [{name: n for name, n in bundle.items() if n} for bundle in bundles]
        group = placement_group([bundle for bundle in asked if bundle])
        group.wait(math.ceil(self.wait_for_nodes))  # it takes whole seconds
        remove_placement_group(group)

    def reading(self, workers: int) -> int:
        """How many reading tasks run at once, such that drawing maps finds room beside them.

        Where detectors may become more, so may these; Ray Data's budgets then keep that room.
        """
        free = _resources().get("CPU", 0.0) - workers * self.cpus
        return max(1, math.floor(free / self.reader_cpus) - 1) * -(
            -max(self.max_workers, workers) // workers
        )


@contextlib.contextmanager
def connected(address: str | None = None, cpus: int | None = None) -> Iterator[None]:
    """Be on a cluster: at `address`, at RAY_ADDRESS (set for submitted jobs), or one of our own.

    An own cluster ends with the context. Ray's own lines stay out of the way.
    """
    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # The core worker prints lines of its own to the driver's screen.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    own: dict[str, Any] = {}
    if where == "local":
        own = {"num_cpus": cpus, "include_dashboard": False}
    with _no_stderr():  # ... and a line about the variable that stops them
        ray.init(
            address=where,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONWARNINGS": "ignore"}},
            **own,
        )
    quiet()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Close the screen to lines that native code writes; failures still raise."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def quiet() -> None:
    """Keep Ray Data's bars and blocks of log lines off: jobs show progress of their own."""
    # Bounds on retries have no named parameter yet; pyproject.toml stops before they change.
    warnings.filterwarnings("ignore", message=".*ray_remote_args")
    # A short inventory has fewer blocks than there are workers, which is no one's worry.
    warnings.filterwarnings(
        "ignore", message="The (min|max)imum number of concurrent (task|actor)s"
    )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
