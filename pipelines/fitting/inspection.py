"""The inspection masks of a fit: read as --roi and --ignore name them, and checked on pictures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow.compute as pc

from ops.archives.views import view_of
from ops.detectors.model_folder import Model
from ops.errors import UserError
from ops.failure import Failure
from ops.images import polygons
from ops.images.inspection import MOST_PIXELS, Bools, InspectionMask, read_mask
from ops.images.read_images import Read
from ops.images.resize import nearest
from ops.images.tiles import map_size
from ops.results import overlays
from ops.storage import files
from ops.storage.paths import INSPECTED, picture_file, product_file
from ops.storage.storage_errors import NotFound, TooLarge
from pipelines.fitting.picture_sizes import Sample, samples_of
from pipelines.fitting.request import FitRequest, Split

#: Good pictures of each detector that a mask is checked on.
_PICTURES = 4
#: Products whose model gets a picture of its mask, and the side of a picture in pixels.
_DRAWN, _SIDE = 100, 384
#: Bytes of a mask's file.
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Masks:
    """The masks of a fit by detector; empty if all of every picture is inspected."""

    by_detector: dict[str, InspectionMask] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG files by name, in a model folder: a good picture of each, with the outline."""


def masks_of(chosen: Split, request: FitRequest, earlier: Model | None = None) -> Masks:
    """The masks that a request names, or those of the model that is grown.

    Raises UserError if a detector has none, or one that fits none of a few of its pictures.
    """
    by_detector = _kept(chosen, earlier) if earlier else {}
    if not (by_detector or request.roi or request.ignore):
        return Masks()
    pictures = {}
    for number, detector in enumerate(chosen.products):
        samples = _samples(chosen, detector, request)
        mask, sample = _mask(detector, samples, request, by_detector.get(detector))
        by_detector[detector] = mask
        if number < _DRAWN:
            name = picture_file(product_file(detector), INSPECTED)
            pictures[name] = _drawn(sample, mask)
    return Masks(by_detector, pictures)


def _kept(chosen: Split, earlier: Model) -> dict[str, InspectionMask]:
    new = sorted(set(chosen.products) - set(earlier.card.products))
    if earlier.masks and new:
        raise UserError(
            f"the model that is grown has inspection masks, and none of {', '.join(new[:10])}, "
            "which it does not know; fit a new model, or choose products with --select.products"
        )
    return dict(earlier.masks)


def _samples(chosen: Split, detector: str, request: FitRequest) -> list[Sample]:
    """A few of the pictures of a detector, evenly chosen. Raises UserError if none can be read."""
    rows = chosen.fit.filter(pc.equal(chosen.fit["product"], detector))
    rows = rows.take(list(range(0, len(rows), -(-len(rows) // _PICTURES))))
    small = replace(request.input, fit="squash", size=_SIDE, exposure="as_is")
    read = Read(small, request.decode, request.fetch)(rows)
    found = list(samples_of(read, _SIDE))
    if not found:
        reason = next(iter(read["reason"].to_pylist()), None)
        raise UserError(
            f"none of {len(rows)} pictures of {detector!r} can be read, so its inspection mask "
            f"cannot be checked: {reason}"
        )
    return found


def _mask(
    detector: str, samples: list[Sample], request: FitRequest, known: InspectionMask | None
) -> tuple[InspectionMask, Sample]:
    """The mask of a detector, if it is not `known`, and the first picture that it fits."""
    first: UserError | None = None
    for sample in samples:
        try:
            mask = known or _read(detector, sample, request)
            mask.check(sample.width, sample.height, request.input)
            return mask, sample
        except Failure as failure:
            message = f"the inspection mask of {detector!r} fits no picture: {failure.reason}"
            first = first or UserError(message)
        except UserError as error:
            first = first or error
    assert first
    raise first


def _read(detector: str, sample: Sample, request: FitRequest) -> InspectionMask:
    """What is in the region of interest, and not ignored."""
    places = {name: getattr(request, name) for name in ("roi", "ignore") if getattr(request, name)}
    drawn = {name: _pixels(place, detector, sample, request) for name, place in places.items()}
    parts = [drawn[name] if name == "roi" else ~drawn[name] for name in drawn]
    rows, columns = max((part.shape for part in parts), key=lambda shape: shape[0] * shape[1])
    size = columns, rows
    resized = [nearest(part, size, (0, 0), size) for part in parts]
    inspected = np.logical_and.reduce(resized)
    if not inspected.any():
        names = " and ".join(f"--{name} {place}" for name, place in places.items())
        raise UserError(f"{names}: nothing of {detector!r} is left to inspect; draw other masks")
    return InspectionMask.of(inspected)


def _pixels(pattern: str, detector: str, sample: Sample, request: FitRequest) -> Bools:
    """The pixels that a mask of this place marks; a picture has the size of `sample`."""
    location = _location(pattern, detector, request)
    try:
        data = files.read_bytes(location, limit=_MOST_BYTES)
    except NotFound:
        raise NotFound(
            f"{location} is missing, the inspection mask of {detector!r}; every product needs one: "
            "one that is white as a whole inspects all of the picture"
        ) from None
    except TooLarge:
        raise UserError(
            f"{location} has more than {_MOST_BYTES:,} bytes; draw a simpler mask"
        ) from None
    try:
        if not location.lower().endswith(".json"):
            return _checked(read_mask(data), sample)
        found = polygons.read_polygons(data, detector)
        polygons.check_within(found, sample.width, sample.height)
    except UserError as error:
        raise UserError(f"{location}, the inspection mask of {detector!r}: {error}") from None
    size = map_size(sample.width, sample.height, MOST_PIXELS)
    return polygons.enclosed(found, (sample.width, sample.height), size)


def _checked(drawn: Bools, sample: Sample) -> Bools:
    """The mask, if it fits a picture. Raises UserError."""
    ones = InspectionMask.of(np.ones_like(drawn))
    if not ones.fits(sample.width, sample.height):
        raise UserError(
            f"it has {drawn.shape[1]} x {drawn.shape[0]} px, and a picture {sample.width} x "
            f"{sample.height}; a mask must have the aspect ratio of the pictures, within 1 %"
        )
    return drawn


def _location(pattern: str, detector: str, request: FitRequest) -> str:
    """The place of a detector's mask. Raises UserError for names that could lead elsewhere."""
    product, view = view_of(detector, request.views)
    location = pattern
    for name, value in (("product", product), ("view", view or "")):
        if f"{{{name}}}" not in pattern:
            continue
        if value in {"", ".", ".."} or any(c in value for c in "/\\\0"):
            raise UserError(
                f"no file can be named after the {name} {value!r}, which is empty, or holds a "
                f"slash or dots alone; name its polygons in one JSON file instead of {pattern!r}"
            )
        location = location.replace(f"{{{name}}}", value)
    return location


def _drawn(sample: Sample, mask: InspectionMask) -> bytes:
    """A PNG of a picture, in its proportions, with the outline of its mask."""
    inside = nearest(mask.inspected, (_SIDE, _SIDE), (0, 0), (_SIDE, _SIDE))
    return overlays.outlined(sample.pixels, inside, (sample.width, sample.height))
