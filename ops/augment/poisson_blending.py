"""Poisson blending (Perez, Gangnet and Blake 2003): one picture's structure on another's border."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.sparse.linalg import LinearOperator, cg

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: What a general mask's solution may be off, in grey levels of a picture in [0, 1].
TOLERANCE = 1e-3


def clone(destination: Floats, source: Floats, mask: Mask) -> Floats:
    """The destination (C, h, w) with the source's gradients where `mask` (h, w) is set.

    Solves equation 2 with the source's gradients as guidance: inside the mask the Laplacian is the
    source's, around it the values are the destination's. A mask that fills all but the border is
    solved exactly by sine transforms, another by conjugate gradients up to `TOLERANCE`.
    Raises ValueError if the mask reaches the border, where nothing would hold the solution.
    """
    if mask[[0, -1]].any() or mask[:, [0, -1]].any():
        raise ValueError("the mask reaches the border of the picture; leave one pixel free")
    if not mask.any():
        return destination.copy()
    held = np.where(mask, 0.0, destination - source)
    solve = _filled if mask[1:-1, 1:-1].all() else _masked
    return np.asarray(source + np.stack([solve(plane, mask) for plane in held])) * mask + (
        destination * ~mask
    )


def _filled(held: Floats, mask: Mask) -> Floats:
    """The membrane (h, w) over all but the border, whose values are held: (h, w), 0 inside."""
    del mask  # all but the border
    pull = _neighbours(held)[1:-1, 1:-1]
    spectrum = fft.dstn(pull, type=1) / _eigenvalues(pull.shape[0], pull.shape[1])
    out = held.copy()
    out[1:-1, 1:-1] = fft.idstn(spectrum, type=1)
    return out


def _masked(held: Floats, mask: Mask) -> Floats:
    """The membrane (h, w) where the mask is set, with values held around it."""
    inside = np.flatnonzero(mask)
    pull = _neighbours(held).flat[inside]
    plane = np.zeros(mask.shape)

    def laplacian(values: Floats) -> Floats:
        plane.flat[inside] = values
        return np.asarray(4 * values - _neighbours(plane).flat[inside])

    # The inverse Laplacian of a region within s x s pixels adds up to (s + 1)^2 / 8 at most in a
    # row; so much more than what is left of the equation can the solution be off.
    rows, columns = np.nonzero(mask)
    side = min(np.ptp(rows), np.ptp(columns)) + 1
    left = TOLERANCE * 8 / (side + 1) ** 2
    operator = LinearOperator((len(inside), len(inside)), matvec=laplacian, dtype=np.float64)
    found, failed = cg(operator, pull, rtol=0, atol=left, maxiter=10 * len(inside))
    if failed:
        raise ArithmeticError(f"blending did not converge in {failed} steps")
    out = held.copy()
    out.flat[inside] = found
    return out


def _neighbours(plane: Floats) -> Floats:
    """The sum of the four around each pixel; beyond the border there is nothing."""
    out = np.zeros_like(plane)
    out[1:] += plane[:-1]
    out[:-1] += plane[1:]
    out[:, 1:] += plane[:, :-1]
    out[:, :-1] += plane[:, 1:]
    return out


@functools.lru_cache(maxsize=256)
def _eigenvalues(height: int, width: int) -> Floats:
    """Of the negative 5-point Laplacian with zeros around it, under the sine transform."""
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in (height, width))
    return np.asarray(rows[:, None] + columns)


def bordered(mask: Mask) -> Mask:
    """The mask (h, w) without its border of one pixel along the picture's edge."""
    out = mask.copy()
    out[[0, -1]] = out[:, [0, -1]] = False
    return out
