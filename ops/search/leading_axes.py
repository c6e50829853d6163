"""Bounds on distances from products of float32, in the leading axes of vectors alone.

A vector is split into its first components Px and the length |rx| of the others. By
Cauchy-Schwarz |x - c|^2 >= |Px - Pc|^2 + (|rx| - |rc|)^2. If the components are sorted by their
variance, few of them exclude most vectors. For a processor that multiplies 8-bit integers no
faster than float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ops.search.distance import slack
from ops.search.quantised import Codes

#: Components that are multiplied; one more is for the length of the others.
LEADING = 127
_FAR = 1e37  # half a squared length, beyond that of any vector
_TINY = 1e-40  # above the errors of squares below the normal range


class LeadingAxes:
    """Products of vectors (n, d) that are sorted by the variance of their components.

    Its methods are those of `Quantiser`; codes are the vectors themselves, without residuals.
    """

    def __init__(self, vectors: Tensor, leading: int) -> None:
        """For vectors (n, d) that become the columns; `leading` is `LEADING`, or d for all."""
        self._centre, self._leading = vectors.mean(dim=0), min(leading, vectors.shape[1] - 1)
        self._longest = float((vectors - self._centre).square().sum(dim=1).max())
        self._error = 4 * slack(len(self._centre))

    def codes(self, x: Tensor) -> Codes:
        """The leading axes of finite vectors (n, d), with -1 in the extra column."""
        away = x - self._centre
        square = away.square().sum(dim=1)
        if away.shape[1] > self._leading + 1:
            others = away[:, self._leading :].square().sum(dim=1, keepdim=True).sqrt_()
            away = torch.cat([away[:, : self._leading], others], dim=1)
        rows = torch.cat([away, away.new_full((len(away), 1), -1.0)], dim=1)
        return Codes(rows, square, torch.zeros_like(square))

    def columns(self, codes: Codes) -> Tensor:
        """The same vectors as columns of a product, with |c|^2 / 2 in the extra column."""
        columns = codes.rows.clone()
        columns[:, -1] = codes.square / 2
        return columns

    def padding(self, count: int) -> Tensor:
        """Columns (count, w) whose products are lower than those of any vector."""
        columns = torch.zeros(count, self._leading + 2)
        columns[:, -1] = _FAR
        return columns

    def products(self, rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
        """x.c - |c|^2 / 2 (n, m); larger means nearer in the leading axes."""
        return torch.mm(rows, columns.T, out=out)

    def empty_products(self, rows: int, columns: int) -> Tensor:
        """Uninitialised memory for products (rows, columns)."""
        return torch.empty(rows, columns)

    def least_product(self, squared: Tensor, codes: Codes, residual: float) -> Tensor:  # noqa: ARG002 - there is no residual
        """The least product (n,) that a column at this squared distance, or nearer, can have."""
        error = self._error * (codes.square + self._longest) + _TINY
        return (codes.square - squared - error) / 2
