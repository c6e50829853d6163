"""Models with banks whose origins are known, fitted on drawn pictures without a cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA
from ops.detectors.detector import Checkpoint, Fitted
from ops.detectors.image_batches import Inspection, Tiles, inspected_images, to_images
from ops.detectors.model_card import ProductCard
from ops.detectors.model_folder import Model
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.distributed import Alone
from ops.features.backbone import Backbone
from ops.features.weights import fingerprint
from ops.images.decode import DecodeSettings
from ops.images.inspection import InspectionMask
from ops.images.inspection_files import hashes
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.results.calibration import Calibration
from ops.storage import paths, uris
from pipelines.fitting import bank_origins
from pipelines.fitting.coordinator import FitCoordinator
from pipelines.fitting.depths import Depths
from pipelines.fitting.request import ROW
from pipelines.fitting.worker import _add_tiles, _contents
from pipelines.scoring.read_stage import CARRIED
from pipelines.scoring.run import Run
from tests import pictures
from tests.conftest import tiny_model
from tests.ops.conftest import TINY
from tests.runs import Part, finish

TILES = InputSettings(size=64, fit="tile", overlap=0.5)
WHOLE = InputSettings(size=64)
SMALL = PatchCoreSettings(dim=24, projection=0, coreset_ratio=0.05)
SIZE = 150, 90
_Coordinator: Any = FitCoordinator.__ray_metadata__.modified_class


def listed(folder: Path, *seeds: int, depth: int = 8) -> pa.Table:
    """Rows to fit on of drawn pictures of `SIZE`; their numbers are in another order."""
    rows = []
    for seed in seeds:
        pixels = pictures.texture(seed, SIZE[0])[: SIZE[1]]
        place = folder / f"{seed}.png"
        Image.fromarray(pixels if depth == 8 else pixels.astype("uint16") * 257).save(place)
        rows.append({"image_id": str(seed), "uri": uris.make(str(place)), "product": "bolt"})
    table = pa.Table.from_pylist(rows, SCHEMA).select(list(CARRIED))
    return table.append_column(ROW, pa.array(range(len(rows))[::-1], pa.int64()))


def read(
    rows: pa.Table, settings: InputSettings, masks: Mapping[str, InspectionMask] | None = None
) -> pa.Table:
    return Read(settings, DecodeSettings(), FetchSettings(), masks=masks or {})(rows)


def fit(
    table: pa.Table,
    settings: InputSettings,
    name: str = "bolt",
    earlier: Model | None = None,
    how: PatchCoreSettings = SMALL,
    mask: InspectionMask | None = None,
) -> tuple[PatchCore, Fitted, bytes]:
    """A detector that is fitted as a worker does, and the file of origins of its model."""
    detector = PatchCore(how, Backbone(TINY))
    if earlier:
        (product, state), *_ = earlier.products.items()
        detector.grow(state, earlier.card.products[product].counts)
    rows = read(table, settings, {"bolt": mask} if mask else None)
    coordinator = _Coordinator(len(rows), Depths(None, {}))
    numbers = rows[ROW].to_pylist()
    coordinator.add_images(numbers, {}, {}, {}, _contents(rows))
    inspection = Inspection([mask] * len(rows), TINY.normalisation[0]) if mask else None
    if settings.tiled:
        for part in Tiles(rows, settings, "cpu", range(len(rows)), inspection).batches(5):
            _add_tiles(part, numbers, detector)
    elif inspection:
        images, inside = inspected_images(rows, settings, "cpu", range(len(rows)), inspection)
        detector.add_inside(images, torch.tensor(numbers), inside)
    else:
        detector.add_images(to_images(rows, settings, "cpu"), torch.tensor(numbers))
    fitted = detector.fit(Alone(), lambda *_: None, Checkpoint())
    picks = {name: fitted.picks, "nut": None}
    return (
        detector,
        fitted,
        bank_origins.kept(table, picks, coordinator.contents, settings, earlier),
    )


def model(
    table: pa.Table,
    settings: InputSettings,
    how: PatchCoreSettings = SMALL,
    mask: InspectionMask | None = None,
) -> tuple[Model, PatchCore]:
    """A model of the product bolt."""
    detector, fitted, origins = fit(table, settings, how=how, mask=mask)
    state, weights = detector.state(), detector.backbone.state()
    masks = {"bolt": mask} if mask else {}
    product = ProductCard(
        paths.product_file("bolt"),
        fingerprint(state),
        fitted.counts,
        {},
        Calibration((1.0, 2.0)),
    )
    card = replace(
        tiny_model("bolt").card,
        settings=asdict(how),
        backbone=TINY,
        backbone_sha256=fingerprint(weights),
        input=settings,
        products={"bolt": product},
        masks=hashes(masks),
    )
    return Model(card, weights, {"bolt": state}, origins=origins, masks=masks), detector


def night(root: Path) -> tuple[Run, list[Part], Model]:
    """A night of three parts, two of them flagged, and its model; good pictures lie in the root."""
    (root / "good").mkdir()
    (root / "parts").mkdir()
    fitted, _ = model(listed(root / "good", 3, 4, 5), WHOLE)
    parts = []
    for number, score in enumerate((3.0, 2.5, 1.2)):
        place = root / "parts" / f"{number}.png"
        pixels = pictures.with_blob(pictures.texture(20 + number, 80)[:60], 74, 54, 5)
        Image.fromarray(pixels).save(place)
        content = hashlib.sha256(place.read_bytes()).hexdigest()
        parts.append(Part(place.name, "bolt", score, folder=str(place.parent), content=content))
    run = finish(str(root / "out"), parts, fitted)
    return run, parts, fitted
