"""Squared distances that are equal to the last bit wherever they are computed.

`squared` sums element-wise products in a fixed tree, so its bits depend on the two vectors alone,
not on batch shape, threads, shard or library. Products of matrices, of floats or of 8-bit integers,
only decide for which pairs it is computed.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

#: Tensors or NumPy arrays, with the same bits; arrays have less overhead for a few vectors.
Vectors = TypeVar("Vectors", Tensor, npt.NDArray[np.float32])

#: Squared distances between longer vectors could overflow float32.
LARGEST = 1e18


def squared(x: Vectors, y: Vectors) -> Vectors:
    """|x - y|^2 over the last dimension, summed pairwise as if zero-padded to a power of two."""
    terms = x - y
    terms *= terms
    width = terms.shape[-1]
    half = 1 << max(0, (width - 1).bit_length() - 1)
    if width > 1 and width != 2 * half:
        terms[..., : width - half] += terms[..., half:]  # the padding is zero, so it is left out
        terms, half = terms[..., :half], half // 2
    while half and terms.shape[-1] > 1:
        terms = terms[..., :half] + terms[..., half : 2 * half]
        half //= 2
    return terms[..., 0]


def slack(dim: int) -> float:
    """A bound s on rounding errors, for vectors of `dim` components and any order of summation:

    | (|x|^2 + |c|^2 - 2 x.c) - squared(x, c) | <= s (|x|^2 + |c|^2)
    """
    return (2 * dim + 64) * 2.0**-24


class Nearest(NamedTuple):
    """The nearest of some vectors, the one with the lowest index on ties."""

    value: Tensor
    """Its squared distance."""
    row: Tensor
    """Its index."""
