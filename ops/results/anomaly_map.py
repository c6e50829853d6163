"""Anomaly maps: patch scores up-sampled to the input's pixels, and the scale of their levels."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, gaussian_filter1d

from ops.images.resize import Geometry

Map = npt.NDArray[np.float32]
LEVELS = 65536


class Scale(NamedTuple):
    """value = offset + scale * grey level. All maps of a model have the same, so nights compare."""

    offset: float
    scale: float

    def levels(self, values: Map) -> npt.NDArray[np.uint16]:
        """Grey levels of values, clipped to [0, 65535]."""
        levels = np.rint((values - self.offset) / self.scale)
        return np.asarray(levels.clip(0, LEVELS - 1), dtype=np.uint16)

    def level_above(self, value: float) -> int:
        """The lowest grey level that stands for more than a value; `LEVELS` if none does."""
        values = self.offset + self.scale * np.arange(LEVELS)
        return int(np.searchsorted(values, value, side="right"))


@functools.cache
def _upsampling_matrix(cells: int, size: int, sigma: float) -> npt.NDArray[np.float32]:
    """Bilinear up-sampling (align_corners=False), then a Gaussian, as a matrix (size, cells)."""
    # Centres of pixels in units of cells, counted from the centre of the first cell.
    at = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    bilinear = np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1)
    smooth = gaussian_filter1d(bilinear, sigma, axis=0) if sigma > 0 else bilinear
    return np.asarray(smooth, dtype=np.float32)


def upsample(patch_scores: Map, size: tuple[int, int], sigma: float) -> Map:
    """Patch scores (h, w), up-sampled to a width and height and smoothed.

    `sigma` is in input pixels. Both steps are linear and separable, so they are one product of
    matrices per axis.
    """
    rows = _upsampling_matrix(patch_scores.shape[0], size[1], sigma)
    columns = _upsampling_matrix(patch_scores.shape[1], size[0], sigma)
    return np.asarray(rows @ patch_scores @ columns.T, dtype=np.float32)


def enlarge(grid: Map, size: tuple[int, int], sigma: tuple[float, float]) -> Map:
    """`upsample` to any width and height, with memory for the result alone.

    `sigma` is in pixels of the result, from left to right and from top to bottom.
    """
    large = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BILINEAR), np.float32)
    return np.asarray(gaussian_filter(large, sigma[::-1]), np.float32) if any(sigma) else large


def extended(grid: npt.NDArray[Any], shown: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Values (h, w) of which those that are not `shown` are replaced by the nearest that are.

    So what is not shown does not leak into its neighbours when a map is enlarged and smoothed.
    At least one value must be shown.
    """
    if shown.all():
        return grid
    places = distance_transform_edt(~shown, return_distances=False, return_indices=True)
    return np.asarray(grid[tuple(places)])


def peak(values: Map, geometry: Geometry) -> tuple[int, int]:
    """X and y of the largest value, in pixels of the picture."""
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return geometry.to_picture(float(x), float(y))
