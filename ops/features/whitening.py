"""Whitening: Euclidean distances of whitened vectors are Mahalanobis distances of the original.

The covariance is shrunk towards a multiple of the identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ops.distributed import Group
from ops.errors import UserError

#: The largest number of vectors that mean and covariance are estimated from: 28 for each of 1,792
#: dimensions. Beyond it, neither the work nor the traffic between workers grows with the images.
SAMPLE = 50_000
#: A variance below this share of the squared mean is rounding error of float32 (2^-23, squared).
_ALIKE = 2.0**-46


class Whitening(NamedTuple):
    """Mean (d,) and matrix W (d, d), float32."""

    mean: Tensor
    matrix: Tensor

    def to(self, device: torch.device | str) -> Whitening:
        """The whitening on a device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    def __call__(self, vectors: Tensor) -> Tensor:
        """(n, d) -> (x - mean) W (n, d): uncorrelated, of variance 1, up to the shrinkage."""
        return (vectors - self.mean) @ self.matrix

    @classmethod
    def of(cls, batches: Iterable[Tensor], shrinkage: float) -> Whitening:
        """Whitening of the vectors in some batches (n, d), whose covariance is C.

        C + shrinkage * mean(diag C) * I = U diag(v) U^T, and W = U diag(v)^(-1/2), in float64.
        W is NaN if all vectors are equal up to rounding.
        """
        covariance = Covariance()
        for batch in batches:
            covariance.add(batch)
        return covariance.whitening(shrinkage)


class Covariance:
    """Mean and covariance of vectors of d numbers, which are added in batches, in float64."""

    def __init__(self) -> None:
        """No vectors yet."""
        self.count = 0
        self._shift = torch.zeros(())
        self._total = self._products = torch.zeros((), dtype=torch.float64)

    def add(self, batch: Tensor) -> None:
        """Add vectors (n, d)."""
        # Shifting by a vector near the mean avoids cancellation when the mean is subtracted.
        self._shift = self._shift if self.count else batch.double().mean(dim=0)
        away = batch.double() - self._shift
        self.count += len(away)
        self._total = self._total + away.sum(dim=0)
        self._products = self._products + away.T @ away

    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean (d,), and the sum over vectors of (x - mean)(x - mean)^T (d, d)."""
        away_mean = self._total / self.count
        products = self._products - self.count * torch.outer(away_mean, away_mean)
        return self._shift + away_mean, products

    def whitening(self, shrinkage: float, symmetric: bool = False) -> Whitening:
        """See `Whitening.of`. With `symmetric`, W = U diag(v)^(-1/2) U^T.

        Axes U turn by any angle where variances are alike and vectors round otherwise; the
        symmetric W hardly changes where C hardly does.
        """
        mean, covariance = self.moments()
        covariance /= max(1, self.count - 1)
        diagonal = covariance.diagonal()
        if diagonal.mean() <= _ALIKE * mean.square().mean():
            return Whitening(mean.float(), torch.full_like(covariance, torch.nan).float())
        diagonal += shrinkage * diagonal.mean()
        v, u = torch.linalg.eigh(covariance)
        matrix = u * v.rsqrt()
        return Whitening(mean.float(), (matrix @ u.T if symmetric else matrix).float())

    def over_all(self, width: int, group: Group) -> Covariance:
        """Collective: that of the vectors of all ranks. A rank may have none."""
        row = torch.empty(0, 1 + width + width**2, dtype=torch.float64)
        if self.count:
            mean, products = (each.cpu() for each in self.moments())
            row = torch.cat([mean.new_tensor([self.count]), mean, products.flatten()])[None]
        rows = torch.cat(group.all_gather(row))
        counts, means = rows[:, 0], rows[:, 1 : 1 + width]
        merged = Covariance()
        merged.count = int(counts.sum())
        merged._shift = counts @ means / merged.count
        apart = means - merged._shift
        within = rows[:, 1 + width :].sum(dim=0).view(width, width)
        merged._products = within + (counts * apart.T) @ apart
        merged._total = torch.zeros_like(merged._shift)
        return merged


def broadcast_whitening(
    own: Whitening | None, width: int, group: Group, remedy: str = "metric = euclidean"
) -> Whitening | None:
    """Collective: the whitening of the one rank that has one, on every rank; None if none has.

    Raises UserError on every rank if all its vectors were equal.
    """
    rows = torch.empty(0, width) if own is None else torch.vstack(own)
    rows = torch.cat(group.all_gather(rows))
    if not len(rows):
        return None
    if not bool(torch.isfinite(rows).all()):
        raise UserError(
            "the patches of the good images are all alike, so they cannot be whitened; "
            f"set {remedy}"
        )
    return Whitening(rows[0].clone(), rows[1:].clone())


def sample_ids(ids: Tensor, group: Group, count: int | None = None) -> Tensor:
    """Collective: up to `count` of all ranks' ids, ascending: those with the lowest hashes.

    Default: `SAMPLE`. This is as good as a random sample, and depends on the ids alone, not on
    which rank has which.
    """
    count = SAMPLE if count is None else count
    keys = _hashed(ids)
    own = keys.argsort()[:count]
    all_keys = torch.cat(group.all_gather(keys[own]))
    all_ids = torch.cat(group.all_gather(ids[own]))
    return all_ids[all_keys.argsort()[:count]].sort().values


def _hashed(ids: Tensor) -> Tensor:
    """A pseudo-random bijection of 64-bit integers: splitmix64 (Steele et al., OOPSLA 2014)."""
    x = ids.numpy().astype("uint64") * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return torch.from_numpy((x ^ (x >> 31)).view("int64"))
