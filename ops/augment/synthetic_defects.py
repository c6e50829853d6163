"""Synthetic defects: patches of one good picture, Poisson-blended into another.

NSA (Schlueter et al., ECCV 2022) as SSNF uses it: the source's gradients for every category.
Our own choices: pictures are not rounded to 8 bits, as a network is what looks at them; where the
product lies is asked of the picture before any patch; a patch that finds no place is left out.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_dilation, uniform_filter

from ops.augment.poisson_blending import Mask, bordered, clone

#: A picture (C, H, W) in [0, 1].
Picture = npt.NDArray[np.float64]
Bounds = tuple[float, float]

_ATTEMPTS = 200
#: Smaller masks make no defect.
_SMALLEST = 50


@dataclass(frozen=True)
class Background:
    """How a product stands out from what is behind it, and how patches must meet it."""

    grey: float
    """Of the background, of 255."""
    tolerance: float
    """What differs more from it, in the mean of its colours, is the product."""
    overlap: float
    """Share of the source's product that must lie on the destination's."""
    product: float
    """Share of a patch that must be product."""


@dataclass(frozen=True)
class Rules:
    """What the defects of one category are like."""

    height: Bounds = (0.03, 0.4)
    """Least and most of half a patch's height, in heights of the picture."""
    width: Bounds = (0.03, 0.4)
    patches: int = 3
    """At most; each but the first is left out every other time."""
    scale: Bounds = (0.7, 1.3)
    """How much a patch may be shrunk and grown."""
    background: Background | None = None


_TEXTURE = Rules(patches=4, scale=(0.5, 2.0))
_ON_BRIGHT = Background(200, 60, 0.25, 0.7)
_ON_DARK = Background(20, 20, 0.25, 0.7)
#: Of products that the table does not have; our choice.
_OTHER = Rules()

#: By product, in lower case; the table of SSNF.
CATEGORIES: Mapping[str, Rules] = {
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), _TEXTURE),
    "bottle": Rules(background=_ON_BRIGHT),
    "cable": Rules(height=(0.05, 0.4), width=(0.05, 0.4)),
    "capsule": Rules(height=(0.03, 0.15), background=_ON_BRIGHT),
    "hazelnut": Rules(height=(0.03, 0.35), width=(0.03, 0.35), background=_ON_DARK),
    "metal_nut": Rules(background=replace(_ON_DARK, product=0.5)),
    "pill": Rules(height=(0.03, 0.2), background=_ON_DARK),
    "screw": Rules(
        (0.03, 0.12), (0.03, 0.12), patches=4, background=replace(_ON_BRIGHT, product=0.5)
    ),
    "toothbrush": Rules(width=(0.03, 0.2), background=replace(_ON_DARK, product=0.25)),
    "transistor": Rules(),
    "zipper": Rules(width=(0.03, 0.2), patches=4, background=_ON_BRIGHT),
    "01": Rules(background=_ON_BRIGHT),  # BTAD
    "02": _TEXTURE,
    "03": Rules(background=_ON_BRIGHT),
    **{f"class{n}": _TEXTURE for n in range(1, 11)},  # DAGM
}


def rules_for(category: str) -> Rules:
    """The rules of a category; those of no category in particular if it has none."""
    return CATEGORIES.get(category.lower(), _OTHER)


class Defective(NamedTuple):
    """A picture (C, H, W) with synthetic defects, and the mask (H, W) of what may differ."""

    picture: Picture
    mask: Mask


class _Patch(NamedTuple):
    picture: Picture  # (C, h, w)
    product: Mask | None  # (h, w); None where no rule asks


def make(
    destination: Picture, source: Picture, rules: Rules, rng: np.random.Generator
) -> Defective:
    """Blend patches of one good picture into another of the same size.

    The mask is empty, and the picture as it was, if no patch was found that keeps the rules.
    """
    picture, mask = destination.copy(), np.zeros(destination.shape[1:], bool)
    products = [product_mask(p, rules.background) for p in (destination, source)]
    for number in range(rules.patches):
        if number and rng.random() < 0.5:
            continue
        patch = _cut(source, products[1], rules, rng)
        place = _placed(patch, products[0], mask.shape, rules, rng) if patch else None
        if patch is None or place is None:
            continue
        inside = np.ones(patch.picture.shape[1:], bool)
        if patch.product is not None and products[0] is not None:
            inside = patch.product | products[0][place]
        inside = bordered(inside)
        if inside.sum() < _SMALLEST:
            continue
        blended = clone(picture[:, *place], patch.picture, inside)
        picture[:, *place] = blended.clip(0, 1)
        mask[place] |= inside
    return Defective(picture, mask)


