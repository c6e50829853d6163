"""Evaluates a function on a grid from coarse to fine, and interpolates where it is smooth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: The function: row-major numbers of cells (m,) -> their values (m, d).
Function = Callable[[Tensor], Tensor]
#: Numbers of cells (m,) and their values (m, d) -> scores (m,) that errors are measured on.
Score = Callable[[Tensor, Tensor], Tensor]


def refine(
    shape: tuple[int, int], step: int, tolerance: float, function: Function, score: Score
) -> Tensor:
    """Values (h * w, d) of a function on all cells of a grid (h, w).

    At first every `step`-th cell of every `step`-th row is computed, and the two outermost rows and
    columns on each side. Each round then divides every interval into thirds. The new cells of a
    rectangle are computed if, in the rectangle before it, the mean error of interpolated scores
    exceeded `tolerance`; otherwise they are interpolated. A tolerance of 0 computes every cell.

    Thirds, because halves would always meet the same phase of a network's strides. The two
    outermost cells are separate because padding changes features at the border. Means, because a
    map takes means of its windows. The error is known at computed cells only: the tolerance is no
    bound for interpolated ones.
    """
    height, width = shape
    if tolerance <= 0 or min(shape) < 4:
        return function(torch.arange(height * width))
    rows, columns = (_coarse_axis(length, step) for length in shape)
    values = function(_numbers(rows, columns, width).flatten())
    values = values.view(len(rows), len(columns), -1)
    active = torch.ones(len(rows) - 1, len(columns) - 1, dtype=torch.bool)
    while len(rows) < height or len(columns) < width:
        finer = _thirds(rows), _thirds(columns)
        down = _interpolation(rows, finer[0]).to(values)
        across = _interpolation(columns, finer[1]).to(values)
        values = torch.einsum("ij,jkd,lk->ild", down, values, across)
        # The coarser rectangle that contains each finer one.
        parent = _parents(rows, finer[0])[:, None] * (len(columns) - 1)
        parent = (parent + _parents(columns, finer[1])[None, :]).flatten()
        active = active.flatten()[parent].view(len(finer[0]) - 1, -1)
        old = torch.isin(finer[0], rows)[:, None] & torch.isin(finer[1], columns)[None, :]
        new = _corner_cells(active) & ~old
        error = torch.zeros(new.shape)
        if new.any():
            numbers, chosen = _numbers(*finer, width)[new], new.to(values.device)
            computed = function(numbers)
            interpolated = values[chosen]
            error[new] = (score(numbers, computed) - score(numbers, interpolated)).float().cpu()
            values[chosen] = computed
        sums, counts = (_sum_by_parent(cells, parent) for cells in (error, new.float()))
        inexact = (sums / counts.clamp(min=1e-6)).abs() > tolerance
        active = active & inexact[parent].view(active.shape)
        rows, columns = finer
    return values.flatten(0, 1)


def _coarse_axis(length: int, step: int) -> Tensor:
    return torch.tensor(sorted({0, *range(1, length - 1, step), length - 2, length - 1}))


def _thirds(cells: Tensor) -> Tensor:
    """The cells, with every gap between neighbours divided into thirds."""
    gaps = cells[1:] - cells[:-1]
    share = torch.where(gaps == 2, 1, gaps // 3)  # a gap of two is halved
    return torch.as_tensor(torch.unique(torch.cat([cells, cells[:-1] + share, cells[1:] - share])))


def _numbers(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    return rows[:, None] * width + columns[None, :]


def _parents(coarse: Tensor, fine: Tensor) -> Tensor:
    """For each interval between fine cells, the interval between coarse cells that contains it."""
    return torch.searchsorted(coarse, fine[:-1], right=True) - 1


def _interpolation(coarse: Tensor, fine: Tensor) -> Tensor:
    """The matrix (fine, coarse) of linear interpolation."""
    interval = (torch.searchsorted(coarse, fine, right=True) - 1).clamp(max=len(coarse) - 2)
    share = (fine - coarse[interval]) / (coarse[interval + 1] - coarse[interval])
    out = torch.zeros(len(fine), len(coarse))
    index = torch.arange(len(fine))
    out[index, interval] = 1 - share
    out[index, interval + 1] = share
    return out


def _corners(rectangles: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Slices of a grid of cells that hold the four corners of each rectangle."""
    sides = [[slice(0, count), slice(1, count + 1)] for count in rectangles]
    return [(down, across) for down in sides[0] for across in sides[1]]


def _corner_cells(rectangles: Tensor) -> Tensor:
    """Which cells (h + 1, w + 1) are a corner of any of the marked rectangles (h, w)."""
    height, width = rectangles.shape
    out = torch.zeros(height + 1, width + 1, dtype=torch.bool)
    for corner in _corners((height, width)):
        out[corner] |= rectangles
    return out


def _sum_by_parent(cells: Tensor, parent: Tensor) -> Tensor:
    """Sums over coarser rectangles: each finer one adds the values of its four corners."""
    height, width = (length - 1 for length in cells.shape)
    corners = torch.stack([cells[corner] for corner in _corners((height, width))]).sum(dim=0)
    out = cells.new_zeros(int(parent.max()) + 1)
    return out.index_add_(0, parent, corners.flatten())
