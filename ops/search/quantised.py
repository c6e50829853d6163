"""Vectors as small integers: bounds on distances from exact integer products.

A vector is written x = centre + step (code + rest), its code being integers of seven bits and a
sign. By the triangle inequality, in steps,

    |code_x - code_c| - |rest_x| - |rest_c| <= |x - c| <= |code_x - code_c| + |rest_x| + |rest_c|

and |code_x - code_c|^2 is an integer, which the processor's units for bytes find several times
faster than float32 finds anything, and without an error. Half of |code_c|^2 is one of the factors:
it stands in extra columns in base 127, so that one product gives the order of the distances.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LEVEL = 127
_DIGITS = 8  # columns for the multiples of 127 * 127 in half a squared length
#: No code is longer, so that its digits suffice and float32 holds every product exactly.
_LONGEST = math.isqrt(2 * _DIGITS * _LEVEL**2)
_MARGIN = 1e-5  # far above what float32 loses in any of the few steps from integers to distances
_LEAST = 1.5e-45  # the smallest float32: what a square may lose below the normal range
_CHUNK = 4096
GROUP = 16
#: Columns come in multiples of this, so that maxima of groups are found side by side.
COLUMNS = 32 * GROUP


class Codes(NamedTuple):
    """Vectors (n, d) as codes (n, w) that are ready to be rows of a product.

    `square` (n,) is |code|^2 and `rest` (n,) at least |rest|, in steps; float32.
    """

    rows: Tensor
    square: Tensor
    rest: Tensor

    def take(self, index: Tensor) -> Codes:
        """Some of them."""
        return Codes(*(part.index_select(0, index) for part in self))


class Products:
    """Products (n, m) of rows and columns, m a multiple of 16, in groups that share one maximum.

    Columns are dealt to groups like cards: of g groups, group j has columns j, j + g, j + 2 g, ...
    Looking for what is large among maxima first is several times faster than among all.
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

    def hits(self, needed: Tensor) -> Tensor:
        """How many groups (n,) hold a product that reaches what its row needs."""
        return (self._best >= needed.unsqueeze(1)).sum(dim=1)

    def at_least(self, needed: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of all products that reach what their row needs (n,)."""
        row, group = torch.nonzero(self._best >= needed.unsqueeze(1), as_tuple=True)
        members = self._all[row, :, group] >= needed.index_select(0, row).unsqueeze(1)
        pair, member = torch.nonzero(members, as_tuple=True)
        return row[pair], member * self._groups + group[pair]


class Quantiser:
    """Codes for vectors like those whose mean and extent it is given.

    Args:
        centre: about the mean (d,) of what will be coded.
        largest: about the largest component of a vector's difference to it.
        longest: about the largest length of such a difference.

    Vectors beyond that get codes too, with longer rests.

    """

    def __init__(self, centre: Tensor, largest: float, longest: float) -> None:
        self.centre = centre
        self.step = max(largest / _LEVEL, longest / (_LONGEST - 1)) or 1.0
        self.dim = len(centre)
        self.width = -(-(self.dim + _DIGITS + 1) // 4) * 4
        self.unit = _unit(centre.device)
        self._tiny = self.dim * _LEAST

    @classmethod
    def of(cls, vectors: Tensor) -> Quantiser:
        """For these vectors (n, d)."""
        centre = vectors.mean(dim=0)
        away = vectors - centre
        return cls(centre, float(away.abs().max()), float(away.square().sum(dim=1).max().sqrt()))

    def codes(self, x: Tensor) -> Codes:
        """Codes of finite vectors (n, d)."""
        n = len(x)
        rows = torch.zeros(n, self.width, dtype=self.unit, device=x.device)
        rows[:, self.dim : self.dim + _DIGITS] = -_LEVEL
        rows[:, self.dim + _DIGITS] = -1
        square = torch.empty(n, device=x.device)
        rest = torch.empty(n, device=x.device)
        for start in range(0, n, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            steps = (x[chunk] - self.centre) / self.step
            code = steps.round().clamp_(-_LEVEL, _LEVEL)
            length = code.square().sum(dim=1)
            if bool((length > _LONGEST**2).any()):
                shrink = (_LONGEST / length.sqrt()).clamp_max_(1).unsqueeze(1)
                code = torch.where(shrink < 1, (code * shrink * (1 - _MARGIN)).trunc(), code)
                length = code.square().sum(dim=1)
            rows[chunk, : self.dim] = code.to(self.unit)
            square[chunk] = length
            left = steps.sub_(code).square().sum(dim=1).sqrt()
            rest[chunk] = left + _MARGIN * (left + length.sqrt())
        return Codes(rows, square, rest)

    def columns(self, codes: Codes) -> Tensor:
        """The same codes (n, w) as the other factor of a product."""
        half = (codes.square / 2).ceil()
        high = (half / _LEVEL).floor()
        columns = codes.rows.clone()
        columns[:, self.dim + _DIGITS] = (half - high * _LEVEL).to(self.unit)
        for digit in range(_DIGITS):
            part = (high - digit * _LEVEL).clamp(0, _LEVEL)
            columns[:, self.dim + digit] = part.to(self.unit)
        return columns

    def padding(self, count: int) -> Tensor:
        """Columns (count, w) that are farther than any other."""
        columns = torch.zeros(count, self.width, dtype=self.unit, device=self.centre.device)
        columns[:, self.dim : self.dim + _DIGITS] = _LEVEL
        return columns

    def products(self, rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, m): code_x . code_c - |code_c|^2 / 2, rounded down; larger is nearer."""
        out = self.empty_products(len(rows), len(columns)) if out is None else out
        if self.unit == torch.int8:
            return torch._int_mm(rows, columns.T, out=out)
        return torch.mm(rows, columns.T, out=out)

    def empty_products(self, rows: int, columns: int) -> Tensor:
        """Room for products."""
        kind = torch.int32 if self.unit == torch.int8 else self.unit
        return torch.empty(rows, columns, dtype=kind, device=self.centre.device)

    def at_most(self, product: Tensor, codes: Codes, rest: float) -> Tensor:
        """What the squared distance cannot exceed, for vectors with these products and rests."""
        square = (codes.square - 2 * product.to(codes.square.dtype)).clamp_min_(0)
        length = square.sqrt_().add_(codes.rest + rest).mul_(self.step * (1 + _MARGIN))
        return length.square_().add_(self._tiny)

    def needed(self, squared: Tensor, codes: Codes, rest: float) -> Tensor:
        """The least product of vectors that may lie at this squared distance or nearer."""
        length = (squared + self._tiny).sqrt_().mul_((1 + _MARGIN) / self.step)
        reach = length.add_(codes.rest + rest).square_().mul_(1 + _MARGIN)
        least = (codes.square - reach - 2) / 2
        least = least.clamp_min_(-(2.0**30)).floor_()
        return least.int() if self.unit == torch.int8 else least


def _unit(device: torch.device) -> torch.dtype:
    """Bytes where the processor multiplies them fast; else float32, exact for these as well."""
    if device.type == "cpu" and torch.cpu._is_vnni_supported():
        return torch.int8
    return torch.float32
