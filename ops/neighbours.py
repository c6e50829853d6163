"""Exact nearest neighbours: a cheap lower bound picks the few pairs worth a full distance.

A vector is split into its part in the bank's principal axes and the length of the rest.
By Cauchy-Schwarz |x - c|^2 >= |x|^2 + |c|^2 - 2 (Px.Pc + |rx||rc|): one matrix product over 128
instead of all dimensions. Winners are recomputed by `distance.squared`, so filters never show.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ops.distance import Nearest, slack, squared

_AXES = 127  # and one more dimension for the length of the rest
_ROWS = 96  # rows of a block: with 5,000 vectors their bounds stay in the second-level cache


class Bank:
    """Vectors (n, d) to search. Large and wide banks get principal axes, which cost one pass."""

    def __init__(self, vectors: Tensor, axes: int = _AXES) -> None:
        self.vectors = vectors
        self.norms = vectors.square().sum(dim=1)
        n, d = vectors.shape
        self.error = slack(d)
        self._axes: Tensor | None = None
        self._narrow = vectors
        if n >= 8 * axes and d >= 3 * axes:
            sample = vectors[:: max(1, n // 8192)].double()
            scatter = sample.T @ sample
            leading = torch.linalg.eigh(scatter)[1][:, -axes:].to(vectors.dtype).contiguous()
            self._axes = leading
            # The axes are orthonormal up to rounding; the bound below stays one for that much.
            self.error = 2 * slack(d)
            self._narrow = self._split(vectors, self.norms, leading)
        self._columns = self._narrow.T.contiguous()

    def _split(self, x: Tensor, norms: Tensor, axes: Tensor) -> Tensor:
        inside = x @ axes
        rest = norms * (1 + self.error) - inside.square().sum(dim=1)
        return torch.cat([inside, rest.clamp_min(0).sqrt().unsqueeze(1)], dim=1)

    def nearest(self, x: Tensor) -> Nearest:
        """Squared distance to, and row of, the nearest vector for each of x (m, d).

        The lowest row on ties. Rows of x that are not finite get infinity and row -1.
        """
        x2 = x.square().sum(dim=1)
        narrow = x if self._axes is None else self._split(x, x2, self._axes)
        value = x.new_empty(len(x))
        row = torch.empty(len(x), dtype=torch.int64, device=x.device)
        largest = self.norms.max()
        for start in range(0, len(x), _ROWS):
            block = slice(start, start + _ROWS)
            error = self.error * (x2[block] + largest)
            least = torch.addmm(self.norms, narrow[block], self._columns, alpha=-2)
            guess = least.argmin(dim=1)
            bound = squared(x[block], self.vectors[guess])
            near = least <= (bound - x2[block] + error).unsqueeze(1)
            query, column = torch.nonzero(near, as_tuple=True)
            distance = squared(x[block][query], self.vectors[column])
            best = distance.new_full(bound.shape, torch.inf)
            best.scatter_reduce_(0, query, distance, "amin")
            tied = distance == best[query]
            winner = torch.full_like(guess, len(self.vectors))
            winner.scatter_reduce_(0, query[tied], column[tied], "amin")
            value[block] = best
            row[block] = torch.where(winner < len(self.vectors), winner, -1)
        return Nearest(value, row)
