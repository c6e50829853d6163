"""Random stains on patches, which Glance learns to tell from clean patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Least change of a visibly changed pixel, of full scale, and least share of changed pixels.
_LEVELS = 8 / 255
_SHARE = 0.002
#: Bounds of the half-axes of ellipses, as shares of the patch's side.
_AXES = (0.01, 0.12)
#: Bounds of a change of brightness, of full scale.
_SHIFT = (0.2, 0.6)
#: Probability of a scratch.
_SCRATCH = 0.3


def add_stains(patch: Tensor, pool: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """A copy of a patch (3, p, p) in [0, 1] with one to three blobs, and sometimes a scratch.

    `pool` holds patches (3, p, p) of other images. A stain has a colour or the texture of one of
    these, or shifts the brightness. Blobs are added until enough pixels have changed. The paper
    does not describe the stains; these are our own.
    """
    out = patch
    for _ in range(_random_int(1, 4, generator)):
        out = _fill(out, _ellipse(len(patch[0]), generator), pool, generator)
    if _uniform(0, 1, generator) < _SCRATCH:
        out = _fill(out, _scratch(len(patch[0]), generator), pool, generator)
    while float(((out - patch).abs().amax(dim=0) > _LEVELS).float().mean()) < _SHARE:
        out = _fill(out, _ellipse(len(patch[0]), generator), pool, generator)
    return out


def _fill(
    patch: Tensor, alpha: Tensor, pool: Sequence[Tensor], generator: torch.Generator
) -> Tensor:
    """The patch, blended with a random filling by alpha (p, p)."""
    snippet = pool[_random_int(0, len(pool), generator)]
    kind = _random_int(0, 3, generator)
    if kind == 0:
        y, x = (_random_int(0, len(alpha), generator) for _ in range(2))
        fill = snippet[:, y, x, None, None]
    elif kind == 1:
        sign = 1 if _uniform(0, 1, generator) < 0.5 else -1
        fill = (patch + sign * _uniform(*_SHIFT, generator)).clamp(0, 1)
    else:
        fill = snippet
    return patch + alpha * (fill - patch)


def _ellipse(size: int, generator: torch.Generator) -> Tensor:
    """Alpha (p, p) of a random ellipse: 1 inside, falling to 0 over about a pixel."""
    along, across = (size * _uniform(*_AXES, generator) for _ in range(2))
    middle = [_uniform(0, size, generator) for _ in range(2)]
    x, y = _rotated_coordinates(size, middle, _uniform(0, math.pi, generator))
    radius = ((x / along).square() + (y / across).square()).sqrt()
    return ((1 - radius) * min(along, across) + 0.5).clamp(0, 1)


def _scratch(size: int, generator: torch.Generator) -> Tensor:
    """Alpha (p, p) of a thin line of two to four segments."""
    start = [_uniform(0, size, generator) for _ in range(2)]
    angle, thickness = _uniform(0, 2 * math.pi, generator), _uniform(0.5, 1.5, generator)
    alpha = torch.zeros(size, size)
    for _ in range(_random_int(2, 5, generator)):
        angle += _uniform(-math.pi / 3, math.pi / 3, generator)
        length = size * _uniform(0.1, 0.3, generator)
        along, across = _rotated_coordinates(size, start, angle)
        away = torch.hypot(along - along.clamp(0, length), across)
        alpha = alpha.maximum((thickness - away + 0.5).clamp(0, 1))
        start = [start[0] + length * math.cos(angle), start[1] + length * math.sin(angle)]
    return alpha


def _rotated_coordinates(size: int, middle: list[float], angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates (p, p) of all pixels about a point, along and across a direction."""
    at = torch.arange(size) + 0.5
    x, y = (at - middle[0])[None, :], (at - middle[1])[:, None]
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _random_int(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))
