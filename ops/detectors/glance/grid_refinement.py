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

    Every `step`-th cell of every `step`-th row is computed, and the two outermost on every side;
    then those at the thirds between them, and so on. Where what is judged of these differs, on
    the mean of a piece, by more than `tolerance` from what interpolation would have given, the
    pieces in it are refined again; else they are interpolated. 0 computes every cell.

    Thirds, as strides of networks are powers of two: halves would always meet the same phase. The
    outermost are apart because networks see borders. Means, as that is what a map takes of its
    windows. The tolerance is an estimate from cells that were computed, no bound for the others.
    """
    height, width = shape
    if tolerance <= 0 or min(shape) < 4:
        return compute(torch.arange(height * width))
    rows, columns = (_coarse(length, step) for length in shape)
    values = compute(_numbers(rows, columns, width).flatten())
    values = values.view(len(rows), len(columns), -1)
    doubtful = torch.ones(len(rows) - 1, len(columns) - 1, dtype=torch.bool)
    while len(rows) < height or len(columns) < width:
        finer = _thirds(rows), _thirds(columns)
        down, across = _between(rows, finer[0]).to(values), _between(columns, finer[1]).to(values)
        values = torch.einsum("ij,jkd,lk->ild", down, values, across)
        # Which piece of the coarser grid each piece of the finer one is of.
        piece = _pieces(rows, finer[0])[:, None] * (len(columns) - 1)
        piece = (piece + _pieces(columns, finer[1])[None, :]).flatten()
        doubtful = doubtful.flatten()[piece].view(len(finer[0]) - 1, -1)
        old = torch.isin(finer[0], rows)[:, None] & torch.isin(finer[1], columns)[None, :]
        new = _touched(doubtful) & ~old
        error = torch.zeros(new.shape)
        if new.any():
            numbers, chosen = _numbers(*finer, width)[new], new.to(values.device)
            found = compute(numbers)
            error[new] = (judge(numbers, found) - judge(numbers, values[chosen])).float().cpu()
            values[chosen] = found
        sums, counts = (_summed(part, piece) for part in (error, new.float()))
        badly = (sums / counts.clamp(min=1e-6)).abs() > tolerance
        doubtful = doubtful & badly[piece].view(doubtful.shape)
        rows, columns = finer
    return values.flatten(0, 1)


def _coarse(length: int, step: int) -> Tensor:
    return torch.tensor(sorted({0, *range(1, length - 1, step), length - 2, length - 1}))


def _thirds(cells: Tensor) -> Tensor:
    gaps = cells[1:] - cells[:-1]
    # A gap of two has no thirds, but a middle.
    share = torch.where(gaps == 2, 1, gaps // 3)
    return torch.as_tensor(torch.unique(torch.cat([cells, cells[:-1] + share, cells[1:] - share])))


def _numbers(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    return rows[:, None] * width + columns[None, :]


def _pieces(coarse: Tensor, fine: Tensor) -> Tensor:
    """For each gap between fine cells, the gap between coarse ones that it lies in."""
    return torch.searchsorted(coarse, fine[:-1], right=True) - 1


def _between(coarse: Tensor, fine: Tensor) -> Tensor:
    """(fine, coarse): linear interpolation."""
    piece = (torch.searchsorted(coarse, fine, right=True) - 1).clamp(max=len(coarse) - 2)
    share = (fine - coarse[piece]) / (coarse[piece + 1] - coarse[piece])
    out = torch.zeros(len(fine), len(coarse))
    index = torch.arange(len(fine))
    out[index, piece] = 1 - share
    out[index, piece + 1] = share
    return out


def _corners(pieces: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Where the four corners of each piece lie among cells."""
    sides = [[slice(0, count), slice(1, count + 1)] for count in pieces]
    return [(down, across) for down in sides[0] for across in sides[1]]


def _touched(pieces: Tensor) -> Tensor:
    """Cells at a corner of any of the pieces."""
    height, width = pieces.shape
    out = torch.zeros(height + 1, width + 1, dtype=torch.bool)
    for corner in _corners((height, width)):
        out[corner] |= pieces
    return out


def _summed(cells: Tensor, piece: Tensor) -> Tensor:
    """Over each coarser piece; each piece between four cells gives it theirs."""
    height, width = (length - 1 for length in cells.shape)
    inside = torch.stack([cells[corner] for corner in _corners((height, width))]).sum(dim=0)
    out = cells.new_zeros(int(piece.max()) + 1)
    return out.index_add_(0, piece, inside.flatten())
