"""Vectors quantised to 8-bit integers: bounds on distances from exact integer products.

A vector is written as x = centre + step * (code + residual), where the code is a vector of integers
in [-127, 127]. By the triangle inequality, in units of the step,

    |code_x - code_c| - |res_x| - |res_c| <= |x - c| <= |code_x - code_c| + |res_x| + |res_c|

|code_x - code_c|^2 is an integer. The processor's 8-bit integer instructions compute it without
error, several times faster than float32 products. Half of |code_c|^2 is stored in extra columns of
the code, in base 127, so that one product of matrices orders the vectors c by their distance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LEVEL = 127
_DIGITS = 8  # columns for the multiples of 127 * 127 in half a squared length
#: The largest length of a code: its digits then suffice, and float32 holds every product exactly.
_LONGEST = math.isqrt(2 * _DIGITS * _LEVEL**2)
#: Relative margin, far above the rounding errors of float32 from integers to distances.
_MARGIN = 1e-5
_LEAST = 1.5e-45  # the smallest float32: the absolute error of a square below the normal range
_CHUNK = 4096
GROUP = 16
#: The number of columns is a multiple of this, so that the maxima of groups are vectorised.
COLUMNS = 32 * GROUP


class Codes(NamedTuple):
    """Codes of n vectors. Lengths are in units of the step, float32."""

    rows: Tensor
    """The codes (n, w), with extra columns, as rows of a product."""
    square: Tensor
    """|code|^2 (n,)."""
    residual: Tensor
    """Upper bounds on |residual| (n,)."""

    def take(self, index: Tensor) -> Codes:
        """The codes of some vectors."""
        return Codes(*(part.index_select(0, index) for part in self))


class Products:
    """Products (n, m) of rows and columns, m a multiple of 16, with the maximum of each 16 columns.

    Of g = m / 16 groups, group j has the columns j, j + g, j + 2 g, ... Large products are first
    searched among the groups' maxima, which is several times faster than among all products.
    """

    def __init__(self, products: Tensor) -> None:
        self._groups = products.shape[1] // GROUP
        self._all = products.view(len(products), GROUP, self._groups)
        self._best = self._all.amax(dim=1)

    def largest(self) -> Tensor:
        """The column (n,) of each row's largest product."""
        group = self._best.argmax(dim=1)
        rows = torch.arange(len(group), device=group.device)
        return self._all[rows, :, group].argmax(dim=1) * self._groups + group

    def groups_at_least(self, least: Tensor) -> Tensor:
        """For each row, how many groups (n,) have a product of at least the row's `least` (n,)."""
        return (self._best >= least.unsqueeze(1)).sum(dim=1)

    def at_least(self, least: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of all products of at least their row's `least` (n,)."""
        row, group = torch.nonzero(self._best >= least.unsqueeze(1), as_tuple=True)
        members = self._all[row, :, group] >= least.index_select(0, row).unsqueeze(1)
        pair, member = torch.nonzero(members, as_tuple=True)
        return row[pair], member * self._groups + group[pair]


class Quantiser:
    """Quantises vectors of a known mean and extent.

    Args:
        centre: approximate mean (d,) of the vectors.
        largest: approximately the largest component, in absolute value, of a vector minus `centre`.
        longest: approximately the largest length of such a difference.

    Vectors beyond this extent get codes too, with larger residuals.

    """

    def __init__(self, centre: Tensor, largest: float, longest: float) -> None:
        self.centre = centre
        self.step = max(largest / _LEVEL, longest / (_LONGEST - 1)) or 1.0
        self.dim = len(centre)
        self.width = -(-(self.dim + _DIGITS + 1) // 4) * 4
        self.dtype = _code_dtype(centre.device)
        self._tiny = self.dim * _LEAST

    @classmethod
    def of(cls, vectors: Tensor) -> Quantiser:
        """A quantiser with the mean and extent of these vectors (n, d)."""
        centre = vectors.mean(dim=0)
        away = vectors - centre
        return cls(centre, float(away.abs().max()), float(away.square().sum(dim=1).max().sqrt()))

    def codes(self, x: Tensor) -> Codes:
        """Codes of finite vectors (n, d)."""
        n = len(x)
        rows = torch.zeros(n, self.width, dtype=self.dtype, device=x.device)
        rows[:, self.dim : self.dim + _DIGITS] = -_LEVEL
        rows[:, self.dim + _DIGITS] = -1
        square = torch.empty(n, device=x.device)
        residual = torch.empty(n, device=x.device)
        for start in range(0, n, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            steps = (x[chunk] - self.centre) / self.step
            code = steps.round().clamp_(-_LEVEL, _LEVEL)
            length = code.square().sum(dim=1)
            if bool((length > _LONGEST**2).any()):
                shrink = (_LONGEST / length.sqrt()).clamp_max_(1).unsqueeze(1)
                code = torch.where(shrink < 1, (code * shrink * (1 - _MARGIN)).trunc(), code)
                length = code.square().sum(dim=1)
            rows[chunk, : self.dim] = code.to(self.dtype)
            square[chunk] = length
            error = steps.sub_(code).square().sum(dim=1).sqrt()
            residual[chunk] = error + _MARGIN * (error + length.sqrt())
        return Codes(rows, square, residual)

    def columns(self, codes: Codes) -> Tensor:
        """The same codes (n, w) as columns of a product, with |code|^2 / 2 in the extra columns."""
        half = (codes.square / 2).ceil()
        high = (half / _LEVEL).floor()
        columns = codes.rows.clone()
        columns[:, self.dim + _DIGITS] = (half - high * _LEVEL).to(self.dtype)
        for digit in range(_DIGITS):
            value = (high - digit * _LEVEL).clamp(0, _LEVEL)
            columns[:, self.dim + digit] = value.to(self.dtype)
        return columns

    def padding(self, count: int) -> Tensor:
        """Columns (count, w) whose products are lower than those of any vector."""
        columns = torch.zeros(count, self.width, dtype=self.dtype, device=self.centre.device)
        columns[:, self.dim : self.dim + _DIGITS] = _LEVEL
        return columns

    def products(self, rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
        """code_x . code_c - |code_c|^2 / 2 (n, m), rounded down; larger means nearer."""
        out = self.empty_products(len(rows), len(columns)) if out is None else out
        if self.dtype == torch.int8:
            return torch._int_mm(rows, columns.T, out=out)
        return torch.mm(rows, columns.T, out=out)

    def empty_products(self, rows: int, columns: int) -> Tensor:
        """Uninitialised memory for products (rows, columns)."""
        kind = torch.int32 if self.dtype == torch.int8 else self.dtype
        return torch.empty(rows, columns, dtype=kind, device=self.centre.device)

    def upper_bound(self, product: Tensor, codes: Codes, residual: float) -> Tensor:
        """Upper bounds (n,) on the squared distance of each row to a column with this product.

        `residual` is an upper bound on the column's.
        """
        square = (codes.square - 2 * product.to(codes.square.dtype)).clamp_min_(0)
        length = square.sqrt_().add_(codes.residual + residual).mul_(self.step * (1 + _MARGIN))
        return length.square_().add_(self._tiny)

    def least_product(self, squared: Tensor, codes: Codes, residual: float) -> Tensor:
        """The least product (n,) that a column at this squared distance, or nearer, can have.

        `residual` is an upper bound on the column's.
        """
        length = (squared + self._tiny).sqrt_().mul_((1 + _MARGIN) / self.step)
        reach = length.add_(codes.residual + residual).square_().mul_(1 + _MARGIN)
        least = (codes.square - reach - 2) / 2
        least = least.clamp_min_(-(2.0**30)).floor_()
        return least.int() if self.dtype == torch.int8 else least


def _code_dtype(device: torch.device) -> torch.dtype:
    """int8 if the processor multiplies it fast, else float32, which holds the codes exactly too."""
    return torch.int8 if device.type == "cpu" and multiplies_bytes() else torch.float32


def multiplies_bytes() -> bool:
    """Whether the processor multiplies 8-bit integers several times faster than float32."""
    return torch.cpu._is_vnni_supported()
