"""Scoring: every image of an inventory becomes exactly one row, unreadable images included."""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import FetchSettings
from ops.failure import TooManyFailures, max_failures
from ops.progress import ProgressCallback
from ops.storage import files
from pipelines.cluster.isolate import isolate_missing, stream_missing
from pipelines.cluster.reservation import reserved
from pipelines.cluster.resources import Resources
from pipelines.cluster.timeouts import Stalled
from pipelines.scoring.chunks import ROWS, Chunks, InvalidRun
from pipelines.scoring.deduplicate import ScoreCache
from pipelines.scoring.publish import MapsMissing, publish, top_maps
from pipelines.scoring.read_stage import span_blocks
from pipelines.scoring.resume import finished_totals, lost_table
from pipelines.scoring.run import Run, keep_masks, keep_part_calibrations, new_record
from pipelines.scoring.run_metrics import RunMetrics
from pipelines.scoring.stream import ScoringStream, draw_step
from pipelines.tables.lock import LostLock

log = logging.getLogger(__name__)

#: The most images that one task reads, unless batches are larger.
_TASK_ROWS = 128


def score(
    run: Run,
    fetch: FetchSettings,
    resources: Resources,
    max_failed: str,
    progress: ProgressCallback,
    score_cache: ScoreCache | None = None,
    check_lock: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Score the missing rows of a run, verify and publish its table; returns the run's totals.

    The caller holds the lock of the output folder; `check_lock` raises LostLock if it was lost, and
    is called with the progress and before anything is published.
    Images whose content `score_cache` knows get a copy of that content's score. A finished run is
    left unchanged. Raises TooManyFailures, MapsMissing, Stalled, NoRoom, or FullDisk, and keeps
    the rows scored so far. Raises InvalidRun and keeps none.
    """
    if totals := finished_totals(run):
        return totals
    if lost_table(run):
        log.warning("run %s was finished, but its table is lost; it is scored again", run.run_id)
    started = datetime.datetime.now(datetime.UTC)
    record = new_record(run, fetch, started)
    files.write_json(run.out.run(run.run_id), record)
    keep_part_calibrations(run)
    keep_masks(run)
    # Marks the run as unfinished, so that the next attempt finds its night.
    files.write_bytes(files.join(run.out.work(run.run_id), "started"), b"")
    chunks = Chunks(run.out, run.run_id, run.inventory, run.settings.chunk_rows)
    resumed = chunks.done
    draw = draw_step(
        run.model,
        run.out,
        run.settings.policy,
        run.settings.overlays,
        regions=run.settings.regions,
        thresholds=run.thresholds,
    )
    limit = max_failures(max_failed, len(run.inventory))

    def progress_under_lock(stage: str, done: int, total: int, failed: int = 0, /) -> None:
        check_lock()
        progress(stage, done, total, failed)

    with reserved(resources) as held:
        stream = ScoringStream(run.model, draw, fetch, held, run.inventory)
        counts = score_missing(run, stream, chunks, limit, progress_under_lock, score_cache)
        check_lock()
        published = _publish(run, stream, chunks)
    seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
    totals = {
        "images": published,
        "statuses": dict(sorted(chunks.statuses.items())),
        "failed": chunks.failed,
        "anomalous": chunks.anomalous,
        "regions": chunks.regions,
        "regions_hidden": chunks.regions_hidden,
        "maps_beyond_scale": counts["saturated"],
        "copied": score_cache.copied if score_cache else 0,
        "retries": counts["retries"],
        "resumed": resumed,
        "seconds": round(seconds, 3),
        "images_per_second": round((published - resumed) / max(seconds, 1e-9), 3),
        "table": run.out.table(run.night, run.run_id),
    }
    check_lock()
    files.write_json(run.out.run(run.run_id), {**record, "totals": totals})
    files.remove_folder(run.out.work(run.run_id))
    return totals


def _publish(run: Run, stream: ScoringStream, chunks: Chunks) -> int:
    """Publish the table; returns its number of rows. Raises InvalidRun."""
    try:
        maps = top_maps(run, stream, chunks) if run.settings.top else None
        return publish(run, chunks, maps)
    except InvalidRun as invalid:
        # Invalid chunks would fail every later attempt too.
        files.remove_folder(run.out.work(run.run_id))
        raise InvalidRun(
            f"{invalid}. The rows scored so far are deleted: start the same command again to "
            "score all images of the run again"
        ) from None


def score_missing(
    run: Run,
    stream: ScoringStream,
    chunks: Chunks,
    max_failed: int,
    progress: ProgressCallback,
    score_cache: ScoreCache | None = None,
) -> Counter[str]:
    """Score every row that is missing from `chunks`.

    Returns the number of maps that exceed the scale (`saturated`) and of repeated reads
    (`retries`). Raises TooManyFailures, MapsMissing, or Stalled; rows of unfinished chunks are
    saved then.
    """
    total, counts = len(run.inventory), Counter[str]()
    metrics = RunMetrics(run.out.root, chunks)
    progress("score", chunks.done, total, chunks.failed)
    try:
        for result in _scored(stream, chunks, score_cache):
            counts.update({n: pc.sum(result[n]).as_py() or 0 for n in ("saturated", "retries")})
            rows = _score_rows(run, result)
            rows = score_cache.complete(rows) if score_cache else rows
            chunks.add(rows)
            metrics.add(rows)
            progress("score", chunks.done, total, chunks.failed)
            _check_failures(chunks, max_failed)
        _check_failures(chunks, max_failed)  # an earlier attempt may have left nothing to score
        if chunks.without_map:
            raise MapsMissing(chunks.without_map, chunks.map_error)
    except Stalled as stalled:
        chunks.save_partial()
        raise Stalled(
            f"{total - chunks.done} of {total} images have no row yet: {stalled}. The rows scored "
            "so far are kept: mend the cluster, or raise --resources.stall_timeout, and start the "
            "same command again"
        ) from None
    except LostLock:  # another process may have the work folder now
        raise
    except BaseException:
        chunks.save_partial()
        raise
    metrics.update()
    return counts


def _scored(
    stream: ScoringStream, chunks: Chunks, score_cache: ScoreCache | None
) -> Iterator[pa.Table]:
    """Results for the rows that are missing from `chunks`, to which the caller adds each one."""

    def missing() -> list[pa.Table]:
        spans = list(chunks.missing())
        total = sum(stop - start for start, stop in spans)
        # A task of many images costs less for each; a small run needs tasks for all readers.
        rows = max(32, min(total // 64, _TASK_ROWS))
        return span_blocks(spans, max(stream.resources.images_per_batch, rows))

    if score_cache:
        yield from stream_missing(replace(stream, known=score_cache.contents()), missing)
    if not score_cache or score_cache.lost:
        yield from stream_missing(stream, missing)
    yield from isolate_missing(stream, missing)


def _check_failures(chunks: Chunks, max_failed: int) -> None:
    if chunks.failed <= max_failed:
        return
    failures = {status: n for status, n in sorted(chunks.statuses.items()) if status != "ok"}
    counts = ", ".join(f"{count} {status}" for status, count in failures.items())
    raise TooManyFailures(
        f"{chunks.failed} of {chunks.done} images failed, more than --max_failed allows "
        f"({max_failed}): {counts}. The rows scored so far are kept: mend the cause, or "
        "raise --max_failed, and start the same command again"
    )


def _score_rows(run: Run, rows: pa.Table) -> pa.Table:
    """Rows of `ROWS`: results with the columns that name model, run and time."""
    count, now = len(rows), datetime.datetime.now(datetime.UTC)
    rows = rows.append_column("model_id", pa.array([run.model.card.model_id] * count))
    rows = rows.append_column("run_id", pa.array([run.run_id] * count))
    rows = rows.append_column("run_number", pa.array([run.number] * count, pa.int64()))
    rows = rows.append_column("scored_at", pa.array([now] * count, pa.timestamp("ms", "UTC")))
    return rows.select(ROWS.names).cast(ROWS)
