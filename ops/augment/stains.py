"""Patches with small random stains, from which Glance learns what distorted ones look like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: A stain that nobody could see teaches nothing: grey levels, and share of the patch's pixels.
_LEVELS = 8 / 255
_SHARE = 0.002
#: Half-axes of ellipses, as shares of the patch's side.
_AXES = (0.01, 0.12)
#: Change of brightness, of full scale.
_SHIFT = (0.2, 0.6)
_SCRATCHES = 0.3


def stained(patch: Tensor, pool: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """A patch (3, p, p) in [0, 1] with one to three blobs, and at times a scratch.

    `pool` are snippets (3, p, p) of other images: a blob takes a colour or a texture of one, or
    shifts the brightness. More blobs follow until enough pixels changed. How stains look is told
    by no source: these are ours.
    """
    out = patch
    for _ in range(_whole(1, 4, generator)):
        out = _filled(out, _ellipse(len(patch[0]), generator), pool, generator)
    if _uniform(0, 1, generator) < _SCRATCHES:
        out = _filled(out, _scratch(len(patch[0]), generator), pool, generator)
    while float(((out - patch).abs().amax(dim=0) > _LEVELS).float().mean()) < _SHARE:
        out = _filled(out, _ellipse(len(patch[0]), generator), pool, generator)
    return out


def _filled(
    patch: Tensor, alpha: Tensor, pool: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """The patch with something else where alpha (p, p) is 1."""
    snippet = pool[_whole(0, len(pool), generator)]
    kind = _whole(0, 3, generator)
    if kind == 0:
        y, x = (_whole(0, len(alpha), generator) for _ in range(2))
        fill = snippet[:, y, x, None, None]
    elif kind == 1:
        sign = 1 if _uniform(0, 1, generator) < 0.5 else -1
        fill = (patch + sign * _uniform(*_SHIFT, generator)).clamp(0, 1)
    else:
        fill = snippet
    return patch + alpha * (fill - patch)


def _ellipse(size: int, generator: torch.Generator) -> Tensor:
    """1 inside, falling to 0 over about a pixel."""
    along, across = (size * _uniform(*_AXES, generator) for _ in range(2))
    middle = [_uniform(0, size, generator) for _ in range(2)]
    x, y = _turned(size, middle, _uniform(0, math.pi, generator))
    radius = ((x / along).square() + (y / across).square()).sqrt()
    return ((1 - radius) * min(along, across) + 0.5).clamp(0, 1)


def _scratch(size: int, generator: torch.Generator) -> Tensor:
    """A thin line with two to four bends."""
    start = [_uniform(0, size, generator) for _ in range(2)]
    angle, thickness = _uniform(0, 2 * math.pi, generator), _uniform(0.5, 1.5, generator)
    alpha = torch.zeros(size, size)
    for _ in range(_whole(2, 5, generator)):
        angle += _uniform(-math.pi / 3, math.pi / 3, generator)
        length = size * _uniform(0.1, 0.3, generator)
        along, across = _turned(size, start, angle)
        away = torch.hypot(along - along.clamp(0, length), across)
        alpha = alpha.maximum((thickness - away + 0.5).clamp(0, 1))
        start = [start[0] + length * math.cos(angle), start[1] + length * math.sin(angle)]
    return alpha


def _turned(size: int, middle: list[float], angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates of all pixels about a point, along and across a direction."""
    at = torch.arange(size) + 0.5
    x, y = (at - middle[0])[None, :], (at - middle[1])[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _whole(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))
