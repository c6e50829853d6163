"""What other inputs of a fit would cost and show, beside the one that it has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from ops.detectors.registry import detector_class
from ops.images.resize import InputSettings, tiling
from pipelines.fitting.choose_input import NetworkInput
from pipelines.fitting.picture_sizes import Detail, coarsest
from pipelines.fitting.plan import Plan
from pipelines.fitting.rehearsal import Rehearsal
from pipelines.fitting.request import FitRequest


class Compared(NamedTuple):
    """One input."""

    input: InputSettings
    patches: int
    """Of a picture."""
    minutes: float
    """To extract the features of all images, and to calibrate; not to fit."""
    detail: Detail


def compare_inputs(
    request: FitRequest,
    takes: NetworkInput,
    size: tuple[int, int],
    planned: Plan,
    measured: Rehearsal,
) -> list[Compared]:
    """The input of a request first, then others, each for pictures of this width and height.

    Time to compute is taken to grow with the pixels that the network gets.
    """
    images = sum(planned.images.values()) + 2 * planned.held_out
    pixels = math.prod(request.input.sides)
    compared = []
    for settings in dict.fromkeys([request.input, *_others(request, takes, size)]):
        inputs = tiling(*size, settings).total if settings.tiled else 1
        add = measured.add * inputs * math.prod(settings.sides) / pixels
        along = round(settings.sides[0] * math.sqrt(takes.patches) / takes.own)
        detail = coarsest([size], settings, max(1, along))
        assert detail
        compared.append(
            Compared(
                settings,
                inputs * takes.patches_of(settings.sides),
                images * (measured.read + add) / planned.workers / 60,
                detail,
            )
        )
    return compared


def _others(
    request: FitRequest, takes: NetworkInput, size: tuple[int, int]
) -> Iterator[InputSettings]:
    """Pictures seen whole, at the network's own size and at the largest; then tiles."""
    asked = replace(request.input, fit="squash", size=takes.own)
    yield asked
    width, height = takes.largest(*size)
    yield replace(asked, size=f"{width}x{height}")
    if not detector_class(request.method).no_tiles:
        for scale in (0.5, 1.0):
            yield replace(asked, fit="tile", scale=scale)


def name_of(settings: InputSettings) -> str:
    """An input in few words."""
    if settings.tiled:
        scale = "" if settings.scale == 1 else f", scale {settings.scale:g}"
        return f"tiles of {settings.size}{scale}"
    kind = "" if settings.fit == "squash" else f"{settings.fit} "
    width, height = settings.sides
    return f"{kind}{width} x {height}"
