"""Scoring: every image of an inventory ends as exactly one row, bad ones included."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from ops import scores, storage, tables
from ops.drawing import Policy
from ops.failure import BrokenPromise
from ops.fetch import FetchSettings
from ops.inventory import Inventory
from ops.layout import Out
from pipelines.chain import Chain, batches, drawing, positioned
from pipelines.cluster import Slots
from pipelines.parts import BrokenRun, Parts
from pipelines.reading import carried, slices
from pipelines.shared import SharedModel
from pipelines.watch import Watch

_CRASH = "every process that touched it died or failed; the last one said: "


class TooManyFailures(BrokenPromise):
    """More images failed than --max-failed allows."""


@dataclass(frozen=True)
class ScoreSettings:
    """Settings of a scoring run that its rows depend on."""

    maps: str = "flagged"
    """Which maps are drawn: none, flagged, all, or top:K for the K highest scores."""
    overlays: bool = False
    """Also draw each map over its image, for people."""
    part_rows: int = 4096
    """Rows of a part: what a killed run may have to repeat, and a row group of the table."""

    def __post_init__(self) -> None:
        """Refuse what is no policy."""
        if not re.fullmatch(r"none|flagged|all|top:[1-9]\d*", self.maps):
            raise ValueError(f"maps {self.maps!r} is none of: none, flagged, all, top:K")
        if self.part_rows < 1:
            raise ValueError(f"part_rows {self.part_rows} must be at least 1")

    @property
    def top(self) -> int:
        """K of top:K, else 0."""
        return int(self.maps[4:]) if self.maps.startswith("top:") else 0

    @property
    def policy(self) -> Policy:
        """What the stream draws; top:K is only known at its end."""
        if self.maps == "flagged":
            return "flagged"
        return "all" if self.maps == "all" else "none"


@dataclass(frozen=True)
class Run:
    """One scoring of one inventory with one model."""

    run_id: str
    night: str
    out: Out
    inventory: Inventory
    model: SharedModel
    settings: ScoreSettings


def max_failures(limit: str, total: int) -> int:
    """How many failures `10`, `5%` or `0.05` allow among `total` images."""
    text = limit.strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else None
        value = float(text.removesuffix("%"))
    except ValueError:
        raise ValueError(
            f"max_failed {limit!r} is neither a count nor a share such as 5%"
        ) from None
    if share is None and "." in text:
        share = value
    if not 0 <= value < math.inf or (share is not None and share > 1):
        raise ValueError(f"max_failed {limit!r} must be a count, or a share from 0% to 100%")
    return int(value) if share is None else int(share * total)


def check(max_failed: str, night: str | None) -> None:
    """Refuse a limit or a date that is none, before anything starts. Raises ValueError."""
    max_failures(max_failed, 0)
    if night is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", night):
        raise ValueError(f"night {night!r} must be a date such as 2026-11-20")


def prepare(
    inventory: Inventory, model: SharedModel, out: Out, settings: ScoreSettings, night: str | None
) -> Run:
    """Name the run, by night and by what it scores with what.

    Without `night` an unfinished run of the same inventory, model and settings is taken up again,
    else tonight's begins.
    """
    check("0", night)
    content = [inventory.content_hash(), model.card.model_id, asdict(settings)]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    if night is None:
        nights = sorted(_unfinished(out, key))
        night = nights[-1] if nights else datetime.datetime.now(datetime.UTC).date().isoformat()
    return Run(f"{night}-{key}", night, out, inventory, model, settings)


def _unfinished(out: Out, key: str) -> list[str]:
    """Nights of runs with this key that are under way; clears up behind those that died late."""
    work = out.work()
    if not storage.is_folder(work):
        return []
    names = {item.name.split("/", 1)[0] for item in storage.listing(work)}
    found = []
    for run_id in sorted(name for name in names if name.endswith(f"-{key}")):
        if _totals(out, run_id):
            storage.remove_folder(out.work(run_id))
        else:
            found.append(run_id[:10])
    return found


def finished(run: Run) -> dict[str, Any] | None:
    """The totals of a run that was published, else None."""
    return _totals(run.out, run.run_id)


def _totals(out: Out, run_id: str) -> dict[str, Any] | None:
    location = out.run(run_id)
    if not storage.exists(location):
        return None
    totals: dict[str, Any] | None = storage.read_json(location).get("totals")
    return totals


def score(
    run: Run, fetch: FetchSettings, slots: Slots, max_failed: str, watch: Watch
) -> dict[str, Any]:
    """Score what is missing of a run, check all of it, publish it; returns the run's totals.

    A finished run is left as it is. Raises TooManyFailures, with everything scored so far kept.
    """
    if totals := finished(run):
        return totals
    started = datetime.datetime.now(datetime.UTC)
    record = _record(run, fetch, started)
    storage.write_json(run.out.run(run.run_id), record)
    # The mark that a run is under way; also what makes its night be found again.
    storage.write_bytes(storage.join(run.out.work(run.run_id), "started"), b"")
    draw = drawing(run.model.card, run.out, run.settings.policy, run.settings.overlays)
    chain = Chain(run.model, draw, fetch, slots)
    parts = Parts(run.out, run.run_id, run.inventory, run.settings.part_rows)
    resumed = parts.done
    saturated = _fill(run, chain, parts, max_failures(max_failed, len(run.inventory)), watch)
    drawn = _top_maps(run, chain, parts) if run.settings.top else None
    published = _publish(run, parts, drawn)
    seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
    totals = {
        "images": published,
        "statuses": dict(sorted(parts.statuses.items())),
        "failed": parts.failed,
        "anomalous": parts.anomalous,
        "maps_beyond_scale": saturated,
        "resumed": resumed,
        "seconds": round(seconds, 3),
        "images_per_second": round((published - resumed) / max(seconds, 1e-9), 3),
        "table": run.out.table(run.night, run.run_id),
    }
    storage.write_json(run.out.run(run.run_id), {**record, "totals": totals})
    storage.remove_folder(run.out.work(run.run_id))
    return totals


def _record(run: Run, fetch: FetchSettings, started: datetime.datetime) -> dict[str, Any]:
    card = run.model.card
    return {
        "run_id": run.run_id,
        "night": run.night,
        "inventory": run.inventory.location,
        "images": len(run.inventory),
        "model_id": card.model_id,
        "method": card.method,
        "settings": asdict(run.settings),
        "input": asdict(card.input),
        "fetch": asdict(fetch),
        "false_alarm_rate": card.false_alarm_rate,
        "started": started.isoformat(timespec="seconds"),
    }


def _fill(run: Run, chain: Chain, parts: Parts, limit: int, watch: Watch) -> int:
    """Score every row that has none yet. Returns how many maps went beyond the scale."""
    total, saturated = len(run.inventory), 0

    def judge() -> None:
        if parts.failed > limit:
            raise TooManyFailures(
                f"{parts.failed} of {parts.done} images failed, more than --max_failed allows "
                f"({limit}): {_worst(parts)}. The rows scored so far are kept: mend the cause, or "
                "raise --max_failed, and start the same command again"
            )

    def take(rows: pa.Table) -> None:
        nonlocal saturated
        saturated += pc.sum(rows["saturated"]).as_py() or 0
        parts.add(_score_rows(run, rows))
        watch("score", parts.done, total, parts.failed)
        judge()

    watch("score", parts.done, total, parts.failed)
    try:
        for rows in _streamed(run, chain, parts):
            take(rows)
        # What fell out of the stream lost its workers; each is tried again by itself.
        for start, stop in list(parts.missing()):
            for begin in range(start, stop, chain.slots.batch):
                group = carried(run.inventory, begin, min(begin + chain.slots.batch, stop))
                for rows in _rescued(chain, group):
                    take(rows)
        judge()  # also what an earlier attempt left complete
    except BaseException:
        parts.keep()
        raise
    return saturated


def _worst(parts: Parts) -> str:
    failed = {k: v for k, v in parts.statuses.items() if k != "ok"}
    return ", ".join(f"{count} {status}" for status, count in sorted(failed.items()))


def _streamed(run: Run, chain: Chain, parts: Parts) -> Iterator[pa.Table]:
    source = slices(run.inventory, list(parts.missing()), max(chain.slots.batch, 32))
    if source is None:
        return
    stream = chain.stream(*source)
    # Blocks whose workers died are left out instead of failing all: `Parts` knows what is missing.
    stream.context.max_errored_blocks = -1
    yield from batches(stream)


def _score_rows(run: Run, rows: pa.Table) -> pa.Table:
    """Rows of the chain with the columns that tell run, model and time."""
    count = len(rows)
    now = datetime.datetime.now(datetime.UTC)
    rows = positioned(rows)
    rows = rows.append_column("model_id", pa.array([run.model.card.model_id] * count))
    rows = rows.append_column("run_id", pa.array([run.run_id] * count))
    return rows.append_column("scored_at", pa.array([now] * count, pa.timestamp("ms", "UTC")))


@ray.remote(max_retries=0)
def _alone(chain: Chain, rows: pa.Table) -> pa.Table:
    return chain.alone(rows)


def _rescued(chain: Chain, rows: pa.Table) -> Iterator[pa.Table]:
    """Score rows in processes of their own, halving what fails, until the culprits are alone."""
    task = _alone.options(num_cpus=chain.slots.cpus, num_gpus=chain.slots.gpus)
    waiting = [rows]
    while waiting:
        group = waiting.pop()
        try:
            yield ray.get(task.remote(chain, group))
        except ray.exceptions.RayError as error:
            if len(group) > 1:
                half = len(group) // 2
                waiting += [group.slice(half), group.slice(0, half)]
                continue
            what = str(error).strip().splitlines()[-1][:200] if str(error).strip() else ""
            yield _crashed(group, _CRASH + what)


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


def _top_maps(run: Run, chain: Chain, parts: Parts) -> dict[str, str]:
    """Draw the maps of the K highest scores, by scoring these images again; id -> map."""
    ids = np.empty(0, dtype=object)
    values = np.empty(0)
    places = np.empty(0, dtype=np.int64)
    offset = 0
    for rows in parts.tables():
        ids = np.append(ids, rows["image_id"].to_numpy())
        values = np.append(values, rows["score"].fill_null(-np.inf).to_numpy())
        places = np.append(places, np.arange(offset, offset + len(rows)))
        offset += len(rows)
        best = np.lexsort((ids, -values))[: run.settings.top]
        best = best[np.isfinite(values[best])]
        ids, values, places = ids[best], values[best], places[best]
    draw = drawing(run.model.card, run.out, "all", run.settings.overlays)
    again = Chain(chain.model, draw, chain.fetch, chain.slots)
    source = slices(run.inventory, [(int(p), int(p) + 1) for p in sorted(places)], 1)
    if source is None:
        return {}
    found: dict[str, str] = {}
    for batch in batches(again.stream(*source)):
        drawn = zip(batch["image_id"].to_pylist(), batch["map_uri"].to_pylist(), strict=True)
        found.update((name, uri) for name, uri in drawn if uri)
    return found


def _publish(run: Run, parts: Parts, drawn: dict[str, str] | None) -> int:
    """Merge all checked parts into the run's one table, which appears whole. Returns its rows."""

    def final() -> Iterator[pa.Table]:
        for rows in parts.tables():
            if drawn is not None:
                uris = [drawn.get(name) for name in rows["image_id"].to_pylist()]
                where = rows.schema.get_field_index("map_uri")
                yield _checked(run, rows.set_column(where, "map_uri", pa.array(uris, pa.string())))
            else:
                yield _checked(run, rows)

    location = run.out.table(run.night, run.run_id)
    written = tables.write(location, scores.SCHEMA, final(), rows=max(run.settings.part_rows, 4096))
    if written != len(run.inventory):
        raise BrokenRun(f"{written} rows for {len(run.inventory)} images")
    return written


def _checked(run: Run, rows: pa.Table) -> pa.Table:
    """The rows, if every map that they name exists. Raises BrokenRun otherwise."""
    named = rows.filter(pc.is_valid(rows["map_uri"]))["image_id"].to_pylist()
    model_id = run.model.card.model_id
    with ThreadPoolExecutor(16) as pool:
        there = list(pool.map(lambda name: storage.exists(run.out.map(model_id, name)), named))
    if not all(there):
        raise BrokenRun(f"{there.count(False)} maps of {run.run_id} were drawn, but are gone")
    return rows
