"""What a fit is asked for, and the images that it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ops.backbone import BackboneSettings
from ops.decode import DecodeSettings
from ops.fetch import FetchSettings
from ops.inventory import Inventory
from ops.resize import InputSettings
from pipelines.reading import CARRIED


@dataclass(frozen=True)
class FitRequest:
    """What to fit, on what kind of images."""

    method: str
    settings: Any
    backbone: BackboneSettings
    input: InputSettings = field(default_factory=InputSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    holdout: float = 0.1
    false_alarm_rate: float = 0.01
    max_failed: str = "0"

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} must lie in [0, 1)")
        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate {self.false_alarm_rate} must lie in (0, 1)")


class NothingToFit(ValueError):
    """Too few good images that can be read."""


@dataclass(frozen=True)
class Split:
    """The good images of an inventory, sorted by product: to fit on, and held out."""

    fit: pa.Table
    held_out: pa.Table

    @property
    def products(self) -> list[str]:
        """Products in the order of the fit."""
        return list(dict.fromkeys(self.fit["product"].to_pylist()))


def split(inventory: Inventory, holdout: float) -> Split:
    """Choose the good images: split `train` where there are splits, label 0 or unknown.

    Per product the share `holdout` with the lowest ids, which are hashes, is held out, one at
    least, for calibration. Raises NothingToFit.
    """
    rows = inventory.read([*CARRIED, "split", "label"])
    keep = pc.and_(pc.is_valid(rows["product"]), pc.is_null(rows["problem"]))
    keep = pc.and_(keep, pc.fill_null(pc.equal(rows["label"], 0), True))
    if rows["split"].null_count < len(rows):
        keep = pc.and_(keep, pc.fill_null(pc.equal(rows["split"], "train"), False))
    rows = rows.filter(keep).sort_by([("product", "ascending"), ("uri", "ascending")])
    if not len(rows):
        raise NothingToFit(
            f"{inventory.location} has no good image with a product in split train (or without "
            "splits); check the path pattern of the inventory"
        )
    held = np.zeros(len(rows), dtype=bool)
    products = rows["product"].to_numpy(zero_copy_only=False)
    ids = rows["image_id"].to_numpy(zero_copy_only=False)
    for product in np.unique(products):
        mine = np.flatnonzero(products == product)
        count = round(len(mine) * holdout)
        if holdout and len(mine) > 1:
            count = max(1, count)
        held[mine[np.argsort(ids[mine])[:count]]] = True
    rows = rows.select(list(CARRIED))
    return Split(rows.filter(pa.array(~held)), rows.filter(pa.array(held)))
