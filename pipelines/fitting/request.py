"""The request of a fit, and the split of the good images into fitted and held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory, image_id
from ops.archives.layouts import composed
from ops.detectors.registry import detector_class
from ops.errors import SettingError, UserError
from ops.features.backbone import BackboneSettings
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings
from ops.storage import uris
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
    """Largest number of images of each product to fit on; 0 = all. Held-out images are not
    counted."""
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
    holdout: float = 0.1
    false_alarm_rate: float = 0.01
    max_failed: str = "0"

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
        if not 0 < self.false_alarm_rate < 1:
            raise SettingError(f"false_alarm_rate {self.false_alarm_rate} must lie in (0, 1)")


class NothingToFit(UserError):
    """There is no good image to fit on, or the fit was refused."""


@dataclass(frozen=True)
class Split:
    """The good images of an inventory: to fit on, with columns `DETECTOR` and `ROW`, and held out.

    Both are in the order in which they are read, see `_in_reading_order`.
    """

    fit: pa.Table
    held_out: pa.Table

    @property
    def products(self) -> list[str]:
        """Products with images to fit on."""
        return sorted(set(self.fit["product"].to_pylist()))

    @property
    def detectors(self) -> list[str]:
        """Names of the detectors, in the order in which they are fitted."""
        return sorted(set(self.fit[DETECTOR].to_pylist()))


def split(inventory: Inventory, request: FitRequest) -> Split:
    """Split the good images of an inventory.

    Good images have label 0 or none, and belong to split `train` if the inventory has splits.
    Of each product the share `holdout` with the lowest hashes of their addresses is held out for
    calibration: at least one image, but never all. Shots are chosen from the others. Versions play
    no part, so a copy of files at the same place, or another mode, gives the same split.
    Raises NothingToFit.
    """
    rows = inventory.read([*CARRIED, "split", "label"])
    keep = pc.and_(pc.is_valid(rows["product"]), pc.is_null(rows["problem"]))
    keep = pc.and_(keep, pc.fill_null(pc.equal(rows["label"], 0), True))
    if rows["split"].null_count < len(rows):
        keep = pc.and_(keep, pc.fill_null(pc.equal(rows["split"], "train"), False))
    rows = rows.filter(keep).sort_by([("product", "ascending"), ("uri", "ascending")])
    if request.select.products:
        names = [composed(name) for name in request.select.products]
        rows = _with_products(rows, names, inventory.location)
    if not len(rows):
        raise NothingToFit(
            f"{inventory.location} has no good image of a known product in split train (or at all, "
            "if it has no splits); check the path pattern of the inventory"
        )
    is_held_out, is_shot = np.zeros((2, len(rows)), dtype=bool)
    # The rows are sorted by product, so each product is a run of them.
    products = rows["product"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append(True, products[1:] != products[:-1]))
    ids = np.array([image_id(uri, "") for uri in rows["uri"].to_pylist()])
    for run in np.split(np.arange(len(rows)), starts[1:]):
        mine = run[np.argsort(ids[run], kind="stable")]
        least = 1 if request.holdout else 0
        count = min(max(least, round(len(mine) * request.holdout)), len(mine) - 1)
        is_held_out[mine[:count]] = True
        is_shot[_choose_shots(mine[count:], ids, request.select)] = True
    rows = rows.select(list(CARRIED))
    fitted = rows.filter(pa.array(is_shot))
    detectors = pa.array([ALL] * len(fitted)) if request.joint else fitted["product"]
    fitted = fitted.append_column(DETECTOR, detectors)
    fitted = fitted.append_column(ROW, pa.array(range(len(fitted)), pa.int64()))
    held_out = rows.filter(pa.array(is_held_out))
    return Split(
        _in_reading_order(fitted, request.joint), _in_reading_order(held_out, request.joint)
    )


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


def _choose_shots(rows: npt.NDArray[np.int64], ids: Any, select: Select) -> npt.NDArray[np.int64]:
    """Shots among rows of one product: those with the lowest hashes of id and seed."""
    if not select.shots:
        return rows
    salt = select.seed.to_bytes(8, "big", signed=True)

    def order(row: int) -> bytes:
        return hashlib.blake2b(ids[row].encode(), digest_size=16, key=salt).digest()

    return np.array(sorted(rows, key=order)[: select.shots], dtype=np.int64)
