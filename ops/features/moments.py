"""Means and covariances at many places at once, in float64, from batches in any order."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows to a band of a triangular matrix: what lies right of a band's last row is not kept.
_BAND = 32


class Moments:
    """Count, mean and scatter of the vectors at each place (Chan, Golub and LeVeque 1979).

    The scatter, the sum of (x - mean)(x - mean)^T, is symmetric: its lower triangle is kept, in
    bands. Sums of raw products would lose what is small beside the mean; these are centred.
    """

    def __init__(self, places: int, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(places, width, dtype=torch.float64)
        self._scatter = [
            torch.zeros(places, end - start, end, dtype=torch.float64)
            for start, end in bands(width)
        ]

    def add(self, vectors: Tensor) -> None:
        """Take in one vector for each place, of each image: (n, places, width)."""
        new = len(vectors)
        if not new:
            return
        count = self.count + new
        places, width = self.mean.shape
        rows = torch.empty(places, new + 1, width, dtype=torch.float64)
        rows[:, :new] = vectors.transpose(0, 1)
        mean = rows[:, :new].mean(dim=1)
        rows[:, :new] -= mean[:, None]
        delta = mean - self.mean
        # How far the means lie apart weighs like one more vector.
        rows[:, new] = delta * (self.count * new / count) ** 0.5
        for (start, end), band in zip(bands(width), self._scatter, strict=True):
            band.baddbmm_(rows[:, :, start:end].transpose(1, 2), rows[:, :, :end])
        self.mean += delta * (new / count)
        self.count = count

    def covariance(self, places: slice) -> Tensor:
        """Of some places, (p, width, width), divided by n - 1; zero if there is one image.

        The lower triangle alone is right.
        """
        mean = self.mean[places]
        out = mean.new_zeros(*mean.shape, mean.shape[1])
        for (start, end), band in zip(bands(mean.shape[1]), self._scatter, strict=True):
            out[:, start:end, :end] = band[places]
        return out / max(1, self.count - 1)

    def whitening(self, places: slice, ridge: float) -> tuple[Tensor, bool]:
        """L^-1 of the covariance + ridge * I = L L^T, as `pack` has it; False if there is none."""
        covariance = self.covariance(places)
        covariance.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        eye = torch.eye(factor.shape[1], dtype=factor.dtype)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        return pack(inverse), not bool(failed.any())


def bands(width: int) -> list[tuple[int, int]]:
    """First row, and end, of each band of a triangular matrix."""
    return [(start, min(start + _BAND, width)) for start in range(0, width, _BAND)]


def packed_size(width: int) -> int:
    """Numbers that `pack` keeps of a matrix."""
    return sum((end - start) * end for start, end in bands(width))


def pack(lower: Tensor) -> Tensor:
    """Lower triangular matrices (p, width, width) as (p, packed_size)."""
    parts = [lower[:, start:end, :end].flatten(1) for start, end in bands(lower.shape[1])]
    return torch.cat(parts, dim=1)


def unpack(packed: Tensor, width: int) -> list[Tensor]:
    """The bands (p, rows, end) of packed matrices, as views."""
    sizes = [(end - start) * end for start, end in bands(width)]
    parts = torch.split(packed, sizes, dim=1)
    return [
        part.view(-1, end - start, end)
        for part, (start, end) in zip(parts, bands(width), strict=True)
    ]


def lengths(packed: Tensor, columns: Tensor) -> Tensor:
    """Squared lengths (p, n) of columns (p, width, n), each multiplied by its place's matrix."""
    squares = columns.new_zeros(columns.shape[0], columns.shape[2])
    for band in unpack(packed, columns.shape[1]):
        squares += torch.bmm(band, columns[:, : band.shape[2]]).square_().sum(dim=1)
    return squares
