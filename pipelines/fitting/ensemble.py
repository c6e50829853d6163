"""Make an ensemble: score the held-out images by each member, then calibrate their combination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.archives.views import detector_name, detector_names, product_of
from ops.detectors.detector import FitCounts, settings_from
from ops.detectors.ensemble import (
    METHOD,
    EnsembleSettings,
    check_members,
    common_input,
    common_scale,
    held_out_scores,
)
from ops.detectors.model_card import REGION_RATE, ModelCard, ProductCard
from ops.detectors.model_folder import Model
from ops.detectors.registry import detector_class
from ops.errors import UserError
from ops.progress import ProgressCallback
from ops.results.calibration import Calibration
from ops.results.combination import Combine, Position, left_out
from ops.storage.paths import Out
from pipelines.cluster.isolate import process_rows
from pipelines.cluster.reservation import reserved
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.fitting.calibrate import calibrate
from pipelines.fitting.hold_out import unit_of
from pipelines.fitting.request import FitRequest, Select, split
from pipelines.scoring.stream import ScoringStream, draw_step

#: Scores of the same images on the same device are equal; on another device they round otherwise.
_ROUNDING = 1e-3


class HeldOut(NamedTuple):
    """What a member says of one held-out image."""

    score: float
    peak: float
    """The highest value of its map."""
    unit: Hashable
    """See `hold_out.unit_of`."""


#: By product and image id.
Found = dict[str, dict[str, HeldOut]]


@dataclass(frozen=True)
class EnsembleRequest:
    """How members are combined, and on which images."""

    settings: EnsembleSettings
    false_alarm_rate: float
    fetch: FetchSettings
    region_rate: float = REGION_RATE


def ensemble(
    members: Sequence[Model],
    inventory: Inventory,
    request: EnsembleRequest,
    resources: Resources,
    progress: ProgressCallback,
    is_defect: Callable[[pa.Table], pa.Array] | None = None,
) -> Model:
    """One model of several, calibrated on the images that were held out of the fit of each.

    `is_defect` is true of images that were left out of these fits.
    Raises UserError if the members do not fit together, or were calibrated on other images.
    """
    cards = [member.card for member in members]
    check_members(cards)
    held_out = held_out_images(inventory, cards[0], is_defect)
    check_counts(cards, held_out)
    found = [_scored(member, held_out, request.fetch, resources, progress) for member in members]
    for number, (card, of_member) in enumerate(zip(cards, found, strict=True), start=1):
        check_scores(number, card, of_member)
    card, scores = combined_card(cards, found, request)
    model = Model(
        card,
        {},
        {},
        masks=members[0].masks,
        members=tuple(replace(member, pictures={}) for member in members),
    )
    return calibrate(model, held_out, request.fetch, resources, progress, scores)


def held_out_images(
    inventory: Inventory,
    card: ModelCard,
    is_defect: Callable[[pa.Table], pa.Array] | None = None,
) -> pa.Table:
    """The images that a fit like that of the card holds out. Raises NothingToFit."""
    kind = detector_class(card.method)
    products = sorted({product_of(name, card.views) for name in card.products})
    like_it = FitRequest(
        card.method,
        settings_from(kind.Settings, card.settings),
        card.backbone,
        input=card.input,
        select=Select(products),
        joint=card.joint,
        views=card.views,
        holdout=card.fit["holdout"],
    )
    return split(inventory, like_it, is_defect).held_out


def check_counts(cards: Sequence[ModelCard], held_out: pa.Table) -> None:
    """Check that no member was calibrated on more images, or parts, than are held out.

    Raises UserError.
    """
    names = detector_names(held_out, cards[0].views).to_pylist()
    rows = held_out.select(["image_id", "product", "part"]).to_pylist()
    units = set(zip(names, map(unit_of, rows), strict=True))
    counts = Counter(name for name, _ in units)
    for number, card in enumerate(cards, start=1):
        for name, product in card.products.items():
            known = len(product.calibration.scores)
            if not 0 < known <= counts[name]:
                raise UserError(
                    f"member {number} was calibrated on {known} held-out images, or parts, of "
                    f"{name!r}, and {counts[name]} are held out of this inventory; {_SAME_IMAGES}"
                )


def check_scores(number: int, card: ModelCard, found: Found) -> None:
    """Check that a member scores held-out images as when it was calibrated. Raises UserError.

    Other images have other scores, so it was fitted on none of these.
    """
    for name in card.products:
        known = held_out_scores(card, name)
        images = found.get(name, {}).values()
        now = Calibration.of([i.score for i in images], [i.unit for i in images]).scores
        if len(now) != len(known) or not np.allclose(now, known, _ROUNDING, 0):
            raise UserError(
                f"member {number} was calibrated on other images of {name!r}: the images that are "
                f"held out of this inventory have other scores; {_SAME_IMAGES}"
            )


_SAME_IMAGES = (
    "fit all members with the same --inventory, --holdout, --views and --select.products, and give "
    "the ensemble the same inventory"
)


def _scored(
    member: Model,
    held_out: pa.Table,
    fetch: FetchSettings,
    resources: Resources,
    progress: ProgressCallback,
) -> Found:
    """What a member says of the held-out images that it can score."""
    found: Found = {}
    shared = SharedModel.put(member)
    draw = draw_step(shared, Out(""), "none")
    done = failed = 0
    with reserved(resources) as held:
        for rows in process_rows(ScoringStream(shared, draw, fetch, held), held_out):
            for row in rows.to_pylist():
                done += 1
                failed += row["score"] is None
                if row["score"] is not None:
                    of_product = found.setdefault(detector_name(row, member.card.views), {})
                    of_product[row["image_id"]] = HeldOut(
                        row["score"], row["map_largest"], unit_of(row)
                    )
            progress("score held-out images", done, len(held_out), failed)
    return found


def combined_card(
    cards: Sequence[ModelCard], found: Sequence[Found], request: EnsembleRequest
) -> tuple[ModelCard, dict[str, float]]:
    """The card of the ensemble without calibrations, and scores to calibrate with, by image id."""
    first, scores = cards[0], dict[str, float]()
    products = {}
    for name, product in first.products.items():
        of_members = [of_member[name] for of_member in found]
        try:
            products[name] = _product(product, of_members)
            scores |= combined_scores(of_members, request.settings.combine)
        except UserError as error:
            raise UserError(f"product {name!r}: {error}") from None
    card = ModelCard(
        method=METHOD,
        settings=asdict(request.settings),
        backbone=first.backbone,
        backbone_sha256=first.backbone_sha256,
        input=common_input(cards),
        decode=first.decode,
        products=products,
        map_scale=common_scale(cards, [product.member_peaks for product in products.values()]),
        false_alarm_rate=request.false_alarm_rate,
        region_false_alarm_rate=request.region_rate,
        fit={
            "holdout": first.fit["holdout"],
            "images": first.fit["images"],
            "held_out": len(scores),
            "failed": 0,
            "failures": [],
        },
        views=first.views,
        masks=first.masks,
        members=tuple(cards),
    )
    return card, scores


def combined_scores(
    of_members: Sequence[Mapping[str, HeldOut]], combine: Combine
) -> dict[str, float]:
    """Scores of the held-out images of a product by their ids, from what each member says of them.

    An image that one member cannot score has none. Raises UserError if scores do not spread.
    """
    ids = [i for i in of_members[0] if all(i in images for images in of_members)]
    each = [np.array([images[i].score for i in ids]) for images in of_members]
    units = [of_members[0][i].unit for i in ids]
    return dict(zip(ids, left_out(each, units, combine).tolist(), strict=True))


def _product(first: ProductCard, of_members: Sequence[Mapping[str, HeldOut]]) -> ProductCard:
    """The card of a product. Raises UserError if the peaks of a member's maps do not spread."""
    peaks = [
        Position.of(np.sort([image.peak for image in images.values()])) for images in of_members
    ]
    return ProductCard(
        file=first.file,
        sha256="",
        counts=FitCounts(first.counts.images),
        fit_metrics={},
        calibration=Calibration(()),
        bit_depths=first.bit_depths,
        member_peaks=tuple(peaks),
    )
