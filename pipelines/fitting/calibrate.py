"""Calibration: the scores of a product's held-out images, from which p-values follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from ops.archives.fetch import FetchSettings
from ops.archives.views import detector_name, detector_names, product_of
from ops.detectors.model_card import ProductCard
from ops.detectors.model_folder import Model
from ops.progress import ProgressCallback
from ops.results import overlays
from ops.results.calibration import Calibration
from ops.results.part_calibration import HeldOutParts, PartCalibration
from ops.results.write_maps import DrawSketches
from ops.storage.paths import HELD_OUT, Out, picture_file, product_file
from pipelines.cluster.isolate import process_rows
from pipelines.cluster.reservation import reserved
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.fitting.hold_out import unit_of
from pipelines.scoring.stream import ScoringStream, draw_step

#: Images in a product's contact sheet, and products that get one.
_SHEET_IMAGES, _SHEETS = 6, 100


def calibrate(
    model: Model,
    held_out: pa.Table,
    fetch: FetchSettings,
    resources: Resources,
    progress: ProgressCallback,
    scores: Mapping[str, float] | None = None,
) -> Model:
    """Score the held-out images; returns the model with calibrations and contact sheets.

    A sheet shows the images of a product with the highest scores. Images that cannot be scored
    are left out. `scores`: those to calibrate with, by image id, instead of the model's own.
    """
    if not len(held_out):
        return model
    shared = SharedModel.put(model)
    draw = draw_step(shared, Out(""), "none", overlays=True, kind=DrawSketches)
    products = sorted(set(detector_names(held_out, model.card.views).to_pylist()))
    results = {name: HeldOutScores() for name in products}
    with_sheet = set(products[:_SHEETS])
    parts = HeldOutParts(model.card.views)
    done = failed = 0
    with reserved(resources) as held:
        for rows in process_rows(ScoringStream(shared, draw, fetch, held), held_out):
            for row in rows.to_pylist():
                done += 1
                if scores is not None and row["score"] is not None:
                    row["score"] = scores.get(row["image_id"])
                failed += row["score"] is None
                if row["score"] is not None:
                    name = detector_name(row, model.card.views)
                    results[name].add(row, name in with_sheet)
                    parts.add(row)
            progress("calibrate", done, len(held_out), failed)
    cards = {
        name: replace(
            card,
            calibration=Calibration.of(results[name].scores, results[name].units),
            sizes=dict(sorted(results[name].sizes.items())),
            peaks=Calibration.of(results[name].peaks, results[name].units),
        )
        if name in results
        else card
        for name, card in model.card.products.items()
    }
    sheets = {
        picture_file(product_file(name), HELD_OUT): overlays.join_columns(result.sketches)
        for name, result in results.items()
        if result.highest
    }
    known = model.card.parts | parts.calibrations()
    card = replace(model.card, products=cards, parts=known)
    return replace(model, card=card, pictures=model.pictures | sheets)


@dataclass(frozen=True)
class HeldOutScores:
    """A product's held-out images: all scores, and the sketches of the highest."""

    scores: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    """The largest value of each map."""
    units: list[Hashable] = field(default_factory=list)
    """Of what each image is one observation."""
    sizes: Counter[str] = field(default_factory=Counter)
    """Number of images by `WIDTHxHEIGHT`."""
    highest: list[tuple[float, str, bytes]] = field(default_factory=list)
    """Negative score, id and sketch; the highest score first."""

    def add(self, row: dict[str, Any], keep_sketch: bool) -> None:
        """Add the row of a scored image."""
        self.scores.append(row["score"])
        self.peaks.append(row["map_largest"])
        self.units.append(unit_of(row))
        self.sizes[f"{row['width']}x{row['height']}"] += 1
        if not keep_sketch:
            return
        self.highest.append((-row["score"], row["image_id"], row["sketch"]))
        self.highest.sort()
        del self.highest[_SHEET_IMAGES:]

    @property
    def sketches(self) -> list[bytes]:
        """Sketches of the images with the highest scores, in falling order."""
        return [sketch for _, _, sketch in self.highest]


def kept_parts(
    earlier: Model | None, cards: Mapping[str, ProductCard]
) -> dict[str, PartCalibration]:
    """Calibrations of parts of a grown model, of products none of whose detectors was fitted."""
    if not earlier:
        return {}
    before = earlier.card
    fitted = {product_of(n, before.views) for n in cards if cards[n] is not before.products.get(n)}
    return {name: parts for name, parts in before.parts.items() if name not in fitted}
