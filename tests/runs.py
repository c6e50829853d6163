"""Finished runs without a cluster: drawn scores and maps, through the product's own writers."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA, Inventory, image_id
from ops.detectors.model_card import ModelCard
from ops.detectors.model_folder import Model, write_model
from ops.images.resize import geometry
from ops.results import anomaly_map, map_png
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.cluster.shared_model import SharedModel
from pipelines.scoring.chunks import ROWS, Chunks
from pipelines.scoring.publish import publish
from pipelines.scoring.resume import resume_or_start
from pipelines.scoring.run import Run, ScoreSettings, new_record
from tests.conftest import tiny_model

NOW = datetime.datetime(2026, 11, 20, 3, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Part:
    """A pictured part; one without a score could not be read."""

    name: str
    product: str
    score: float | None
    label: int | None = None
    version: str = "v1"
    folder: str = "/parts"
    content: str = "c0"
    reason: str = "the file is empty"
    fields: tuple[tuple[str, str], ...] | None = None

    @property
    def uri(self) -> str:
        return uris.make(f"{self.folder}/{self.name}")

    @property
    def image_id(self) -> str:
        return image_id(self.uri, self.version)


def model_of(products: Sequence[str], seed: int = 0) -> Model:
    """A model whose products share what one learnt."""
    model = tiny_model(products[0], seed)
    card = replace(model.card, products=dict.fromkeys(products, model.card.products[products[0]]))
    return replace(model, card=card, products=dict.fromkeys(products, model.products[products[0]]))


def list_parts(location: str, parts: Sequence[Part]) -> Inventory:
    columns = ("image_id", "uri", "version", "product", "label", "fields")
    listed = [{name: getattr(part, name) for name in columns} for part in parts]
    parquet.write(location, SCHEMA, [pa.Table.from_pylist(listed, SCHEMA)])
    return Inventory(location)


def finish(
    root: str,
    parts: Sequence[Part],
    model: Model,
    night: str = "2026-11-20",
    settings: ScoreSettings = ScoreSettings("flagged"),
) -> Run:
    """Write all that a run leaves: inventory, model, maps, table, record."""
    out = Out(root)
    inventory = list_parts(f"{root}/inventory-{night}.parquet", parts)
    if not files.exists(f"{out.model(model.card.model_id)}/model.json"):
        write_model(out.model(model.card.model_id), model)
    run = resume_or_start(inventory, SharedModel(model.card, None, {}), out, settings, night)
    collected = Chunks(out, run.run_id, inventory, settings.chunk_rows)
    rows = [_row(run, place, part) for place, part in enumerate(parts)]
    collected.add(pa.Table.from_pylist(rows, ROWS))
    images = publish(run, collected, _top(run, rows) if settings.top else None)
    totals = {
        "images": images,
        "statuses": dict(sorted(collected.statuses.items())),
        "failed": collected.failed,
        "anomalous": collected.anomalous,
        "regions": collected.regions,
        "regions_hidden": collected.regions_hidden,
        "table": out.table(night, run.run_id),
    }
    started = NOW.replace(day=int(night[-2:]))
    record = new_record(run, FetchSettings(), started)
    files.write_json(out.run(run.run_id), {**record, "totals": totals})
    files.remove_folder(out.work(run.run_id))
    return run


def _row(run: Run, place: int, part: Part) -> dict[str, object]:
    row: dict[str, object] = {
        "inventory_row": place,
        "image_id": part.image_id,
        "uri": part.uri,
        "product": part.product,
        "model_id": run.model.card.model_id,
        "run_id": run.run_id,
        "run_number": run.number,
        "scored_at": NOW,
    }
    if part.score is None:
        return row | {"status": "unreadable", "reason": part.reason}
    card = run.model.card
    calibration = card.products[part.product].calibration
    flagged = part.score > (calibration.threshold(card.false_alarm_rate) or 0)
    policy = run.settings.policy
    drawn = policy == "all" or (policy == "flagged" and flagged)
    return row | {
        "content_sha256": part.content,
        "width": 80,
        "height": 60,
        "bit_depth": 8,
        "status": "ok",
        "score": part.score,
        "p_value": float(calibration.p_values(np.array([part.score]))[0]),
        "is_anomalous": flagged,
        "peak_x": 79,
        "peak_y": 59,
        "map_uri": draw_map(run.out, card, part.image_id) if drawn else None,
    }


def draw_map(out: Out, card: ModelCard, name: str, scale: anomaly_map.Scale | None = None) -> str:
    """Write a map of a picture of 80 x 60 pixels; its URI."""
    width, height = card.input.sides
    values = np.linspace(0, 60, width * height, dtype=np.float32).reshape(height, width)
    place = geometry(80, 60, card.input)
    location = out.map(card.model_id, name)
    files.write_bytes(
        location, map_png.encode(values, scale or card.map_scale, place, card.model_id)
    )
    return uris.make(location)


def _top(run: Run, rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
    scored = [row for row in rows if row["status"] == "ok"]
    best = sorted(scored, key=lambda row: (-float(str(row["score"])), row["image_id"]))
    chosen = [str(row["image_id"]) for row in best[: run.settings.top]]
    return {name: draw_map(run.out, run.model.card, name) for name in chosen}
