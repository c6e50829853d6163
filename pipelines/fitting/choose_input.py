"""The input of a fit that leaves it open (`--input.size auto`), chosen from its pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ops.detectors.registry import detector_class
from ops.features.backbone import Backbone
from ops.images.resize import InputSettings, tiling
from pipelines.fitting.picture_sizes import PictureSizes
from pipelines.fitting.plan import layer_shapes
from pipelines.fitting.request import FitRequest

#: Pictures are seen whole, near their own resolution, up to so many patches: 704 x 704 pixels where
#: a patch has 8. Beyond, the network sees far more at once than it was trained on, a pass takes
#: more memory than a GPU shares out, and PatchCore keeps 38 MB of each picture until it has chosen.
MOST_PATCHES = 2**13
#: Products whose medians differ by more than this factor are told of.
_DIFFERENT = 1.5


class Chosen(NamedTuple):
    """A request whose input is settled, and what people should know of it."""

    request: FitRequest
    sentences: list[str]


@dataclass(frozen=True)
class NetworkInput:
    """What a network takes."""

    own: int
    """Side of the square inputs that it was trained on, in pixels."""
    step: int
    """What divides the sides of its inputs."""
    fixed: bool
    """Whether it takes no other size than its own."""
    patches: int
    """Patches of an input of its own size."""

    @classmethod
    def of(cls, request: FitRequest, network: Backbone) -> NetworkInput:
        """What the network of a fit takes; it is run once."""
        own = request.backbone.configuration.size
        _, rows, columns = layer_shapes(network, (own, own))[0]
        return cls(own, network.step, network.takes_one_size, rows * columns)

    def near(self, width: float, height: float) -> tuple[int, int]:
        """The input nearest to a width and height: never below the network's own size."""
        return self._rounded(width), self._rounded(height)

    def _rounded(self, length: float) -> int:
        return max(self.own, round(length / self.step) * self.step)

    def patches_of(self, sides: tuple[int, int]) -> int:
        """Patches of an input."""
        return round(self.patches * math.prod(sides) / self.own**2)

    def largest(self, width: int, height: int) -> tuple[int, int]:
        """The largest input for pictures of a width and height, in about their proportions."""
        if self.fixed:
            return self.own, self.own
        sides, factor = self.near(width, height), 1.0
        while self.patches_of(sides) > MOST_PATCHES and sides != (self.own, self.own):
            factor *= 0.97
            sides = self.near(width * factor, height * factor)
        return sides


def settled(asked: InputSettings, own: int) -> InputSettings:
    """What follows without a look at pictures; `own` is the network's size.

    Open remains the size of a picture that is seen whole, and whether it is.
    """
    if asked.size == "network" or (asked.size == "auto" and asked.fit in {"crop", "tile"}):
        asked = replace(asked, size=own)
    if asked.size != "auto" and asked.fit == "auto":
        asked = replace(asked, fit="squash")
    return asked


def choose_input(request: FitRequest, network: Backbone, pictures: PictureSizes) -> Chosen:
    """The request with an input for the largest of its products, by the median of each.

    A request that leaves nothing open is returned as it is.
    """
    asked = settled(request.input, request.backbone.configuration.size)
    if not asked.is_open:
        return Chosen(replace(request, input=asked), [])
    takes, medians = NetworkInput.of(request, network), pictures.medians
    if not medians:
        own = replace(asked, size=takes.own, fit="squash")
        return Chosen(
            replace(request, input=own),
            [
                f"input: {takes.own} x {takes.own}, the network's own size; no picture could be "
                "read to choose from"
            ],
        )
    size = max(medians.values(), key=math.prod)
    native, largest = takes.near(*size), takes.largest(*size)
    no_tiles = detector_class(request.method).no_tiles
    if native == largest or asked.fit == "squash" or no_tiles:
        found = replace(asked, fit="squash", size=f"{largest[0]}x{largest[1]}")
    else:
        found = replace(asked, fit="tile", size=takes.own)
    limited = no_tiles if native != largest else ""
    sentences = [*_told(found, size, takes, limited), *_mixture(medians)]
    return Chosen(replace(request, input=found), sentences)


def _told(
    found: InputSettings, size: tuple[int, int], takes: NetworkInput, limited: str
) -> Iterator[str]:
    """The input for pictures of a width and height, and its cost."""
    picture = f"{size[0]:,} x {size[1]:,}"
    patches = takes.patches_of(found.sides)
    if found.tiled:
        count = tiling(*size, found).total
        patches *= count
        what = (
            f"tiles of {found.size} px at the pictures' own resolution, {count:,} of a picture of "
            f"{picture}"
        )
    else:
        width, height = found.sides
        what = f"{width} x {height} for pictures of {picture}"
    times = patches / takes.patches
    cost = f", {times:.3g} times those, and the time, of {takes.own} x {takes.own}"
    yield (
        f"input: {what} (--input.size auto): {patches:,} patches a picture"
        f"{cost if times > 1 else ''}"
    )
    if limited:
        yield f"pictures are not cut into tiles: {limited}"


def _mixture(medians: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """A warning if one input serves pictures of very different sizes."""
    small, large = min(medians.values(), key=max), max(medians.values(), key=max)
    if max(large) > _DIFFERENT * max(small):
        yield (
            f"warning: products have pictures from {small[0]:,} x {small[1]:,} to {large[0]:,} x "
            f"{large[1]:,}; one input, chosen from the largest, serves all: fit them apart "
            "(--select.products) for inputs of their own"
        )
