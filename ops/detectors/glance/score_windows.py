"""Scores of all windows of one image under a fitted Glance, and the map made of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ops.detectors.glance.global_net import GlanceNetwork, inconsistency
from ops.detectors.glance.grid_refinement import refine
from ops.errors import SettingError

#: Every so many windows of the grid are computed before refinement.
_COARSE_STEP = 9


class Grid(NamedTuple):
    """Windows of `patch` pixels, `stride` pixels apart, from the top left corner of an image."""

    patch: int
    stride: int

    def count(self, side: int) -> int:
        """Windows along a side. Raises SettingError if they do not cover it."""
        if side < self.patch or side % self.stride:
            raise SettingError(
                f"patches of {self.patch} pixels with stride {self.stride} do not cover an input "
                f"of {side} pixels; choose a larger --input.size that --glance.stride divides"
            )
        return (side - self.patch) // self.stride + 1

    def windows_and_cells(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Windows (h, w) of images (H, W), and cells (h, w) of `stride` pixels that they cover."""
        down, across = (self.count(side) for side in size)
        more = self.patch // self.stride - 1
        return (down, across), (down + more, across + more)

    def corners(self, numbers: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Top and left in pixels of windows, given by their numbers in row-major order."""
        return numbers // columns * self.stride, numbers % columns * self.stride


def inconsistencies(network: GlanceNetwork, pixels: Tensor, grid: Grid) -> Tensor:
    """s_IAD (h * w,) of all windows of a normalised image (1, 3, H, W), on the CPU."""
    local = network.local.dense(pixels, grid.stride)[0]
    numbers = torch.arange(local[0].numel(), device=pixels.device)
    top, left = grid.corners(numbers, local.shape[2])
    unmasked = network.around.unmasked(pixels)
    predicted = network.around.hidden_windows(unmasked, top, left, grid.patch)
    return inconsistency(local.flatten(1).T, predicted).cpu()


def window_scores(
    network: GlanceNetwork, pixels: Tensor, grid: Grid, weight: float, tolerance: float
) -> Tensor:
    """S (h, w) = weight * s_IAD / scale + (1 - weight) * s_DAD of all windows of an image.

    Each is compared with what good images get at its place. `pixels` (1, 3, H, W) are normalised.
    With a tolerance above 0, Global-Net's descriptors are interpolated where that hardly changes
    the map: see `refine`.
    """
    height, width = (grid.count(side) for side in pixels.shape[2:])
    factor, shift = (of.flatten() for of in network.usual_windows.on((height, width)))
    local = network.local.dense(pixels, grid.stride)[0].flatten(1).T
    unmasked = network.around.unmasked(pixels)

    def predict(numbers: Tensor) -> Tensor:
        top, left = grid.corners(numbers.to(pixels.device), width)
        return network.around.hidden_windows(unmasked, top, left, grid.patch)

    def score(numbers: Tensor, predicted: Tensor) -> Tensor:
        numbers = numbers.to(pixels.device)
        descriptors = local[numbers]
        s_dad = torch.sigmoid(-network.head(descriptors, predicted))
        s_iad = inconsistency(descriptors, predicted) / network.scale
        return (weight * s_iad + (1 - weight) * s_dad) * factor[numbers] + shift[numbers]

    predicted = refine((height, width), _COARSE_STEP, tolerance, predict, score)
    return score(torch.arange(height * width), predicted).view(height, width)


def average_map(scores: Tensor, grid: Grid) -> Tensor:
    """Scores of windows (h, w) -> means over the windows that cover each cell of `stride` pixels.

    The paper lets windows overlap, but does not say how their scores are merged.
    """
    cells = grid.patch // grid.stride
    down, across = (_coverage(length, cells).to(scores) for length in scores.shape)
    return (down @ scores @ across.T) / (down.sum(dim=1)[:, None] * across.sum(dim=1)[None, :])


def _coverage(windows: int, cells: int) -> Tensor:
    """(windows + cells - 1, windows): 1 where a window covers a cell, along one axis."""
    offset = torch.arange(windows + cells - 1)[:, None] - torch.arange(windows)[None, :]
    return ((offset >= 0) & (offset < cells)).float()
