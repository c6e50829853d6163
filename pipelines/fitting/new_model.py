"""The model that a fit makes of what its workers found, before it is calibrated."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from ops.detectors.model_card import ModelCard, ProductCard, versions
from ops.detectors.model_folder import Model
from ops.detectors.network_licence import network_card
from ops.features.weights import fingerprint
from ops.images.inspection_files import hashes
from ops.results.anomaly_map import LEVELS, Scale
from ops.results.calibration import Calibration
from ops.storage.paths import JOINT, picture_file, product_file
from pipelines.fitting import bank_origins, calibration_images
from pipelines.fitting.answers import ask
from pipelines.fitting.calibrate import kept_parts
from pipelines.fitting.coordinator import DetectorResult
from pipelines.fitting.depths import Depths
from pipelines.fitting.inspection import Masks
from pipelines.fitting.picture_sizes import Detail, coarsest
from pipelines.fitting.plan import Plan
from pipelines.fitting.request import ALL, FitRequest, Split


class Found(NamedTuple):
    """What the workers of a fit found."""

    results: dict[str, DetectorResult]
    """By detector."""
    failures: list[str]
    depths: Depths
    seen: Mapping[str, Detail | None]
    """The coarsest detail that each product is seen with."""
    origins: bytes
    """The file of `ops.detectors.bank_origins`."""


def found_by(
    coordinator: Any, chosen: Split, request: FitRequest, planned: Plan, earlier: Model | None
) -> Found:
    """Ask the coordinator of a fit, which holds what its workers reported."""
    results = {name: ask(coordinator.result, name) for name in chosen.detectors}
    picks = {name: result.fitted.picks for name, result in results.items()}
    contents = functools.partial(ask, coordinator.contents)
    sizes = ask(coordinator.sizes).items()
    return Found(
        results,
        ask(coordinator.failures),
        ask(coordinator.depths),
        {name: coarsest(found, request.input, planned.patches) for name, found in sizes},
        bank_origins.kept(chosen.fit, picks, contents, request.input, earlier),
    )


def new_model(
    chosen: Split,
    request: FitRequest,
    backbone: dict[str, Tensor],
    found: Found,
    earlier: Model | None,
    decisions: dict[str, Any],
    masks: Masks,
    licence: bytes,
) -> Model:
    """The model, without calibration; of an `earlier` one it keeps what the fit did not change.

    `decisions`: what the card says of those of people.
    """
    cards, tensors = _cards(chosen, request.joint, found, earlier)
    configuration = request.backbone.configuration
    card = ModelCard(
        method=request.method,
        settings=asdict(request.settings),
        backbone=request.backbone,
        backbone_sha256=fingerprint(backbone),
        input=request.input,
        decode=request.decode,
        products=cards,
        map_scale=_scale(found, earlier),
        false_alarm_rate=request.false_alarm_rate,
        region_false_alarm_rate=request.region_rate,
        views=request.views,
        parts=kept_parts(earlier, cards),
        masks=hashes(masks.by_detector),
        fit={
            "holdout": request.holdout,
            "images": len(chosen.fit),
            "held_out": len(chosen.held_out),
            "failed": len(found.failures),
            "failures": sorted(found.failures)[:100],
        }
        | decisions
        | (_lineage(earlier) if earlier else {}),
        versions=versions() | {configuration.library: configuration.version},
        network=network_card(configuration, licence),
    )
    pictures = {
        picture_file(cards[name].file, kind): picture
        for name in chosen.products
        for kind, picture in found.results[_detector(name, request.joint)].fitted.pictures.items()
    }
    return Model(
        card,
        backbone,
        tensors,
        pictures | masks.pictures,
        licence,
        held_out=calibration_images.kept(chosen, earlier),
        origins=found.origins,
        masks=masks.by_detector,
    )


def _scale(found: Found, earlier: Model | None) -> Scale:
    """The scale of all maps, which holds four times the largest value of a good image."""
    ceiling = 4 * max(result.map_ceiling for result in found.results.values()) or 1.0
    ceiling = max(ceiling, earlier.card.map_scale.scale * (LEVELS - 1)) if earlier else ceiling
    # Rounded to two digits, so that the scale does not depend on the rounding of sums.
    return Scale(0.0, float(f"{ceiling:.1e}") / (LEVELS - 1))


def _detector(product: str, joint: bool) -> str:
    return ALL if joint else product


def _cards(
    chosen: Split, joint: bool, found: Found, earlier: Model | None
) -> tuple[dict[str, ProductCard], dict[str, dict[str, Tensor]]]:
    """Cards without calibration, and tensors, of all products, also those of a grown model."""
    cards = dict(earlier.card.products) if earlier else {}
    tensors = dict(earlier.products) if earlier else {}
    counts = found.depths.counts()
    prints = {detector: fingerprint(result.tensors) for detector, result in found.results.items()}
    # A joint detector changes for every product, also for those without new images.
    for product in dict.fromkeys([*(cards if joint else ()), *chosen.products]):
        detector = _detector(product, joint)
        result, detail = found.results[detector], found.seen.get(product)
        cards[product] = ProductCard(
            file=JOINT if joint else product_file(product),
            sha256=prints[detector],
            counts=result.fitted.counts,
            fit_metrics=result.fitted.fit_metrics
            | {"map_ceiling": result.map_ceiling}
            | (detail.as_metrics() if detail else {}),
            calibration=Calibration(()),
            curves=result.fitted.curves,
            bit_depths=counts.get(product, {}),
        )
        tensors[product] = result.tensors
    return cards, tensors


def _lineage(earlier: Model) -> dict[str, Any]:
    """Ids of the models that this one was grown from, latest first, and their images."""
    before = earlier.card.fit.get("grown_from", [])
    return {
        "grown_from": [earlier.card.model_id, *before],
        "images_before": earlier.card.fit["images"] + earlier.card.fit.get("images_before", 0),
    }
