"""Squared distances whose bits depend on the two vectors alone.

`squared` uses element-wise arithmetic in a fixed tree, so batch shape, threads, shard and library
cannot change a bit. Products of matrices and of bytes only say which pairs are worth it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

#: Tensors, or arrays: these cost less to start on a few vectors, and give the same bits.
Vectors = TypeVar("Vectors", Tensor, npt.NDArray[np.float32])

#: Beyond this a squared distance could overflow float32.
LARGEST = 1e18


def squared(x: Vectors, y: Vectors) -> Vectors:
    """|x - y|^2 over the last dimension, summed in pairs over a zero-padded power of two."""
    terms = x - y
    terms *= terms
    width = terms.shape[-1]
    half = 1 << max(0, (width - 1).bit_length() - 1)
    if width > 1 and width != 2 * half:
        terms[..., : width - half] += terms[..., half:]  # the padding would add zeros
        terms, half = terms[..., :half], half // 2
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
