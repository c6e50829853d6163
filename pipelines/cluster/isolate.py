"""Stream rows through a cluster; process what the stream lost again, in isolated processes.

A crash takes down a worker process with all images of its batch. A stream drops such a batch after
bounded retries, so that the other batches are finished. Rows without a result are then processed
in processes of their own, and groups that fail are halved until each image that crashes or hangs
is alone. That image becomes a row with status `crashed_worker`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset
from ray.data.exceptions import ExecutionTimeoutError

from ops.errors import RunError
from ops.results import score_table
from ops.storage.storage_errors import DEVICE_ERRORS
from pipelines.cluster.answers import GRACE, AwakeClock, answered, try_for
from pipelines.cluster.resources import Resources, describe_cluster, lives
from pipelines.cluster.timeouts import Stalled, step_timeout, time_limit

log = logging.getLogger(__name__)
_MAX_STREAMS = 3  # how often a stream is started before the missing rows are isolated
_SLOW = "a step took longer than {:g} seconds (--resources.stall_timeout / 6)"
_CRASH = "every process that handled it died or failed; last error: "


#: What Ray raises if its object store cannot spill any more.
_FULL = (ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError)


class FullDisk(RunError):
    """A node has no room on its disk; no image is at fault."""


class Steps(Protocol):
    """What is done to blocks of rows, such as `ScoringStream`."""

    @property
    def resources(self) -> Resources:
        """The resources of a process that runs the steps."""

    def apply(self, blocks: Dataset) -> Dataset:
        """Run the steps on the cluster."""

    def load(self, block: pa.Table) -> pa.Table:
        """Return the rows that a block stands for; the block itself if it holds them."""

    def run_locally(self, rows: pa.Table) -> pa.Table:
        """Run the steps in this process; each row comes out with a status."""


#: Returns the blocks of rows that have no result yet. It is called anew whenever the results so
#: far have been consumed, so the consumer must record each result before it asks for the next one.
MissingBlocks = Callable[[], list[pa.Table]]


def process_rows(steps: Steps, rows: pa.Table) -> Iterator[pa.Table]:
    """Process all rows of a table with unique `image_id`, in any order. Raises Stalled."""
    done: set[str] = set()

    def missing() -> list[pa.Table]:
        is_done = pc.is_in(rows["image_id"], pa.array(sorted(done), pa.string()))
        rest, size = rows.filter(pc.invert(is_done)), steps.resources.images_per_batch
        return [rest.slice(start, size) for start in range(0, len(rest), size)]

    for processed in process_missing(steps, missing):
        done.update(processed["image_id"].to_pylist())
        yield processed


def process_missing(steps: Steps, missing: MissingBlocks) -> Iterator[pa.Table]:
    """Process what is missing, in a stream, then isolated. Raises Stalled."""
    yield from stream_missing(steps, missing)
    yield from isolate_missing(steps, missing)


def stream_missing(steps: Steps, missing: MissingBlocks) -> Iterator[pa.Table]:
    """Stream the missing blocks; those whose workers crash again and again do not come out.

    A stream breaks if a finished block is lost with its node; it is then started again with what
    is missing, a bounded number of times. Raises Stalled.
    """
    for _ in range(_MAX_STREAMS):
        if not (blocks := missing()):
            return
        # Blocks at hand, not a range to read: tasks that read wait for a whole free CPU, for ever
        # if other stages have left less.
        stream = steps.apply(ray.data.from_blocks(blocks))
        stream.context.max_errored_blocks = -1  # drop blocks that failed, go on with the others
        try:
            yield from _batches(stream)
            return
        except ray.exceptions.RayError as error:
            log.warning("the stream broke off and starts again with the missing rows: %s", error)


def _batches(stream: Dataset) -> Iterator[pa.Table]:
    batches = iter(stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    waited, clock = max(0.0, stream.context.execution_no_progress_timeout_s), AwakeClock()
    try:
        # Ray Data looks at the time itself and knows the progress of each stage, if Ray answers it.
        limit = waited and waited + GRACE
        while (batch := answered(lambda: next(batches, None), limit, "images", lives)) is not None:
            yield cast("pa.Table", batch)
    except ExecutionTimeoutError:
        if clock.asleep() > waited / 2:
            raise ray.exceptions.RayError(
                "this process was stopped, or its machine slept"
            ) from None
        what = f"no image was finished for {waited:g} seconds; {describe_cluster()}"
        raise Stalled(what) from None
    finally:
        clock.end()


def isolate_missing(steps: Steps, missing: MissingBlocks) -> Iterator[pa.Table]:
    """Process the missing rows in isolated processes, a batch at a time. Raises Stalled."""
    size = steps.resources.images_per_batch
    for block in missing():
        rows = steps.load(block)
        for start in range(0, len(rows), size):
            yield from process_isolated(steps, rows.slice(start, size))


@ray.remote(max_retries=0)
def _run_isolated(steps: Steps, rows: pa.Table) -> pa.Table:
    with time_limit(step_timeout(steps.resources.stall_timeout)):
        return steps.run_locally(rows)


def process_isolated(steps: Steps, rows: pa.Table) -> Iterator[pa.Table]:
    """Process rows in a process of their own, and halve groups that fail down to single rows.

    A single row that crashes or hangs comes out with status `crashed_worker`. Raises Stalled if the
    cluster cannot start a process, and FullDisk.
    """
    resources, stall_timeout = steps.resources, steps.resources.stall_timeout
    where = resources.isolated_options()
    task = _run_isolated.options(num_cpus=resources.cpus, num_gpus=resources.gpus, **where)
    groups = [rows]
    while groups:
        group = groups.pop()
        began = time.monotonic()
        result = task.remote(steps, group)
        try:
            limit = stall_timeout and stall_timeout + GRACE
            get = functools.partial(ray.get, result, timeout=stall_timeout or None)
            processed = answered(get, limit, "images")
        except ray.exceptions.GetTimeoutError:
            try_for(functools.partial(ray.cancel, result, force=True), GRACE, "an end of a task")
            raise Stalled(
                f"no process could be started for {stall_timeout:g} seconds; {describe_cluster()}"
            ) from None
        except ray.exceptions.RayError as error:
            _check_disk(error)
            if len(group) > 1:
                half = len(group) // 2
                groups += [group.slice(half), group.slice(0, half)]
                continue
            slow = stall_timeout and time.monotonic() - began >= step_timeout(stall_timeout)
            last_line = (str(error).strip().splitlines() or [""])[-1][:200]
            reason = _SLOW.format(step_timeout(stall_timeout)) if slow else _CRASH + last_line
            processed = _crashed(group, reason)
        yield processed


def _check_disk(error: ray.exceptions.RayError) -> None:
    """Raise FullDisk if the disk of a node, and no image, is why a process failed."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, _FULL) or (isinstance(cause, OSError) and cause.errno in DEVICE_ERRORS):
        told = (str(cause).strip().splitlines() or [""])[0]
        raise FullDisk(
            f"a node of the cluster has no room for what it works on, or its disk fails: {told}. "
            "The rows scored so far are kept: make room on its disk (see --temp-dir of ray start) "
            "and start the same command again"
        ) from None


def _crashed(row: pa.Table, reason: str) -> pa.Table:
    """A row as the steps would return it, with status `crashed_worker`."""
    values: dict[str, list[Any]] = {name: [None] for name in score_table.SCHEMA.names} | {
        "saturated": [False],
        "retries": [0],
        "map_error": [None],
        "regions": [None],
        "regions_hidden": [None],
    }
    values |= {"status": ["crashed_worker"], "reason": [reason]}
    blank = pa.table({k: pa.array(v) for k, v in values.items() if k not in row.schema.names})
    for name in blank.schema.names:
        if name not in {"model_id", "run_id", "run_number", "scored_at"}:
            row = row.append_column(name, blank[name])
    return row
