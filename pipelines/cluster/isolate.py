"""Images that took their workers down, or held them, are scored once more, by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa
import ray

from ops.results import score_table
from pipelines.cluster.resources import Resources, offered
from pipelines.cluster.timeouts import Stalled, limited, step_limit

_SLOW = (
    "it takes longer than the {:g} seconds that a step may take, a sixth of "
    "--resources.stall_timeout"
)
_CRASH = "every process that touched it died or failed; the last one said: "


class Steps(Protocol):
    """What is to be done to rows, such as a `Chain`."""

    @property
    def resources(self) -> Resources:
        """What one process of it takes."""

    def alone(self, rows: pa.Table) -> pa.Table:
        """Do it in this process; rows come out with a status."""


@ray.remote(max_retries=0)
def _alone(steps: Steps, rows: pa.Table) -> pa.Table:
    with limited(step_limit(steps.resources.stall_timeout)):
        return steps.alone(rows)


def process_isolated(steps: Steps, rows: pa.Table) -> Iterator[pa.Table]:
    """Process rows in processes of their own, halving what fails, until the culprits are alone.

    Raises Stalled if the cluster has no room for such a process.
    """
    task = _alone.options(num_cpus=steps.resources.cpus, num_gpus=steps.resources.gpus)
    stall = steps.resources.stall_timeout
    waiting = [rows]
    while waiting:
        group = waiting.pop()
        began = time.monotonic()
        scored = task.remote(steps, group)
        try:
            yield ray.get(scored, timeout=stall or None)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(scored, force=True)
            what = f"no process could be started for {stall:g} seconds; {offered()}"
            raise Stalled(what) from None
        except ray.exceptions.RayError as error:
            if len(group) > 1:
                half = len(group) // 2
                waiting += [group.slice(half), group.slice(0, half)]
                continue
            what = str(error).strip().splitlines()[-1][:200] if str(error).strip() else ""
            slow = stall and time.monotonic() - began >= step_limit(stall)
            yield _crashed(group, _SLOW.format(step_limit(stall)) if slow else _CRASH + what)


def _crashed(row: pa.Table, reason: str) -> pa.Table:
    values: dict[str, list[Any]] = {name: [None] for name in score_table.SCHEMA.names} | {
        "saturated": [False],
        "retries": [0],
    }
    values |= {"status": ["crashed_worker"], "reason": [reason]}
    blank = pa.table({k: pa.array(v) for k, v in values.items() if k not in row.schema.names})
    for name in blank.schema.names:
        if name not in {"model_id", "run_id", "scored_at"}:
            row = row.append_column(name, blank[name])
    return row
