"""Means and covariances that merge: of many positions at once, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 2**26  # bytes of covariances that are worked on at a time


class Moments:
    """Count, mean (P, d) and sum of squared deviations M2 (P, d, d) of vectors at P positions.

    Updates are centred (Chan, Golub and LeVeque 1983): sums of raw squares would cancel.
    """

    def __init__(self, positions: int, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(positions, dim, dtype=torch.float64)
        self.m2 = torch.zeros(positions, dim, dim, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Take in vectors (n, P, d), one for each position from each image."""
        count = len(vectors)
        if not count:
            return
        total = self.count + count
        weight = (self.count * count / total) ** 0.5
        for some in self.chunks():
            mine = vectors[:, some].double()
            mean = mine.mean(dim=0)
            between = (mean - self.mean[some]) * weight
            # One product for the spread within these vectors and their distance from the others.
            apart = torch.cat([mine - mean, between[None]]).transpose(0, 1)  # (P, n + 1, d)
            self.m2[some].baddbmm_(apart.transpose(1, 2), apart)
            self.mean[some] += (mean - self.mean[some]) * (count / total)
        self.count = total

    def merge(self, other: Moments) -> None:
        """Add what another has taken in."""
        if not other.count:
            return
        total = self.count + other.count
        between = other.mean - self.mean
        self.mean += between * (other.count / total)
        self.m2 += other.m2
        weighted = between * (self.count * other.count / total)
        self.m2.baddbmm_(weighted[:, :, None], between[:, None, :])
        self.count = total

    def covariance(self, some: slice) -> Tensor:
        """Of some positions (p, d, d): unbiased; zero of a single vector."""
        return self.m2[some] / max(1, self.count - 1)

    def chunks(self) -> list[slice]:
        """All positions, a few at a time."""
        positions, dim = self.mean.shape
        step = max(1, _CHUNK // (8 * dim * dim))
        return [slice(start, start + step) for start in range(0, positions, step)]
