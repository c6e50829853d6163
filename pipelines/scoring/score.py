"""Scoring: every image of an inventory ends as exactly one row, bad ones included."""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from ops.images.fetch import FetchSettings
from ops.progress import ProgressCallback
from ops.storage import files
from pipelines.cluster.failure_limit import TooManyFailures, max_failures
from pipelines.cluster.isolate import process_isolated
from pipelines.cluster.resources import Resources
from pipelines.cluster.timeouts import Stalled
from pipelines.scoring.chunks import ROWS, BrokenRun, Chunks
from pipelines.scoring.deduplicate import ScoreCache
from pipelines.scoring.publish import publish, top_maps
from pipelines.scoring.read_stage import carried, slices
from pipelines.scoring.run import Run, described, finished
from pipelines.scoring.stream import Chain, batches, drawing, positioned

log = logging.getLogger(__name__)
_STREAMS = 3  # how often a stream may begin; then what is missing is scored by itself


def score(
    run: Run,
    fetch: FetchSettings,
    resources: Resources,
    max_failed: str,
    watch: ProgressCallback,
    score_cache: ScoreCache | None = None,
) -> dict[str, Any]:
    """Score what is missing of a run, check all of it, publish it; returns the run's totals.

    Images whose bytes `score_cache` knows get what these bytes were given before. A finished run is
    left as it is. Raises TooManyFailures, or Stalled if nothing was finished for too long, with
    everything scored so far kept; BrokenRun, with nothing kept.
    """
    if totals := finished(run):
        return totals
    started = datetime.datetime.now(datetime.UTC)
    record = described(run, fetch, started)
    files.write_json(run.out.run(run.run_id), record)
    # The mark that a run is under way; also what makes its night be found again.
    files.write_bytes(files.join(run.out.work(run.run_id), "started"), b"")
    draw = drawing(run.model.card, run.out, run.settings.policy, run.settings.overlays)
    chain = Chain(run.model, draw, fetch, resources)
    chunks = Chunks(run.out, run.run_id, run.inventory, run.settings.chunk_rows)
    resumed = chunks.done
    limit = max_failures(max_failed, len(run.inventory))
    counts = _fill(run, chain, chunks, limit, watch, score_cache)
    drawn = top_maps(run, chain, chunks) if run.settings.top else None
    try:
        published = publish(run, chunks, drawn)
    except BrokenRun as broken:
        # Else every later start would find the same.
        files.remove_folder(run.out.work(run.run_id))
        raise BrokenRun(
            f"{broken}. What was scored of this run is dropped: start the same command again to "
            "score its images anew"
        ) from None
    seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
    totals = {
        "images": published,
        "statuses": dict(sorted(chunks.statuses.items())),
        "failed": chunks.failed,
        "anomalous": chunks.anomalous,
        "maps_beyond_scale": counts["saturated"],
        "copied": score_cache.copied if score_cache else 0,
        "retries": counts["retries"],
        "resumed": resumed,
        "seconds": round(seconds, 3),
        "images_per_second": round((published - resumed) / max(seconds, 1e-9), 3),
        "table": run.out.table(run.night, run.run_id),
    }
    files.write_json(run.out.run(run.run_id), {**record, "totals": totals})
    files.remove_folder(run.out.work(run.run_id))
    return totals


def _fill(
    run: Run,
    chain: Chain,
    chunks: Chunks,
    limit: int,
    watch: ProgressCallback,
    score_cache: ScoreCache | None = None,
) -> Counter[str]:
    """Score every row that has none yet.

    Returns how many maps went beyond the scale (`saturated`), and how often reads were repeated
    (`retries`).
    """
    total, counts = len(run.inventory), Counter[str]()

    def judge() -> None:
        if chunks.failed > limit:
            raise TooManyFailures(
                f"{chunks.failed} of {chunks.done} images failed, more than --max_failed allows "
                f"({limit}): {_worst(chunks)}. The rows scored so far are kept: mend the cause, or "
                "raise --max_failed, and start the same command again"
            )

    def take(rows: pa.Table) -> None:
        counts.update({name: pc.sum(rows[name]).as_py() or 0 for name in ("saturated", "retries")})
        rows = _score_rows(run, rows)
        chunks.add(score_cache.completed(rows) if score_cache else rows)
        watch("score", chunks.done, total, chunks.failed)
        judge()

    watch("score", chunks.done, total, chunks.failed)
    try:
        if score_cache:
            for rows in _streamed(run, replace(chain, known=score_cache.contents()), chunks):
                take(rows)
        if not score_cache or score_cache.lost:
            for rows in _streamed(run, chain, chunks):
                take(rows)
        # What fell out of the stream lost its workers; each is tried again by itself.
        for start, stop in list(chunks.missing()):
            for begin in range(start, stop, chain.resources.batch):
                group = carried(run.inventory, begin, min(begin + chain.resources.batch, stop))
                for rows in process_isolated(chain, group):
                    take(rows)
        judge()  # also what an earlier attempt left complete
    except Stalled as stalled:
        chunks.keep()
        raise Stalled(
            f"{total - chunks.done} of {total} images have no row yet: {stalled}. The rows scored "
            "so far are kept: mend the cluster, or raise --resources.stall_timeout, and start the "
            "same command again"
        ) from None
    except BaseException:
        chunks.keep()
        raise
    return counts


def _worst(chunks: Chunks) -> str:
    failed = {k: v for k, v in chunks.statuses.items() if k != "ok"}
    return ", ".join(f"{count} {status}" for status, count in sorted(failed.items()))


def _streamed(run: Run, chain: Chain, chunks: Chunks) -> Iterator[pa.Table]:
    for _ in range(_STREAMS):
        source = slices(run.inventory, list(chunks.missing()), max(chain.resources.batch, 32))
        if source is None:
            return
        stream = chain.stream(*source)
        # Blocks whose workers died are left out instead of failing all: `Chunks` knows what is
        # missing.
        stream.context.max_errored_blocks = -1
        try:
            yield from batches(stream)
            return
        except ray.exceptions.RayError as error:
            # A block that was done, and whose node was lost before it came here.
            log.warning("the stream broke off, and begins anew with what is missing: %s", error)


def _score_rows(run: Run, rows: pa.Table) -> pa.Table:
    """Rows of the chain with the columns that tell run, model and time."""
    count = len(rows)
    now = datetime.datetime.now(datetime.UTC)
    rows = positioned(rows)
    rows = rows.append_column("model_id", pa.array([run.model.card.model_id] * count))
    rows = rows.append_column("run_id", pa.array([run.run_id] * count))
    rows = rows.append_column("scored_at", pa.array([now] * count, pa.timestamp("ms", "UTC")))
    return rows.select(ROWS.names).cast(ROWS)
