"""Synthetic defects: patches of one good image, Poisson-blended into another.

NSA (Schlueter et al., ECCV 2022) as SSNF uses it: with the gradients of the source for every
category. Our own choices: images are not rounded to 8 bits, because only a network reads them; the
mask of the product is computed once, before the first patch; a patch without a valid place is left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import uniform_filter

from ops.augment.poisson_blending import Mask, clone, without_border

#: An image (C, H, W) in [0, 1].
Picture = npt.NDArray[np.float64]
Bounds = tuple[float, float]

_ATTEMPTS = 200
#: Least pixels of a patch's mask; smaller patches are left out.
_SMALLEST = 50


@dataclass(frozen=True)
class Background:
    """How a product differs from its background, and how patches must overlap with it."""

    grey: float
    """Brightness of the background, of 255."""
    tolerance: float
    """Pixels whose mean colour differs from `grey` by more belong to the product."""
    overlap: float
    """Least share of the patch's product pixels that must fall on the product."""
    product: float
    """Least share of product pixels in a patch."""


@dataclass(frozen=True)
class Rules:
    """Sizes and numbers of the defects of one category."""

    height: Bounds = (0.03, 0.4)
    """Bounds of half the height of a patch, as shares of the image's height."""
    width: Bounds = (0.03, 0.4)
    """Bounds of half the width of a patch, as shares of the image's width."""
    patches: int = 3
    """Most patches of an image; each but the first is left out with probability 1/2."""
    scale: Bounds = (0.7, 1.3)
    """Bounds of the factor by which a patch is resized."""
    background: Background | None = None


_TEXTURE = Rules(patches=4, scale=(0.5, 2.0))
_ON_BRIGHT = Background(200, 60, 0.25, 0.7)
_ON_DARK = Background(20, 20, 0.25, 0.7)
#: For products that are not in the table; our own choice.
_OTHER = Rules()

#: Rules by product, in lower case: the table of SSNF.
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
    """The rules of a category, or the default rules if it is not in the table."""
    return CATEGORIES.get(category.lower(), _OTHER)


class Defective(NamedTuple):
    """An image (C, H, W) with synthetic defects, and the mask (H, W) of the changed regions."""

    picture: Picture
    mask: Mask


class _Patch(NamedTuple):
    picture: Picture  # (C, h, w)
    product: Mask | None  # (h, w); None without a rule about the background


def make(
    destination: Picture, source: Picture, rules: Rules, rng: np.random.Generator
) -> Defective:
    """Blend patches of one good image into another of the same size.

    If no patch follows the rules, the image is unchanged and the mask is empty.
    """
    picture, mask = destination.copy(), np.zeros(destination.shape[1:], bool)
    products = [product_mask(p, rules.background) for p in (destination, source)]
    for number in range(rules.patches):
        if number and rng.random() < 0.5:
            continue
        patch = _cut_patch(source, products[1], rules, rng)
        place = _find_place(patch, products[0], mask.shape, rules, rng) if patch else None
        if patch is None or place is None:
            continue
        inside = np.ones(patch.picture.shape[1:], bool)
        if patch.product is not None and products[0] is not None:
            inside = patch.product | products[0][place]
        inside = without_border(inside)
        if inside.sum() < _SMALLEST:
            continue
        blended = clone(picture[:, *place], patch.picture, inside)
        picture[:, *place] = blended.clip(0, 1)
        mask[place] |= inside
    return Defective(picture, mask)


def product_mask(picture: Picture, background: Background | None) -> Mask | None:
    """The mask (H, W) of the product, smoothed by a median of 7 x 7; None without a rule."""
    if background is None:
        return None
    differs = np.abs(picture.mean(axis=0) * 255 - background.grey) > background.tolerance
    return np.asarray(uniform_filter(differs.astype(np.float64), 7) > 0.5)


def _cut_patch(
    source: Picture, product: Mask | None, rules: Rules, rng: np.random.Generator
) -> _Patch | None:
    """A resized patch; None if no attempt contains enough of the product."""
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
    # As in NSA, the bounds of half sides also limit whole sides here, which keeps defects small.
    size = np.rint(np.clip((high - low) * factor, least, most)).astype(int).clip(3)
    planes = [_resize(plane, size, Image.Resampling.BILINEAR) for plane in source[:, *place]]
    if product is None:
        return _Patch(np.stack(planes), None)
    product_of_patch = (
        _resize(product[place].astype(np.float64), size, Image.Resampling.NEAREST) > 0.5
    )
    return _Patch(np.stack(planes), product_of_patch)


def _find_place(
    patch: _Patch,
    product: Mask | None,
    sides: tuple[int, ...],
    rules: Rules,
    rng: np.random.Generator,
) -> tuple[slice, slice] | None:
    """Where to put the patch; None if no attempt follows the rules."""
    height, width = patch.picture.shape[1:]
    for _ in range(_ATTEMPTS):
        top, left = rng.integers(0, (sides[0] - height + 1, sides[1] - width + 1))
        place = (slice(top, top + height), slice(left, left + width))
        if product is None or patch.product is None:
            return place
        rule, destination = _background(rules), product[place]
        overlap = (destination & patch.product).sum() / max(1, patch.product.sum())
        if destination.mean() > rule.product and overlap > rule.overlap:
            return place
    return None


def _background(rules: Rules) -> Background:
    assert rules.background is not None
    return rules.background


def _resize(plane: Picture, size: npt.NDArray[np.int64], kernel: Image.Resampling) -> Picture:
    image = Image.fromarray(plane.astype(np.float32)).resize((int(size[1]), int(size[0])), kernel)
    return np.asarray(image, dtype=np.float64)
