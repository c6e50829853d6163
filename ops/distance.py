"""Squared distances whose bits depend on the two vectors alone, and a fast filter in front of them.

`squared` uses element-wise arithmetic in a fixed tree, so batch shape, threads, shard and library
cannot change a bit. Matrix products only say which pairs are worth it, with a proven error bound.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Beyond this a squared distance could overflow float32.
LARGEST = 1e18
_ROWS = 2048  # rows per product: with 256 columns the product stays in the second-level cache
_COLUMNS = 1024


def squared(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 over the last dimension, summed in pairs over a zero-padded power of two."""
    terms = x - y
    terms = terms * terms
    width = terms.shape[-1]
    half = 1 << max(0, (width - 1).bit_length() - 1)
    if width > 1 and width != 2 * half:
        head = terms[..., :half].clone()
        head[..., : width - half] += terms[..., half:]  # the padding would add zeros
        terms, half = head, half // 2
    while half and terms.shape[-1] > 1:
        terms = terms[..., :half] + terms[..., half : 2 * half]
        half //= 2
    return terms[..., 0]


def slack(dim: int) -> float:
    """S with | (|x|^2 + |c|^2 - 2 x.c) - squared(x, c) | <= s (|x|^2 + |c|^2), any sum order."""
    return (2 * dim + 64) * 2.0**-24


class Nearest(NamedTuple):
    """Squared distance to, and index of, the nearest of some vectors; lowest index on ties."""

    value: Tensor
    row: Tensor


def nearest(x: Tensor, centres: Tensor, x2: Tensor, c2: Tensor, bound: Tensor) -> Nearest:
    """The nearest of `centres` (m, d) for each row of x (n, d), if nearer than `bound` (n,).

    `x2`, `c2` are squared norms. Rows with nothing below their bound keep it, with index -1.
    """
    value, index = bound.clone(), torch.full_like(bound, -1, dtype=torch.int64)
    for row in range(0, len(x), _ROWS):
        rows = slice(row, row + _ROWS)
        for column in range(0, len(centres), _COLUMNS):
            columns = slice(column, column + _COLUMNS)
            _improve(
                x[rows], centres[columns], x2[rows], c2[columns], value[rows], index[rows], column
            )
    return Nearest(value, index)


def _improve(
    x: Tensor, c: Tensor, x2: Tensor, c2: Tensor, value: Tensor, index: Tensor, first: int
) -> None:
    """Lower `value` and set `index` in place where a vector of `c` is nearer."""
    product = torch.addmm(c2.unsqueeze(0), x, c.T, alpha=-2)  # |x - c|^2 - |x|^2, nearly
    error = slack(x.shape[1]) * (x2 + c2.max())
    least = product.amin(dim=1)
    rows = torch.nonzero(least + x2 - error <= value).flatten()
    if not len(rows):
        return
    limit = torch.minimum(value[rows] - x2[rows], least[rows] + error[rows]) + error[rows]
    pair_row, pair_column = torch.nonzero(product[rows] <= limit.unsqueeze(1), as_tuple=True)
    distance = squared(x[rows[pair_row]], c[pair_column])
    best = distance.new_full((len(rows),), torch.inf)
    best.scatter_reduce_(0, pair_row, distance, "amin")
    tied = distance == best[pair_row]
    winner = pair_column.new_full((len(rows),), len(c))
    winner.scatter_reduce_(0, pair_row[tied], pair_column[tied], "amin")
    nearer = best < value[rows]
    value[rows[nearer]] = best[nearer]
    index[rows[nearer]] = winner[nearer] + first
