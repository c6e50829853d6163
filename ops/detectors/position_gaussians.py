"""The Gaussians of PaDiM, one for each position, fitted by all workers together.

Each worker owns a range of positions and accumulates their moments over the images of all workers.
So no worker holds all moments, and the memory does not grow with the number of images. Moments and
their factors are computed where the embeddings are: in float64 on a GPU, too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ops.distributed import Group
from ops.errors import UserError
from ops.features.moments import Moments, packed_size, squared_lengths
from ops.progress import ProgressCallback

#: Images whose distances to the Gaussians fitted without them set the scale of maps.
SAMPLE = 32
#: Positions that a worker factors between two exchanges.
STEP = 32


class Gaussians(NamedTuple):
    """Means (h, w, d) and packed inverse Cholesky factors (h * w, packed) of all positions.

    They lie on the CPU.
    """

    mean: Tensor
    factor: Tensor
    farthest: float
    """The largest distance of a sampled image to the Gaussians fitted without it."""


class GaussianFit:
    """Accumulates embeddings of good images. `exchange` and `finish` are collective."""

    def __init__(self, device: torch.device = torch.device("cpu")) -> None:
        """`device` is that of the embeddings."""
        self._device = device
        self._waiting: list[Tensor] = []
        self._waiting_rows: list[Tensor] = []
        self._shape = (0, 0, 0)
        self._moments: Moments | None = None
        self._sample = torch.empty(0, device=device)
        self._sample_rows = torch.empty(0, dtype=torch.int64)

    def add(self, vectors: Tensor, rows: Tensor) -> None:
        """Keep embeddings (B, h, w, d) and the images' numbers (B,) until the next exchange.

        Numbers are on the CPU.
        """
        self._waiting.append(vectors)
        self._waiting_rows.append(rows)

    def exchange(self, group: Group) -> None:
        """Send every embedding to the owners of its positions, who add it to their moments."""
        if self._moments is None and not self._start(group):
            return
        assert self._moments
        height, width, _ = self._shape
        none = torch.empty(0, *self._shape, device=self._device)
        vectors = torch.cat([*self._waiting, none]).flatten(1, 2)
        own_rows = torch.cat([*self._waiting_rows, torch.empty(0, dtype=torch.int64)])
        rows = torch.cat(group.all_gather(own_rows))
        self._waiting, self._waiting_rows = [], []
        ranges = _ranges(height * width, group.size)
        own = torch.cat(group.all_to_all([vectors[:, first:end] for first, end in ranges]))
        self._moments.add(own)
        self._update_sample(own, rows)

    def _start(self, group: Group) -> bool:
        """Agree on the shape of embeddings; False if no worker has an image yet."""
        own = self._waiting[0].shape[1:] if self._waiting else (0, 0, 0)
        height, width, dim = group.all_reduce(torch.tensor(own), "max").tolist()
        if not dim:
            return False
        self._shape = height, width, dim
        first, end = _ranges(height * width, group.size)[group.rank]
        self._moments = Moments(end - first, dim, self._device)
        return True

    def _update_sample(self, vectors: Tensor, rows: Tensor) -> None:
        """Keep the images whose numbers have the lowest hashes, whatever order they come in."""
        old = len(self._sample_rows)
        rows = torch.cat([self._sample_rows, rows])
        chosen = (rows * 2654435761 % 2**32).argsort()[:SAMPLE].sort().values
        new = vectors[(chosen[chosen >= old] - old).to(self._device)]
        kept = chosen[chosen < old].to(self._device)
        self._sample = torch.cat([self._sample[kept], new]) if old else new
        self._sample_rows = rows[chosen]

    def finish(self, ridge: float, group: Group, progress: ProgressCallback) -> Gaussians:
        """Each worker factors the covariances of its positions; every worker gets all factors.

        `ridge` is added to the diagonals. Raises UserError on every worker if a covariance is not
        positive definite even so.
        """
        assert self._moments
        height, width, dim = self._shape
        ranges = _ranges(height * width, group.size)
        longest = max(end - first for first, end in ranges)
        factor = torch.empty(height * width, packed_size(dim))
        broken, farthest = torch.tensor([0]), 0.0
        for step in range(0, longest, STEP):
            places = slice(step, step + STEP)
            whitening, definite = self._moments.whitening(places, ridge)
            broken |= not definite
            farthest = max(farthest, self._leave_one_out_distance(places, whitening))
            parts = group.all_gather(whitening.float().cpu())
            for (first, _), part in zip(ranges, parts, strict=True):
                factor[first + step : first + step + len(part)] = part
            progress("factor", min(step + STEP, longest), longest)
        if int(group.all_reduce(broken, "max")):
            raise UserError(
                f"a covariance is not positive definite with --padim.ridge {ridge:g}; raise it, or "
                "fit on more images than --padim.dim"
            )
        mean = torch.cat(group.all_gather(self._moments.mean.float().cpu()))
        distance = group.all_reduce(torch.tensor([farthest], dtype=torch.float64), "max")
        return Gaussians(mean.view(height, width, dim), factor, float(distance))

    def _leave_one_out_distance(self, places: slice, whitening: Tensor) -> float:
        """The largest distance of the sample at some positions, each image to a fit without it.

        Leaving one image out changes the covariance by a matrix of rank one (Sherman and Morrison
        1950), and the ridge by the factor (n - 2) / (n - 1), which is neglected.
        """
        assert self._moments
        n, mean = self._moments.count, self._moments.mean[places]
        if n < 3 or not len(mean):
            return 0.0
        centred = self._sample[:, places].double() - mean
        inside = squared_lengths(whitening, centred.permute(1, 2, 0))
        rest = (1 - inside * n / (n - 1) ** 2).clamp(min=1e-9)
        squares = inside / rest * (n / (n - 1)) ** 2 * (n - 2) / (n - 1)
        return float(squares.amax().sqrt())


def _ranges(positions: int, ranks: int) -> list[tuple[int, int]]:
    """First position, and end, of the range that each rank owns."""
    return [(positions * r // ranks, positions * (r + 1) // ranks) for r in range(ranks)]
