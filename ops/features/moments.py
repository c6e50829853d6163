"""Means and covariances at many positions at once, in float64, added up batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows per band of a lower triangular matrix. Of a band, columns right of its last row's diagonal
#: element are zero and are not stored.
_BAND = 32


class Moments:
    """Count, mean and scatter of the vectors at each position (Chan, Golub and LeVeque 1979).

    The scatter is the sum of (x - mean)(x - mean)^T. It is symmetric, so only its lower triangle
    is stored, in bands. Products are centred before they are summed: sums of raw products would
    lose variances that are small beside the mean.
    """

    def __init__(self, places: int, width: int, device: torch.device | str = "cpu") -> None:
        """Moments are kept, and vectors must be given, on `device`."""
        self.count = 0
        self.mean = torch.zeros(places, width, dtype=torch.float64, device=device)
        self._scatter = [
            torch.zeros(places, end - start, end, dtype=torch.float64, device=device)
            for start, end in bands(width)
        ]

    def add(self, vectors: Tensor) -> None:
        """Add the vectors (n, places, width) of n images, one at each position."""
        new = len(vectors)
        if not new:
            return
        count = self.count + new
        places, width = self.mean.shape
        rows = self.mean.new_empty(places, new + 1, width)
        rows[:, :new] = vectors.transpose(0, 1)
        mean = rows[:, :new].mean(dim=1)
        rows[:, :new] -= mean[:, None]
        delta = mean - self.mean
        # The distance between old and new mean adds to the scatter like one more vector.
        rows[:, new] = delta * (self.count * new / count) ** 0.5
        for (start, end), band in zip(bands(width), self._scatter, strict=True):
            band.baddbmm_(rows[:, :, start:end].transpose(1, 2), rows[:, :, :end])
        self.mean += delta * (new / count)
        self.count = count

    def covariance(self, places: slice) -> Tensor:
        """Covariance (p, width, width) at some positions: scatter / (n - 1), zero for one image.

        Only the lower triangle is filled in.
        """
        mean = self.mean[places]
        out = mean.new_zeros(*mean.shape, mean.shape[1])
        for (start, end), band in zip(bands(mean.shape[1]), self._scatter, strict=True):
            out[:, start:end, :end] = band[places]
        return out / max(1, self.count - 1)

    def whitening(self, places: slice, ridge: float) -> tuple[Tensor, bool]:
        """L^-1, packed, where covariance + ridge * I = L L^T (Cholesky).

        Returns False beside it if a matrix is not positive definite.
        """
        covariance = self.covariance(places)
        covariance.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        eye = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        return pack(inverse), not bool(failed.any())


def bands(width: int) -> list[tuple[int, int]]:
    """First row and end (exclusive) of each band of a lower triangular matrix."""
    return [(start, min(start + _BAND, width)) for start in range(0, width, _BAND)]


def packed_size(width: int) -> int:
    """How many numbers `pack` stores per matrix."""
    return sum((end - start) * end for start, end in bands(width))


def pack(lower: Tensor) -> Tensor:
    """Lower triangular matrices (p, width, width) as (p, packed_size)."""
    stored = [lower[:, start:end, :end].flatten(1) for start, end in bands(lower.shape[1])]
    return torch.cat(stored, dim=1)


def unpack(packed: Tensor, width: int) -> list[Tensor]:
    """The bands (p, rows, end) of packed matrices, as views."""
    sizes = [(end - start) * end for start, end in bands(width)]
    flat = torch.split(packed, sizes, dim=1)
    return [
        band.view(-1, end - start, end)
        for band, (start, end) in zip(flat, bands(width), strict=True)
    ]


def squared_lengths(packed: Tensor, columns: Tensor) -> Tensor:
    """Squared lengths (p, n) of M_p c for the columns c (p, width, n) at each position p.

    `packed` (p, packed_size) holds the matrices M_p. With M_p = L^-1 of the covariance these are
    squared Mahalanobis distances.
    """
    squares = columns.new_zeros(columns.shape[0], columns.shape[2])
    for band in unpack(packed, columns.shape[1]):
        squares += torch.bmm(band, columns[:, : band.shape[2]]).square_().sum(dim=1)
    return squares
