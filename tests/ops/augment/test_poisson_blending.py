"""Poisson blending against a direct solution of its equations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import lil_array
from scipy.sparse.linalg import spsolve

from ops.augment.poisson_blending import TOLERANCE, clone, without_border

HEIGHT, WIDTH = 23, 31


def picture(seed: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, HEIGHT, WIDTH))


def filled() -> np.ndarray:
    return without_border(np.ones((HEIGHT, WIDTH), bool))


def ring() -> np.ndarray:
    """With a hole, two parts, and a single pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(y - 11, x - 12)
    mask = (distance < 9) & (distance > 4)
    mask[10:13, 11:14] = mask[2, 28] = True
    return mask


MASKS = {"filled": filled(), "ring": ring()}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def solved(destination: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One channel, pixel by pixel: 4 u - neighbours = 4 s - neighbours of s."""
    number = np.cumsum(mask).reshape(mask.shape) - 1
    matrix, right = lil_array((mask.sum(), mask.sum())), np.zeros(mask.sum())
    for y, x in zip(*np.nonzero(mask), strict=True):
        row = number[y, x]
        matrix[row, row] = 4
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            right[row] += source[y, x] - source[v, u]
            if mask[v, u]:
                matrix[row, number[v, u]] = -1
            else:
                right[row] += destination[v, u]
    out = destination.copy()
    out[mask] = spsolve(matrix.tocsr(), right)
    return out


@pytest.mark.parametrize(("name", "bound"), [("filled", 1e-12), ("ring", TOLERANCE)])
def test_it_solves_poissons_equation(name, bound):
    destination, source = picture(1, 3), picture(2, 3)
    found = clone(destination, source, MASKS[name])
    for channel in range(3):
        expected = solved(destination[channel], source[channel], MASKS[name])
        np.testing.assert_allclose(found[channel], expected, rtol=0, atol=bound)


@every_mask
def test_nothing_changes_beyond_the_mask(mask):
    destination = picture(1)
    found = clone(destination, picture(2), mask)
    assert (found[:, ~mask] == destination[:, ~mask]).all()
    assert (found[:, mask] != destination[:, mask]).all()


@every_mask
def test_a_harmonic_source_leaves_a_harmonic_function(mask):
    """A harmonic source adds nothing: the result depends only on the border."""
    destination = picture(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 30.0
    membranes = [clone(destination, s[None], mask) for s in (0 * x, 0 * x + 0.7, 2 * x - y)]
    for found in membranes[1:]:
        np.testing.assert_allclose(found, membranes[0], rtol=0, atol=TOLERANCE)
    inside = membranes[0][:, mask]
    assert inside.min() > destination.min()
    assert inside.max() < destination.max()


@every_mask
def test_the_harmonic_function_on_a_ramp_is_the_ramp(mask):
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 60.0
    ramp = (x + 0.5 * y)[None]
    np.testing.assert_allclose(clone(ramp, 0 * ramp, mask), ramp, rtol=0, atol=TOLERANCE)


@every_mask
def test_an_image_blended_into_itself_does_not_change(mask):
    found = clone(picture(1), picture(1), mask)
    np.testing.assert_allclose(found, picture(1), rtol=0, atol=1e-12)


def test_an_empty_mask_changes_nothing():
    destination = picture(1)
    found = clone(destination, picture(2), np.zeros((HEIGHT, WIDTH), bool))
    assert (found == destination).all()
    assert found is not destination


def test_a_mask_at_the_border_is_refused():
    with pytest.raises(ValueError, match="reaches the border"):
        clone(picture(1), picture(2), np.ones((HEIGHT, WIDTH), bool))
