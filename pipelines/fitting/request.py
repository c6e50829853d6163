"""The request of a fit, and the split of the good images into fitted and held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.archives.layouts import OF_MODELS, composed
from ops.archives.views import Views, check_names, detector_names, with_detectors
from ops.detectors.model_card import REGION_RATE
from ops.detectors.registry import detector_class
from ops.errors import SettingError, UserError
from ops.features.backbone import BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.inspection import InspectionMask
from ops.images.resize import InputSettings
from ops.results import false_alarm_rates
from ops.storage import uris
from pipelines.fitting import hold_out
from pipelines.scoring.read_stage import CARRIED

#: The column with the name of the detector that an image is for.
DETECTOR = "detector"
#: The column with an image's number in the fit, by product and address.
ROW = "row"
#: The name of the detector of a joint fit.
ALL = "all products"


@dataclass(frozen=True)
class Select:
    """Which good images a fit uses."""

    products: list[str] = field(default_factory=list)
    """Names of products to fit; none = all products."""
    shots: int = 0
    """Largest number of images of each product to fit on; of parts, where paths name {part}. 0 =
    all. What is held out is not counted."""
    seed: int = 0
    """Seed of the random choice of shots."""


@dataclass(frozen=True)
class FitRequest:
    """The detector to fit, and how to read and select its images."""

    method: str
    settings: Any
    backbone: BackboneSettings
    input: InputSettings = field(default_factory=InputSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    select: Select = field(default_factory=Select)
    joint: bool = False
    views: Views = "pooled"
    holdout: float = 0.1
    false_alarm_rate: float = 0.01
    region_rate: float = REGION_RATE
    """Share of good images that may have a region of their map above the pixel threshold."""
    max_failed: str = "0"
    roi: str = ""
    """Place of the masks of what is inspected, with {product} and {view}; empty = everything."""
    ignore: str = ""
    """Place of the masks of what is not inspected."""
    masks: dict[str, InspectionMask] = field(default_factory=dict)
    """What `pipelines.fitting.inspection` read from these places, by detector."""

    def __post_init__(self) -> None:
        """Raise SettingError for values out of range, or that cannot be combined."""
        if self.input.tiled and (reason := detector_class(self.method).no_tiles):
            raise SettingError(
                f"input.fit tile cannot be combined with method {self.method}: {reason}; choose "
                "another method, such as patchcore, or input.fit squash"
            )
        if not 0 <= self.holdout < 1:
            raise SettingError(f"holdout {self.holdout} must lie in [0, 1)")
        if self.select.shots < 0:
            raise SettingError(f"select.shots {self.select.shots} must be at least 0 (0 = all)")
        if self.views not in {"pooled", "separate"}:
            raise SettingError(f"views {self.views!r} must be pooled or separate")
        if self.joint and self.views == "separate":
            raise SettingError(
                "--joint fits one detector for all products, --views separate one for each view; "
                "choose one of them"
            )
        false_alarm_rates.check(self.false_alarm_rate)
        if not 0 < self.region_rate < 1:
            raise SettingError(f"regions.false_alarm_rate {self.region_rate} must lie in (0, 1)")
        for name in ("roi", "ignore"):
            if "{view}" in getattr(self, name) and self.views != "separate":
                raise SettingError(
                    f"--{name} {getattr(self, name)!r} names {{view}}, and one detector takes all "
                    "views of a product; choose --views separate, or one mask for each product"
                )


class NothingToFit(UserError):
    """There is no good image to fit on, or the fit was refused."""


@dataclass(frozen=True)
class Split:
    """The good images of an inventory: to fit on, with columns `DETECTOR` and `ROW`, and held out.

    With separate views the product of images to fit on is the name of their detector. Both are in
    the order in which they are read, see `_in_reading_order`.
    """

    fit: pa.Table
    held_out: pa.Table

    @property
    def products(self) -> list[str]:
        """Products, or products and views, with images to fit on."""
        return sorted(set(self.fit["product"].to_pylist()))

    @property
    def detectors(self) -> list[str]:
        """Names of the detectors, in the order in which they are fitted."""
        return sorted(set(self.fit[DETECTOR].to_pylist()))


def split(
    inventory: Inventory,
    request: FitRequest,
    is_defect: Callable[[pa.Table], pa.Array] | None = None,
) -> Split:
    """Split the good images of an inventory, without those of which `is_defect` is true.

    Good images have label 0 or none, and belong to split `train` if the inventory has splits.
    Of each product the share `holdout` with the lowest hashes of their addresses is held out for
    calibration: at least one image, but never all. Of a product with good images of split
    `validation` these are held out in their place. Shots are chosen from the others. Versions play
    no part, so a copy of files at the same place, or another mode, gives the same split. Images of
    a part stay together, and are chosen by a hash of its name: see `hold_out`.
    Raises NothingToFit, and UserError if separate views have names that cannot be told apart.
    """
    rows = _good_images(inventory, request.select)
    if is_defect:
        rows = rows.filter(pc.invert(is_defect(rows)))
    if request.views == "separate":
        check_names({*rows["product"].to_pylist(), *rows["view"].to_pylist()})
    detectors = detector_names(rows, request.views)
    # The views of a part are held out together; images of no part, from each detector its share.
    strata = pc.if_else(pc.is_valid(rows["part"]), rows["product"], detectors).to_pylist()
    select = request.select
    reserved = pc.fill_null(pc.equal(rows["split"], "validation"), False).to_pylist()
    rows = rows.select(list(CARRIED))
    chosen = hold_out.choose(rows, strata, request.holdout, select.shots, select.seed, reserved)
    is_held_out, is_shot = np.zeros((2, len(rows)), dtype=bool)
    is_held_out[chosen[0]], is_shot[chosen[1]] = True, True
    held_out = rows.filter(pa.array(is_held_out))
    return Split(
        to_fit(rows.filter(pa.array(is_shot)), request),
        _in_reading_order(held_out, request.joint),
    )


def to_fit(rows: pa.Table, request: FitRequest) -> pa.Table:
    """The table of `Split` of images to fit on, which are sorted by product and address."""
    if request.views == "separate":
        order = [("product", "ascending"), ("uri", "ascending")]
        rows = with_detectors(rows, request.views).sort_by(order)
    names = pa.array([ALL] * len(rows), pa.string()) if request.joint else rows["product"]
    rows = rows.append_column(DETECTOR, names)
    rows = rows.append_column(ROW, pa.array(range(len(rows)), pa.int64()))
    return _in_reading_order(rows, request.joint)


def _good_images(inventory: Inventory, select: Select) -> pa.Table:
    """The good images of the selected products, with their `split`, by product and address."""
    rows = inventory.read([*CARRIED, "split", "label"])
    keep = pc.and_(pc.is_valid(rows["product"]), pc.is_null(rows["problem"]))
    keep = pc.and_(keep, pc.fill_null(pc.equal(rows["label"], 0), True))
    if rows["split"].null_count < len(rows):
        keep = pc.and_(keep, pc.is_in(rows["split"], pa.array(OF_MODELS)))
    rows = rows.filter(keep).sort_by([("product", "ascending"), ("uri", "ascending")])
    if select.products:
        names = [composed(name) for name in select.products]
        rows = _with_products(rows, names, inventory.location)
    if not pc.any(pc.not_equal(rows["split"].fill_null("train"), "validation")).as_py():
        raise NothingToFit(
            f"{inventory.location} has no good image of a known product in split train (or at all, "
            "if it has no splits); check the path pattern of the inventory"
        )
    return rows


def _in_reading_order(rows: pa.Table, joint: bool) -> pa.Table:
    """Rows that are sorted by product and address, with those of a container in its order.

    A container stands where its first row stood, so files of their own keep their places. It is
    read once for each product, or once for a joint detector.
    """
    products, places = rows["product"].to_pylist(), rows["uri"].to_pylist()
    members = [member or 0 for member in rows["member"].to_pylist()]
    first: dict[tuple[str, str], int] = {}
    keys = []
    for number, (product, uri) in enumerate(zip(products, places, strict=True)):
        container = ("" if joint else product, uris.container(uri))
        keys.append((first.setdefault(container, number), members[number], number))
    return rows.take(pa.array([number for *_, number in sorted(keys)], pa.int64()))


def _with_products(rows: pa.Table, products: Sequence[str], location: str) -> pa.Table:
    known = set(rows["product"].to_pylist())
    if unknown := sorted(set(products) - known):
        examples = ", ".join(sorted(known)[:10])
        raise NothingToFit(f"{location} has no good image of products {unknown}; it has {examples}")
    return rows.filter(pc.is_in(rows["product"], pa.array(products, pa.string())))
