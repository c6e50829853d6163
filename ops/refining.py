"""A function on a grid, from coarse to fine: computed where its neighbours do not foretell it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Values (m, d) of some cells, which are named by their numbers (m,), row by row.
Compute = Callable[[Tensor], Tensor]
#: What becomes of the values (m, d) of some cells (m,): numbers (m,).
Judge = Callable[[Tensor, Tensor], Tensor]


def refined(
    shape: tuple[int, int], step: int, tolerance: float, compute: Compute, judge: Judge
) -> Tensor:
    """Values (h * w, d) of all cells of a grid.

    Every `step`-th cell of every `step`-th row is computed, and the last ones; then those halfway
    between. Where what is judged of these differs by more than `tolerance` from what the mean of
    their neighbours would have given, the halves are halved again, else interpolated. So the
    tolerance is an estimate at some cells, no bound for all. 0 computes every cell.
    """
    height, width = shape
    if tolerance <= 0 or min(shape) == 1:
        return compute(torch.arange(height * width))
    rows, columns = (_ends(length, step) for length in shape)
    values = compute(_numbers(rows, columns, width).flatten())
    doubtful = torch.ones(len(rows) - 1, len(columns) - 1, dtype=torch.bool)
    values = values.view(len(rows), len(columns), -1)
    while len(rows) < height or len(columns) < width:
        finer_rows, finer_columns = _halved(rows), _halved(columns)
        across, down = _between(rows, finer_rows), _between(columns, finer_columns)
        values = torch.einsum("ij,jkd,lk->ild", across.to(values), values, down.to(values))
        # Which piece of the coarser grid each piece of the finer one is of.
        parents = _pieces(rows, finer_rows), _pieces(columns, finer_columns)
        doubtful = doubtful[parents[0]][:, parents[1]]
        old = torch.isin(finer_rows, rows)[:, None] & torch.isin(finer_columns, columns)[None, :]
        new = _touched(doubtful) & ~old
        error = torch.zeros(new.shape)
        if new.any():
            numbers = _numbers(finer_rows, finer_columns, width)[new]
            found = compute(numbers)
            foretold = judge(numbers, values[new.to(values.device)])
            error[new] = (judge(numbers, found) - foretold).abs().cpu()
            values[new.to(values.device)] = found
        # A whole piece of the coarser grid is in doubt if any cell of it was foretold badly.
        worst = _largest(error)
        coarse = torch.zeros(len(rows) - 1, len(columns) - 1)
        place = (parents[0][:, None] * coarse.shape[1] + parents[1][None, :]).flatten()
        coarse.view(-1).scatter_reduce_(0, place, worst.flatten(), "amax")
        doubtful = doubtful & (coarse.view(-1)[place].view(worst.shape) > tolerance)
        rows, columns = finer_rows, finer_columns
    return values.flatten(0, 1)


def _ends(length: int, step: int) -> Tensor:
    return torch.tensor(sorted({*range(0, length, step), length - 1}))


def _halved(cells: Tensor) -> Tensor:
    return torch.tensor(sorted({*cells.tolist(), *((cells[1:] + cells[:-1]) // 2).tolist()}))


def _numbers(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    return rows[:, None] * width + columns[None, :]


def _pieces(coarse: Tensor, fine: Tensor) -> Tensor:
    """For each gap between fine cells, the gap between coarse ones that it lies in."""
    return torch.searchsorted(coarse, fine[:-1], right=True) - 1


def _between(coarse: Tensor, fine: Tensor) -> Tensor:
    """(fine, coarse): linear interpolation."""
    if len(coarse) == 1:
        return torch.ones(1, 1)
    piece = (torch.searchsorted(coarse, fine, right=True) - 1).clamp(max=len(coarse) - 2)
    share = (fine - coarse[piece]) / (coarse[piece + 1] - coarse[piece])
    out = torch.zeros(len(fine), len(coarse))
    index = torch.arange(len(fine))
    out[index, piece] = 1 - share
    out[index, piece + 1] = share
    return out


def _touched(pieces: Tensor) -> Tensor:
    """Cells at a corner of any of the pieces."""
    out = torch.zeros(pieces.shape[0] + 1, pieces.shape[1] + 1, dtype=torch.bool)
    for down in (slice(None, -1), slice(1, None)):
        for across in (slice(None, -1), slice(1, None)):
            out[down, across] |= pieces
    return out


def _largest(corners: Tensor) -> Tensor:
    """Of the four corners of each piece."""
    rows = corners[:-1].maximum(corners[1:])
    return rows[:, :-1].maximum(rows[:, 1:])
