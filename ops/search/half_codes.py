"""Vectors rounded to float16: bounds on distances from one product on the tensor cores of a GPU.

A vector is written as x = centre + (code + residual) / scale, where the code holds float16 numbers.
By the triangle inequality, in units of 1 / scale,

    |code_x - code_c| - |res_x| - |res_c| <= |x - c| <= |code_x - code_c| + |res_x| + |res_c|

Half of |code_c|^2 is stored in extra columns of the code, so that one product of matrices orders
the vectors c by their distance. Products of float16 numbers are exact in float32. Each addition may
err by 2^-23 of the largest sum, because tensor cores truncate where a processor rounds.
Numbers below the normal range of float16 are replaced by zero, so that it does not matter whether
the hardware does so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.search.distance import slack

_LONGEST = 2.0**7  # the largest code of the bank; half of its square fits into float16
_NORMAL, _LARGEST = 2.0**-14, 2.0**15  # the range of components of a code
_DIGITS = 3  # columns for half a squared length, 11 bits each
_ALIGNED = 8  # the width is a multiple of this, as tensor cores need it
_STEEPEST = 2.0**120  # of the scale, so that it is finite
_LEAST = 1.5e-45  # the smallest float32: the absolute error of a square below the normal range
_MARGIN = 1e-5  # far above the rounding errors of a few operations in float32


class HalfCodes(NamedTuple):
    """Codes of n vectors. Lengths are in units of 1 / scale, float32."""

    rows: Tensor
    """The codes (n, w), float16, with extra columns, as rows of a product."""
    square: Tensor
    """|code|^2 (n,)."""
    residual: Tensor
    """Upper bounds on |residual| (n,)."""


class HalfQuantiser:
    """Rounds vectors of the mean and extent of some vectors (n, d), n at least 1.

    Vectors beyond this extent get codes too, with larger residuals. Nothing is copied to the host.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.dim = vectors.shape[1]
        self.width = -(-(self.dim + _DIGITS) // _ALIGNED) * _ALIGNED
        self.centre = vectors.mean(dim=0)
        longest = (vectors - self.centre).square().sum(dim=1).amax().sqrt()
        longest = longest.where(longest > 0, _LONGEST)
        self.scale = (_LONGEST / longest).clamp_max(_STEEPEST)
        # Twice the slack of float32: additions may truncate instead of rounding.
        self._error = 2 * slack(self.width)

    def codes(self, x: Tensor) -> HalfCodes:
        """Codes of finite vectors (n, d), with -1 in the extra columns."""
        away = (x - self.centre).mul_(self.scale)
        code = away.clamp(-_LARGEST, _LARGEST)
        code = code.where(code.abs() >= _NORMAL, 0).half()
        rows = F.pad(code, (0, _DIGITS), value=-1.0)
        rows = F.pad(rows, (0, self.width - self.dim - _DIGITS))
        rounded = code.float()
        square = rounded.square().sum(dim=1)
        residual = (away - rounded).square_().sum(dim=1).sqrt_()
        # The subtraction and the scaling round too, relative to |code| + |residual|.
        residual = residual * (1 + 2 * self._error) + (square.sqrt() + residual) * _MARGIN
        return HalfCodes(rows, square, residual)

    def columns(self, codes: HalfCodes) -> Tensor:
        """The same codes (n, w) as columns of a product, with |code|^2 / 2 in the extra columns."""
        columns, rest = codes.rows.clone(), codes.square / 2
        for digit in range(_DIGITS):
            part = rest.where(rest.abs() >= _NORMAL, 0).half()
            columns[:, self.dim + digit] = part
            rest = rest - part
        return columns

    def least_product(
        self, codes: HalfCodes, product: Tensor, square: Tensor, residual: Tensor
    ) -> Tensor:
        """The least product (n,) of a column at most as far as one with this `product` (n,).

        Distances are compared as `distance.squared` rounds them. `square` and `residual` () are
        upper bounds on those of all columns.
        """
        error = self._error * (codes.square + square) * 4 + 2 * _NORMAL
        reach = codes.residual + residual
        length = (codes.square - 2 * product + error).clamp_min_(0).sqrt_()
        tiny = self.scale * (2 * self.dim * _LEAST) ** 0.5
        length = (length + reach) * (1 + 4 * self._error + _MARGIN) + tiny + reach
        least: Tensor = (codes.square - length.square() * (1 + _MARGIN) - error) / 2
        return least


def products(rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    """code_x . code_c - |code_c|^2 / 2 (n, m), float32; larger means nearer."""
    if rows.device.type == "cpu":  # whose products of float16 would be rounded to float16
        return torch.mm(rows.float(), columns.T.float(), out=out)
    return torch.mm(rows, columns.T, out_dtype=torch.float32, out=out)
