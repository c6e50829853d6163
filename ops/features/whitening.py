"""Whitening: distances afterwards are Mahalanobis distances before, under a shrunk covariance."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ops.distributed import Group
from ops.errors import UserError

#: Vectors that mean and covariance are taken of, at most: 28 for each of 1,792 dimensions, and
#: neither the work nor what workers send each other grows with the images any further.
SAMPLE = 50_000
_ALIKE = 2.0**-46  # the square of what float32 rounds


class Whitening(NamedTuple):
    """Mean (d,) and matrix W (d, d), float32."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Vectors (x - mean) W (n, d): uncorrelated, of variance 1, but for the shrinkage."""
        return (vectors - self.mean) @ self.matrix

    @classmethod
    def of(cls, parts: Iterable[Tensor], shrinkage: float) -> Whitening:
        """Of vectors (n, d) with the covariance C, by parts.

        C + shrinkage * mean(diag C) * I = U diag(v) U^T, and W = U diag(v)^(-1/2), in float64.
        Not a number if the vectors are all alike, up to rounding.
        """
        shift, count = torch.zeros(()), 0
        total = products = torch.zeros((), dtype=torch.float64)
        for part in parts:
            # Near the mean, so that nothing cancels when the mean is taken off in the end.
            shift = shift if count else part.double().mean(dim=0)
            away = part.double() - shift
            count += len(away)
            total = total + away.sum(dim=0)
            products = products + away.T @ away
        away_mean = total / count
        mean = shift + away_mean
        covariance = products - count * torch.outer(away_mean, away_mean)
        covariance /= max(1, count - 1)
        diagonal = covariance.diagonal()
        if diagonal.mean() <= _ALIKE * mean.square().mean():
            return cls(mean.float(), torch.full_like(covariance, torch.nan).float())
        diagonal += shrinkage * diagonal.mean()
        v, u = torch.linalg.eigh(covariance)
        return cls(mean.float(), (u * v.rsqrt()).float())


def shared(own: Whitening | None, width: int, group: Group) -> Whitening | None:
    """The one that a rank has, on every rank; None if none has one. Collective.

    Raises UserError on every rank if its vectors were all alike.
    """
    rows = torch.empty(0, width) if own is None else torch.vstack(own)
    rows = torch.cat(group.all_gather(rows))
    if not len(rows):
        return None
    if not bool(torch.isfinite(rows).all()):
        raise UserError(
            "the good patches are all alike, so nothing says how to whiten; set metric = euclidean"
        )
    return Whitening(rows[0].clone(), rows[1:].clone())


def sample(ids: Tensor, group: Group) -> Tensor:
    """Up to `SAMPLE` of all ranks' ids, ascending: those with the lowest hashes. Collective.

    So the choice is as good as random, but depends on the ids alone and not on who holds them.
    """
    keys = _mixed(ids)
    own = keys.argsort()[:SAMPLE]
    all_keys = torch.cat(group.all_gather(keys[own]))
    all_ids = torch.cat(group.all_gather(ids[own]))
    return all_ids[all_keys.argsort()[:SAMPLE]].sort().values


def _mixed(ids: Tensor) -> Tensor:
    """A bijection of 64-bit integers that looks random: splitmix64 (Steele et al., OOPSLA 2014)."""
    x = ids.numpy().astype("uint64") * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return torch.from_numpy((x ^ (x >> 31)).view("int64"))
