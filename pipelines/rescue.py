"""Images that took their workers down, or held them, are scored once more, by themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray

from ops import scores
from pipelines.chain import Chain
from pipelines.cluster import offered
from pipelines.watchdog import Stalled, limited, step_limit

_SLOW = "it takes longer than the {:g} seconds that a step may take, a sixth of --slots.stall"
_CRASH = "every process that touched it died or failed; the last one said: "


@ray.remote(max_retries=0)
def _alone(chain: Chain, rows: pa.Table) -> pa.Table:
    with limited(step_limit(chain.slots.stall)):
        return chain.alone(rows)


def rescued(chain: Chain, rows: pa.Table) -> Iterator[pa.Table]:
    """Score rows in processes of their own, halving what fails, until the culprits are alone.

    Raises Stalled if the cluster has no room for such a process.
    """
    task = _alone.options(num_cpus=chain.slots.cpus, num_gpus=chain.slots.gpus)
    stall = chain.slots.stall
    waiting = [rows]
    while waiting:
        group = waiting.pop()
        began = time.monotonic()
        scored = task.remote(chain, group)
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
    values: dict[str, list[Any]] = {name: [None] for name in scores.SCHEMA.names} | {
        "saturated": [False]
    }
    values |= {"status": ["crashed_worker"], "reason": [reason]}
    blank = pa.table({k: pa.array(v) for k, v in values.items() if k not in row.schema.names})
    for name in blank.schema.names:
        if name not in {"model_id", "run_id", "scored_at"}:
            row = row.append_column(name, blank[name])
    return row
