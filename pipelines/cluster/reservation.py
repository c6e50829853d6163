"""What a job uses of a cluster is reserved as a whole, so jobs never wait for each other's parts.

A job that took its CPUs one by one could take some, wait for those of another job, and be waited
for by that one. A placement group is reserved whole or not at all. A job has two, one of workers
and one of readers, and gives one back if the other is not placed within seconds. Ray removes them
when the job's driver dies.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ray.data import DataContext, ExecutionResources
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ops.errors import RunError
from pipelines.cluster.answers import GRACE, STATE, answered, try_for
from pipelines.cluster.resources import Resources, describe_cluster

log = logging.getLogger(__name__)
_PLACING = 5.0  # seconds in which Ray places a group for which there is room
_SETTLING = 4.0  # seconds in which what this job's last step held becomes free
_BETWEEN_MESSAGES = 300.0
#: A resource of the head, of which every cluster has exactly one. Who holds more than a half of it
#: is alone.
_TURN = {"node:__internal_head__": 0.6}


class NoRoom(RunError):
    """Other jobs held the cluster for longer than --resources.wait_for_room."""


@dataclass(frozen=True)
class Reserved(Resources):
    """Resources that are reserved: `workers` and `readers` run within their groups.

    Of a pool that autoscales, further workers and readers run on what else is free.
    """

    readers: int = 2
    groups: Mapping[str, PlacementGroup] = field(default_factory=dict)
    """Of "workers", unless they need neither CPU nor GPU, and of "readers"."""

    def count(self) -> int:
        """The number of workers."""
        return self.workers

    def max_readers(self, workers: int) -> int:
        """The most reading tasks at once, such that one task that writes maps has a CPU share."""
        if self._autoscales:
            return super().max_readers(workers)
        return max(1, self.readers - 1)

    @property
    def _autoscales(self) -> bool:
        return self.max_workers > self.workers > 0

    def worker_options(self) -> dict[str, Any]:
        """Options of Ray for processes that run the network: where they run."""
        if not self._autoscales:
            return self._within("workers")
        started = 0

        def where() -> dict[str, Any]:
            nonlocal started
            started += 1
            return self._within("workers") if started <= self.workers else {}

        return {"ray_remote_args_fn": where}

    def reader_options(self) -> dict[str, Any]:
        """Options of Ray for tasks that read or write: where they run."""
        if not self._autoscales:
            return self._within("readers")
        looked, free = 0.0, 0.0

        def where() -> dict[str, Any]:
            # A task waits for other jobs only if they were faster.
            nonlocal looked, free
            if time.monotonic() - looked > 1:
                looked, free = time.monotonic(), float(self.free_reader_shares(0))
            free -= 1
            return {} if free >= 0 else self._within("readers")

        return {"ray_remote_args_fn": where}

    def isolated_options(self) -> dict[str, Any]:
        """Options of Ray for single tasks, after a stream: where they run."""
        return self._within("workers")

    def _within(self, name: str) -> dict[str, Any]:
        group = self.groups.get(name)
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group)} if group else {}

    def limit(self, context: DataContext) -> None:
        """Tell Ray Data what a stream may use: more tasks would only wait for their turn."""
        if not self._autoscales:
            context.execution_options.resource_limits = ExecutionResources.for_limits(
                cpu=self.workers * self.cpus + self.readers * self.reader_cpus,
                gpu=self.workers * self.gpus,
            )


@contextlib.contextmanager
def reserved(resources: Resources) -> Iterator[Reserved]:
    """Reserve workers and readers for scoring; waits while other jobs hold the cluster.

    Raises UserError if they do not fit into the cluster even while it is free, and NoRoom.
    """

    def attempt(workers: int) -> Reserved | None:
        readers = resources.free_reader_shares(workers)
        return _placed(resources, resources.request(workers, readers), workers, readers)

    with _held(_acquire(resources, attempt)) as found:
        yield found


@contextlib.contextmanager
def reserved_readers(resources: Resources) -> Iterator[Reserved]:
    """Reserve readers alone, for steps without a network. Raises UserError, and NoRoom."""
    only = replace(resources, workers=1, max_workers=0, cpus=resources.reader_cpus, gpus=0.0)
    with reserved(only) as found:
        yield found


@contextlib.contextmanager
def reserved_for_fit(resources: Resources) -> Iterator[tuple[Reserved, contextlib.ExitStack]]:
    """Reserve the readers of a fit; the number of its workers is what is free beside them.

    Ray Train reserves its workers itself, as a whole. Two fits whose readers were reserved could
    wait for each other's, so one fit at a time is between these two steps: it has the turn, which
    closing the stack gives back. Raises UserError, and NoRoom.
    """
    fixed = replace(resources, max_workers=0)

    def attempt(workers: int) -> Reserved | None:
        readers = fixed.free_reader_shares(workers)
        return _placed(fixed, fixed.request(0, readers), workers, readers)

    with contextlib.ExitStack() as turn:
        turn.enter_context(_turn(resources))
        with _held(_acquire(fixed, attempt)) as found:
            yield found, turn


@contextlib.contextmanager
def _turn(resources: Resources) -> Iterator[None]:
    deadline = time.monotonic() + resources.wait_for_room
    group = answered(lambda: placement_group([_TURN]), STATE, "a turn")

    def has_turn() -> bool:
        return bool(answered(lambda: group.wait(int(_PLACING)), STATE, "a turn"))

    try:
        if not has_turn():
            log.warning("waiting up to %g s for another fit to start", resources.wait_for_room)
            while not has_turn():
                if time.monotonic() > deadline:
                    raise _no_room(resources, "another fit on the cluster has not started")
        yield
    finally:
        _remove(group)


@contextlib.contextmanager
def _held(found: Reserved) -> Iterator[Reserved]:
    try:
        yield found
    finally:
        for group in found.groups.values():
            _remove(group)


def _remove(group: PlacementGroup) -> None:
    # If the cluster does not answer, Ray removes the group once this process has ended.
    try_for(lambda: remove_placement_group(group), GRACE, "the end of a reservation")


def _placed(
    resources: Resources, groups: Mapping[str, PlacementGroup], workers: int, readers: int
) -> Reserved | None:
    """The resources with their groups, once Ray has placed them; None if that fails."""
    placed = False
    try:
        placed = all(group.wait(int(_PLACING)) for group in groups.values())
    finally:
        if not placed:
            for group in groups.values():
                remove_placement_group(group)
    if not placed:
        return None
    settings = asdict(resources) | {"workers": workers}
    return Reserved(**settings, readers=readers, groups=groups)


def _acquire(resources: Resources, attempt: Callable[[int], Reserved | None]) -> Reserved:
    """Try again and again until there is room. Raises UserError, and NoRoom."""
    began, told = time.monotonic(), 0.0
    largest = 2**31
    while True:
        wanted = resources.count()  # nodes may have left or joined; raises UserError
        workers = resources.count_free()
        workers = workers if resources.workers else min(workers, largest)
        now = time.monotonic()
        if workers == wanted or (workers and now - began >= _SETTLING):
            if found := answered(functools.partial(attempt, workers), STATE, "a reservation"):
                _tell_size(workers, wanted)
                return found
            # What is free lies in pieces that are too small, or another job was faster.
            largest = max(1, workers - 1)
        elif not workers:
            largest = 2**31
        if now - began > max(resources.wait_for_room, _SETTLING):
            raise _no_room(resources, f"{wanted} workers and two readers found no room")
        if now - began >= _SETTLING and now - told > _BETWEEN_MESSAGES:
            told = now
            log.warning(
                "waiting up to %g s for room for %d workers and two readers: %s",
                resources.wait_for_room,
                resources.workers or 1,
                describe_cluster(),
            )
        time.sleep(0.5)


def _tell_size(workers: int, wanted: int) -> None:
    if workers < wanted:
        log.warning(
            "%d workers are started and not %d, because other jobs hold a part of the cluster",
            workers,
            wanted,
        )


def _no_room(resources: Resources, what: str) -> NoRoom:
    return NoRoom(
        f"{what} within {resources.wait_for_room:g} seconds; {describe_cluster()}. Start the same "
        "command again when other jobs have ended, lower --resources.workers, or raise "
        "--resources.wait_for_room"
    )
