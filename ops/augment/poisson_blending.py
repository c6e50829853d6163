"""Poisson blending (Perez, Gangnet and Blake 2003) of one image into another."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.sparse.linalg import LinearOperator, cg

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Largest error of the solution for an irregular mask, of pixels in [0, 1].
TOLERANCE = 1e-3


def clone(destination: Floats, source: Floats, mask: Mask) -> Floats:
    """The destination (C, h, w) with the source's gradients where `mask` (h, w) is set.

    Solves equation 2 with the source's gradients as guidance: inside the mask the Laplacian is the
    source's, around it the values are the destination's. A mask of everything but the border is
    solved exactly by sine transforms, any other by conjugate gradients up to `TOLERANCE`.
    Raises ValueError if the mask reaches the border, where the equation has no boundary values.
    """
    if mask[[0, -1]].any() or mask[:, [0, -1]].any():
        raise ValueError("the mask reaches the border of the image; leave one pixel free")
    if not mask.any():
        return destination.copy()
    boundary = np.where(mask, 0.0, destination - source)
    solve = _solve_rectangle if mask[1:-1, 1:-1].all() else _solve_mask
    return np.asarray(source + np.stack([solve(plane, mask) for plane in boundary])) * mask + (
        destination * ~mask
    )


def _solve_rectangle(boundary: Floats, mask: Mask) -> Floats:
    """The harmonic function (h, w) inside the border, for boundary values (h, w), 0 inside."""
    del mask  # everything but the border
    rhs = _neighbour_sum(boundary)[1:-1, 1:-1]
    spectrum = fft.dstn(rhs, type=1) / _eigenvalues(rhs.shape[0], rhs.shape[1])
    out = boundary.copy()
    out[1:-1, 1:-1] = fft.idstn(spectrum, type=1)
    return out


def _solve_mask(boundary: Floats, mask: Mask) -> Floats:
    """The harmonic function (h, w) where the mask is set, for the boundary values around it."""
    inside = np.flatnonzero(mask)
    rhs = _neighbour_sum(boundary).flat[inside]
    plane = np.zeros(mask.shape)

    def laplacian(values: Floats) -> Floats:
        plane.flat[inside] = values
        return np.asarray(4 * values - _neighbour_sum(plane).flat[inside])

    # Each row of the inverse Laplacian of a region within s x s pixels sums to at most
    # (s + 1)^2 / 8, which bounds the error of the solution by that factor of the residual.
    rows, columns = np.nonzero(mask)
    side = min(np.ptp(rows), np.ptp(columns)) + 1
    residual = TOLERANCE * 8 / (side + 1) ** 2
    operator = LinearOperator((len(inside), len(inside)), matvec=laplacian, dtype=np.float64)
    solution, failed_after = cg(operator, rhs, rtol=0, atol=residual, maxiter=10 * len(inside))
    if failed_after:
        raise ArithmeticError(f"blending did not converge in {failed_after} steps")
    out = boundary.copy()
    out.flat[inside] = solution
    return out


def _neighbour_sum(plane: Floats) -> Floats:
    """The sum of the four neighbours of each pixel; zeros beyond the border."""
    out = np.zeros_like(plane)
    out[1:] += plane[:-1]
    out[:-1] += plane[1:]
    out[:, 1:] += plane[:, :-1]
    out[:, :-1] += plane[:, 1:]
    return out


@functools.lru_cache(maxsize=256)
def _eigenvalues(height: int, width: int) -> Floats:
    """Eigenvalues of the negative 5-point Laplacian with zero boundary, in the sine basis."""
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) for n in (height, width))
    return np.asarray(rows[:, None] + columns)


def without_border(mask: Mask) -> Mask:
    """The mask (h, w) with False in the outermost rows and columns."""
    out = mask.copy()
    out[[0, -1]] = out[:, [0, -1]] = False
    return out
