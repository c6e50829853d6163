"""Whether good images lie too far apart for a fit that compares a position with itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ops.detectors.registry import detector_class
from ops.features.backbone import LayerShape
from ops.images.placement import placement
from ops.images.resize import InputSettings
from ops.plain_text import printable
from pipelines.fitting.picture_sizes import PictureSizes, pixel_seen
from pipelines.fitting.request import FitRequest

#: The mean distance of a point of a square from its centre, as a share of its side.
_FROM_CENTRE = 0.383


def placement_matters(request: FitRequest) -> bool:
    """Whether patches are compared by position, or masks say where a part lies."""
    return detector_class(request.method).by_position or bool(request.masks)


def misplaced(
    pictures: PictureSizes, request: FitRequest, layers: Sequence[LayerShape]
) -> Iterator[str]:
    """A warning for each detector whose pictures lie further apart than a patch is large.

    `layers`: shapes of the features of an input, of which those of the coarsest count.
    """
    _, rows, columns = min(layers, key=lambda layer: math.prod(layer[1:]))
    for detector, small in pictures.small.items():
        found = placement(small)
        if found is None:
            continue
        patch = max(_patch(size, request.input, rows, columns) for size in pictures.of(detector))
        turned = math.radians(found.turn) * _FROM_CENTRE
        if max(found.shift, turned) <= patch:
            continue
        how = f"turned by up to {found.turn:.0f} degrees, which moves a patch by {turned:.1%}"
        if found.shift > turned:
            how = f"shifted by up to {found.shift:.1%}"
        yield (
            f"warning: good images of {printable(detector)} are {how} of the picture's side (90 % "
            f"of {len(small)} pictures), and a patch of the coarsest layer is {patch:.1%}; "
            f"{_remedy(request)}"
        )


def _patch(size: tuple[int, int], settings: InputSettings, rows: int, columns: int) -> float:
    """The longest side of a patch, as a share of that side of a picture of this size."""
    (across, down), (x, y) = settings.sides, pixel_seen(size, settings)
    return max(x * across / columns / size[0], y * down / rows / size[1])


def _remedy(request: FitRequest) -> str:
    if detector_class(request.method).by_position:
        return (
            f"{request.method} compares patches at the same position, so align the pictures, or "
            "choose a method that does not, such as patchcore"
        )
    return "an inspection mask stays where it is, so align the pictures, or fit without a mask"
