"""One picture under trained networks of Glance: all its windows, and the map that they make."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ops.detectors.glance.global_net import Surroundings, inconsistency
from ops.detectors.glance.grid_refinement import refined
from ops.errors import SettingError

#: Windows from one to the next, before any is refined.
_STEP = 9


class Grid(NamedTuple):
    """Windows of `patch` pixels, `stride` apart, that begin at the corner of a picture."""

    patch: int
    stride: int

    def count(self, side: int) -> int:
        """Along a side. Raises SettingError if they do not cover it."""
        if side < self.patch or side % self.stride:
            raise SettingError(
                f"patches of {self.patch} pixels, {self.stride} apart, do not cover an input of "
                f"{side} pixels; choose a larger --input.size that --glance.stride divides"
            )
        return (side - self.patch) // self.stride + 1

    def corners(self, numbers: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """Top and left in pixels of windows by their numbers, row by row."""
        return numbers // columns * self.stride, numbers % columns * self.stride


def inconsistencies(network: Surroundings, pixels: Tensor, grid: Grid) -> Tensor:
    """s_IAD (h * w,) of all windows of a normalised picture (1, 3, H, W), on the CPU."""
    local = network.local.dense(pixels, grid.stride)[0]
    numbers = torch.arange(local[0].numel(), device=pixels.device)
    top, left = grid.corners(numbers, local.shape[2])
    around = network.around.around(network.around.whole(pixels), top, left, grid.patch)
    return inconsistency(local.flatten(1).T, around).cpu()


def scores(
    network: Surroundings, pixels: Tensor, grid: Grid, weight: float, tolerance: float
) -> Tensor:
    """S (h, w) = weight * s_IAD / scale + (1 - weight) * s_DAD of all windows of a picture.

    With a tolerance, what surrounds a window is interpolated where that foretells its score.
    """
    shape = tuple(grid.count(side) for side in pixels.shape[2:])
    local = network.local.dense(pixels, grid.stride)[0].flatten(1).T
    whole = network.around.whole(pixels)

    def compute(numbers: Tensor) -> Tensor:
        top, left = grid.corners(numbers.to(pixels.device), shape[1])
        return network.around.around(whole, top, left, grid.patch)

    def judge(numbers: Tensor, around: Tensor) -> Tensor:
        mine = local[numbers.to(pixels.device)]
        distorted = torch.sigmoid(-network.head(mine, around))
        disagreeing = inconsistency(mine, around) / network.scale
        return weight * disagreeing + (1 - weight) * distorted

    height, width = shape
    around = refined((height, width), _STEP, tolerance, compute, judge)
    return judge(torch.arange(height * width), around).view(height, width)


def spread(scores: Tensor, grid: Grid) -> Tensor:
    """Scores of windows (h, w) to the mean over the windows that hold a cell of `stride` pixels.

    That windows overlap is the paper's, that their mean is taken is not.
    """
    cells = grid.patch // grid.stride
    down, across = (_covering(length, cells).to(scores) for length in scores.shape)
    return (down @ scores @ across.T) / (down.sum(dim=1)[:, None] * across.sum(dim=1)[None, :])


def _covering(windows: int, cells: int) -> Tensor:
    """(windows + cells - 1, windows): 1 where a window holds a cell."""
    offset = torch.arange(windows + cells - 1)[:, None] - torch.arange(windows)[None, :]
    return ((offset >= 0) & (offset < cells)).float()