def product_mask(picture: Picture, background: Background | None) -> Mask | None:
    """Where the product is (H, W), smoothed by a median of 7 x 7; None without a rule."""
    if background is None:
        return None
    differs = np.abs(picture.mean(axis=0) * 255 - background.grey) > background.tolerance
    return np.asarray(uniform_filter(differs.astype(np.float64), 7) > 0.5)


def _cut(
    source: Picture, product: Mask | None, rules: Rules, rng: np.random.Generator
) -> _Patch | None:
    """A patch, scaled; None if none was found with enough of the product."""
    sides = np.array(source.shape[1:])
    least, most = (np.array([rules.height[i], rules.width[i]]) * sides for i in (0, 1))
    half = np.clip((0.03 + rng.gamma(2, 0.05, 2)) * sides, least, most)
    for _ in range(_ATTEMPTS):
        centre = rng.uniform(least, sides - least)
        low = np.maximum(0, np.rint(centre - half)).astype(int)
        high = np.minimum(sides, np.rint(centre + half)).astype(int)
        place = (slice(low[0], high[0]), slice(low[1], high[1]))
        if product is None or product[place].mean() > _background(rules).product:
            break
    else:
        return None
    factor = np.clip(rng.normal(1, 0.5), *rules.scale)
    # As in NSA, whole sides are held to the bounds of half ones, which keeps defects small.
    size = np.rint(np.clip((high - low) * factor, least, most)).astype(int).clip(3)
    planes = [_resized(plane, size, Image.Resampling.BILINEAR) for plane in source[:, *place]]
    if product is None:
        return _Patch(np.stack(planes), None)
    own = _resized(product[place].astype(np.float64), size, Image.Resampling.NEAREST) > 0.5
    return _Patch(np.stack(planes), own)


def _placed(
    patch: _Patch,
    product: Mask | None,
    sides: tuple[int, ...],
    rules: Rules,
    rng: np.random.Generator,
) -> tuple[slice, slice] | None:
    """Where in a picture the patch goes; None if no place was found that keeps the rules."""
    height, width = patch.picture.shape[1:]
    for _ in range(_ATTEMPTS):
        top, left = rng.integers(0, (sides[0] - height + 1, sides[1] - width + 1))
        place = (slice(top, top + height), slice(left, left + width))
        if product is None or patch.product is None:
            return place
        rule, under = _background(rules), product[place]
        shared = (under & patch.product).sum() / max(1, patch.product.sum())
        if under.mean() > rule.product and shared > rule.overlap:
            return place
    return None


def _background(rules: Rules) -> Background:
    assert rules.background is not None
    return rules.background


def _resized(plane: Picture, size: npt.NDArray[np.int64], kernel: Image.Resampling) -> Picture:
    image = Image.fromarray(plane.astype(np.float32)).resize((int(size[1]), int(size[0])), kernel)
    return np.asarray(image, dtype=np.float64)


def contact_sheet(pairs: Sequence[tuple[Picture, Defective]], side: int = 128) -> bytes:
    """A PNG: above good pictures, below what was made of them, masks outlined in red."""
    canvas = Image.new("RGB", (side * max(1, len(pairs)), side * 2))
    for column, (good, made) in enumerate(pairs):
        edge = binary_dilation(made.mask) & ~made.mask
        outlined = np.where(edge, np.array([1.0, 0.0, 0.0])[:, None, None], made.picture)
        for row, picture in enumerate((good, outlined)):
            colours = np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0)
            image = Image.fromarray(np.rint(colours * 255).astype(np.uint8))
            canvas.paste(image.resize((side, side)), (side * column, side * row))
    out = io.BytesIO()
    canvas.save(out, "PNG", compress_level=1)
    return out.getvalue()
