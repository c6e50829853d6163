"""Ensembles without a cluster: members fitted in this process, on drawn parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import torch

from ops.archives.fetch import FetchSettings
from ops.detectors.detector import Checkpoint, settings_from
from ops.detectors.ensemble import EnsembleSettings
from ops.detectors.image_batches import Tiles, to_images
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.model_folder import Model
from ops.detectors.registry import detector_class
from ops.detectors.score_images import ScoreImages
from ops.distributed import Alone
from ops.features.backbone import Backbone, BackboneSettings
from ops.features.weights import fingerprint
from ops.images.decode import DecodeSettings, Picture
from ops.images.packed_pixels import column
from ops.images.resize import InputSettings, pack, resize
from ops.images.tiles import tile_id
from ops.results.anomaly_map import Scale
from ops.results.calibration import Calibration
from ops.storage.paths import Out, product_file
from pipelines.fitting.ensemble import EnsembleRequest, Found, HeldOut, combined_card
from pipelines.scoring.stream import draw_step
from tests import pictures

PRODUCT = "nut"
#: Draws the good part of a seed.
Draw = Callable[[int], np.ndarray]
#: Seeds of the drawn parts: to fit on, and held out.
FITTED, HELD_OUT = range(5), range(20, 28)


class Held:
    """A model in this process, as a worker sees it."""

    def __init__(self, model: Model) -> None:
        self.card = model.card
        self.members = [Held(member) for member in model.members]
        self.of_backbone = lambda: model.backbone
        self.masks = {}
        self.of_product = lambda product: model.products[product]


_LOADED: dict[tuple[int, bool], tuple[Model, ScoreImages]] = {}


def detecting(model: Model, keep: bool = False) -> ScoreImages:
    """The model, loaded once: its networks take longer to build than to score drawn parts."""
    if (id(model), keep) not in _LOADED:
        _LOADED[id(model), keep] = model, ScoreImages(Held(model), keep=keep)
    return _LOADED[id(model), keep][1]


def rows_of(drawn: Sequence[np.ndarray], inputs: Sequence[InputSettings]) -> pa.Table:
    """Rows as `Read` makes them for one or several inputs."""
    count = len(drawn)
    pixels = [pack(resize(Picture(one, 8), inputs[0])) for one in drawn]
    further = [[pack(resize(Picture(one, 8), each)) for each in inputs[1:]] for one in drawn]
    return pa.table(
        {
            "image_id": [f"{n:032x}" for n in range(count)],
            "product": [PRODUCT] * count,
            "view": pa.nulls(count, pa.string()),
            "part": pa.nulls(count, pa.string()),
            "status": ["ok"] * count,
            "reason": pa.nulls(count, pa.string()),
            "width": [pixels.shape[1] for pixels in drawn],
            "height": [pixels.shape[0] for pixels in drawn],
            "bit_depth": [8] * count,
            "channels": [1 if pixels.ndim == 2 else 3 for pixels in drawn],
            "pixels": column(pixels),
            "further_pixels": column([np.concatenate(each) if each else None for each in further]),
        }
    )


def member(
    settings: InputSettings,
    method: str = "patchcore",
    layers: str = "features.3,features.6",
    draw: Draw = pictures.texture,
) -> Model:
    """A model that is fitted and calibrated on drawn parts."""
    backbone = Backbone(BackboneSettings("squeezenet1_1", layers, "random"))
    kind = detector_class(method)
    small = {"dim": 24, "projection": 0, "coreset_ratio": 0.05} if method == "patchcore" else {}
    detector = kind(settings_from(kind.Settings, small), backbone)
    rows = rows_of([draw(seed) for seed in FITTED], [settings])
    if settings.tiled:
        for part in Tiles(rows, settings, "cpu", range(len(rows))).batches(64):
            ids = [tile_id(row, n) for row, n in zip(part.rows, part.numbers, strict=True)]
            detector.add_images(part.images, torch.tensor(ids))
    else:
        detector.add_images(to_images(rows, settings, "cpu"), torch.arange(len(rows)))
    counts = detector.fit(Alone(), lambda *_: None, Checkpoint()).counts
    state = detector.state()
    card = ModelCard(
        method=method,
        settings=asdict(detector.settings),
        backbone=backbone.settings,
        backbone_sha256=backbone.fingerprint(),
        input=settings,
        decode=DecodeSettings(),
        products={
            PRODUCT: ProductCard(
                product_file(PRODUCT), fingerprint(state), counts, {}, Calibration(())
            )
        },
        map_scale=Scale(0.0, 4 * detector.map_ceiling() / 65535),
        false_alarm_rate=0.1,
        fit={"holdout": 0.2, "images": len(FITTED)},
    )
    model = Model(card, backbone.state(), {PRODUCT: state})
    return calibrated(model, [image.score for image in scored(model, draw)[PRODUCT].values()])


def calibrated(model: Model, scores: Sequence[float]) -> Model:
    """The model with these held-out scores."""
    product = replace(model.card.products[PRODUCT], calibration=Calibration.of(scores))
    return replace(model, card=replace(model.card, products={PRODUCT: product}))


def scored(model: Model, draw: Draw = pictures.texture) -> Found:
    """What a model says of the held-out parts."""
    rows = rows_of([draw(seed) for seed in HELD_OUT], model.card.inputs)
    found = draw_step(model, Out(""), "none")(detecting(model)(rows)).to_pylist()
    return {
        PRODUCT: {
            row["image_id"]: HeldOut(row["score"], row["map_largest"], row["image_id"])
            for row in found
        }
    }


def ensemble_of(
    members: Sequence[Model], combine: str = "mean", draw: Draw = pictures.texture
) -> Model:
    """The ensemble that `pipelines.fitting.ensemble` makes of its members."""
    request = EnsembleRequest(EnsembleSettings(2.0, combine), 0.2, FetchSettings())
    card, scores = combined_card(
        [m.card for m in members], [scored(m, draw) for m in members], request
    )
    return calibrated(Model(card, {}, {}, members=tuple(members)), list(scores.values()))
