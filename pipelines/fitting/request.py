"""What a fit is asked for, and the images that it rests on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ops.errors import SettingError, UserError
from ops.features.backbone import BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.fetch import FetchSettings
from ops.images.inventory import Inventory
from ops.images.resize import InputSettings
from pipelines.scoring.read_stage import CARRIED

#: The column that says which detector an image is for.
DETECTOR = "detector"
#: The one detector of a joint fit.
ALL = "all products"


@dataclass(frozen=True)
class Select:
    """Which of the good images a fit takes."""

    products: list[str] = field(default_factory=list)
    """Only these products; none named = all."""
    shots: int = 0
    """At most so many images of each product; 0 = all. Held-out images come on top."""
    seed: int = 0
    """Chooses the shots."""


@dataclass(frozen=True)
class FitRequest:
    """What to fit, on what kind of images."""

    method: str
    settings: Any
    backbone: BackboneSettings
    input: InputSettings = field(default_factory=InputSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    select: Select = field(default_factory=Select)
    joint: bool = False
    holdout: float = 0.1
    false_alarm_rate: float = 0.01
    max_failed: str = "0"

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0 <= self.holdout < 1:
            raise SettingError(f"holdout {self.holdout} must lie in [0, 1)")
        if self.select.shots < 0:
            raise SettingError(f"shots {self.select.shots} must be at least 0, which means all")
        if not 0 < self.false_alarm_rate < 1:
            raise SettingError(f"false_alarm_rate {self.false_alarm_rate} must lie in (0, 1)")


class NothingToFit(UserError):
    """Too few good images that can be read."""


@dataclass(frozen=True)
class Split:
    """The good images of an inventory: to fit on, with a column `DETECTOR`, and held out."""

    fit: pa.Table
    held_out: pa.Table

    @property
    def products(self) -> list[str]:
        """All products that are fitted on."""
        return list(dict.fromkeys(self.fit["product"].to_pylist()))

    @property
    def detectors(self) -> list[str]:
        """Detectors in the order of the fit."""
        return list(dict.fromkeys(self.fit[DETECTOR].to_pylist()))


def split(inventory: Inventory, request: FitRequest) -> Split:
    """Choose the good images: split `train` where there are splits, label 0 or unknown.

    Per product the share `holdout` with the lowest ids, which are hashes, is held out for
    calibration, one image at least, though never the last; shots are drawn from the others.
    Raises NothingToFit.
    """
    rows = inventory.read([*CARRIED, "split", "label"])
    keep = pc.and_(pc.is_valid(rows["product"]), pc.is_null(rows["problem"]))
    keep = pc.and_(keep, pc.fill_null(pc.equal(rows["label"], 0), True))
    if rows["split"].null_count < len(rows):
        keep = pc.and_(keep, pc.fill_null(pc.equal(rows["split"], "train"), False))
    rows = rows.filter(keep).sort_by([("product", "ascending"), ("uri", "ascending")])
    if request.select.products:
        rows = _only(rows, request.select.products, inventory.location)
    if not len(rows):
        raise NothingToFit(
            f"{inventory.location} has no good image with a product in split train (or without "
            "splits); check the path pattern of the inventory"
        )
    held, shot = np.zeros((2, len(rows)), dtype=bool)
    products = rows["product"].to_numpy(zero_copy_only=False)
    ids = rows["image_id"].to_numpy(zero_copy_only=False)
    for product in np.unique(products):
        mine = np.flatnonzero(products == product)
        mine = mine[np.argsort(ids[mine])]
        least = 1 if request.holdout else 0
        count = min(max(least, round(len(mine) * request.holdout)), len(mine) - 1)
        held[mine[:count]] = True
        shot[_drawn(mine[count:], ids, request.select)] = True
    rows = rows.select(list(CARRIED))
    fitted = rows.filter(pa.array(shot))
    detectors = pa.array([ALL] * len(fitted)) if request.joint else fitted["product"]
    return Split(fitted.append_column(DETECTOR, detectors), rows.filter(pa.array(held)))


def _only(rows: pa.Table, products: Sequence[str], location: str) -> pa.Table:
    known = set(rows["product"].to_pylist())
    if unknown := sorted(set(products) - known):
        some = ", ".join(sorted(known)[:10])
        raise NothingToFit(f"{location} has no good image of products {unknown}; it has {some}")
    return rows.filter(pc.is_in(rows["product"], pa.array(products, pa.string())))


def _drawn(mine: npt.NDArray[np.int64], ids: Any, select: Select) -> npt.NDArray[np.int64]:
    """Shots among rows of one product: those whose ids hash lowest with the seed."""
    if not select.shots:
        return mine
    salt = select.seed.to_bytes(8, "big", signed=True)

    def order(row: int) -> bytes:
        return hashlib.blake2b(ids[row].encode(), digest_size=16, key=salt).digest()

    return np.array(sorted(mine, key=order)[: select.shots], dtype=np.int64)
