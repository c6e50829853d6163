"""Bounds on distances from products of float32, of the leading axes of vectors.

For a processor that multiplies 8-bit integers no faster than float32: float32 is more precise, so
half as many axes exclude as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ops.search.distance import slack
from ops.search.quantised import Codes

#: Principal axes of the vectors; one more dimension is for the length of the remainder.
LEADING = 95
_FAR = 1e37  # half a squared length, beyond that of any vector
_TINY = 1e-40  # above the errors of squares below the normal range


class LeadingAxes:
    """Products of vectors (n, d), split into principal axes and the length of the remainder.

    Its methods are those of `Quantiser`; codes are the vectors themselves, without residuals.
    """

    def __init__(self, vectors: Tensor) -> None:
        """For vectors (n, d) that become the columns."""
        self._centre = vectors.mean(dim=0)
        self._longest = float((vectors - self._centre).square().sum(dim=1).max())
        self._error = 4 * slack(len(self._centre))

    def codes(self, x: Tensor) -> Codes:
        """Finite vectors (n, d) minus the centre, with -1 in the extra column."""
        away = x - self._centre
        square = away.square().sum(dim=1)
        rows = torch.cat([away, away.new_full((len(away), 1), -1.0)], dim=1)
        return Codes(rows, square, torch.zeros_like(square))

    def columns(self, codes: Codes) -> Tensor:
        """The same vectors as columns of a product, with |c|^2 / 2 in the extra column."""
        columns = codes.rows.clone()
        columns[:, -1] = codes.square / 2
        return columns

    def padding(self, count: int) -> Tensor:
        """Columns (count, w) whose products are lower than those of any vector."""
        columns = torch.zeros(count, len(self._centre) + 1)
        columns[:, -1] = _FAR
        return columns

    def products(self, rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
        """x.c - |c|^2 / 2 (n, m); larger means nearer."""
        return torch.mm(rows, columns.T, out=out)

    def empty_products(self, rows: int, columns: int) -> Tensor:
        """Uninitialised memory for products (rows, columns)."""
        return torch.empty(rows, columns)

    def least_product(self, squared: Tensor, codes: Codes, residual: float) -> Tensor:  # noqa: ARG002 - there is no residual
        """The least product (n,) that a column at this squared distance, or nearer, can have."""
        error = self._error * (codes.square + self._longest) + _TINY
        return (codes.square - squared - error) / 2
