"""Signs of life of a fit's workers: Ray Train waits for ever for workers that hang or find no room.

Each worker sends a sign every few seconds, from a thread, also while it computes. The driver ends
the fit if a worker is silent for too long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from pipelines.cluster.answers import STATE, answered
from pipelines.cluster.reservation import Reserved
from pipelines.cluster.resources import describe_cluster
from pipelines.cluster.timeouts import Stalled

log = logging.getLogger(__name__)
_EVERY = 5.0  # seconds
_STARTING = 120.0  # seconds until a fit says that it waits for its workers
_REMEDY = "Start the same command again when the cluster has room, or lower --resources.workers"


def send_signs(coordinator: Any, rank: int) -> None:
    """Send signs of life of this worker, until its process ends."""

    def send() -> None:
        while True:
            coordinator.sign_of_life.remote(rank)
            time.sleep(_EVERY)

    threading.Thread(target=send, name="signs-of-life", daemon=True).start()


class Watch:
    """Looks whether all workers of a fit live; call it every second or so."""

    def __init__(
        self, coordinator: Any, resources: Reserved, on_start: Callable[[], object]
    ) -> None:
        """`on_start` is called once all workers have started."""
        self._coordinator, self._resources, self._on_start = coordinator, resources, on_start
        self._began = time.monotonic()
        self._started = self._told = False

    def __call__(self) -> None:
        """Raise Stalled if a worker is silent for longer than it may be."""
        signs = answered(
            lambda: ray.get(self._coordinator.seconds_of_silence.remote()), STATE, "progress"
        )
        if len(signs) < self._resources.workers:
            self._wait_for_start(len(signs))
            return
        if not self._started:
            self._started = True
            self._on_start()
        rank, silence = max(signs.items(), key=lambda sign: sign[1])
        limit = self._resources.stall_timeout
        if limit and silence > limit:
            raise Stalled(
                f"worker {rank} of the fit gave no sign of life for {silence:.0f} seconds; "
                f"{describe_cluster()}. {_REMEDY}"
            )

    def _wait_for_start(self, started: int) -> None:
        waited = time.monotonic() - self._began
        resources = self._resources
        if waited > _STARTING and not self._told:
            self._told = True
            log.warning(
                "%d of %d workers of the fit have not started after %.0f seconds; the fit waits "
                "for room, or for a machine that is slow: %s",
                *(resources.workers - started, resources.workers, waited, describe_cluster()),
            )
        if waited > resources.wait_for_room + _STARTING:
            raise Stalled(
                f"{resources.workers} workers of the fit found no room for {waited:.0f} seconds; "
                f"{describe_cluster()}. {_REMEDY}, or raise --resources.wait_for_room"
            )
