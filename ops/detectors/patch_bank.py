"""The bank of PatchCore: distances of patches to the nearest good ones, and scores by them."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from ops.features.blocks import in_blocks
from ops.features.whitening import Whitening
from ops.search.distance import squared
from ops.search.float32_products import float32_products
from ops.search.neighbours import Bank

Metric = Literal["euclidean", "whitened", "cosine"]

#: Vectors of the bank whose distances to the others set the scale of maps.
_SAMPLE = 512


class PatchBank:
    """Vectors (k, d) of good patches, in the order of picks, on the device that searches them.

    Distances are Euclidean. With metric whitened the bank is whitened, and so must be what it is
    compared with. With metric cosine, all vectors have length 1, and distances are half the squared
    ones: 1 - the cosine.
    """

    def __init__(
        self, vectors: Tensor, metric: Metric, whitening: Whitening | None = None, block: int = 1
    ) -> None:
        """Images are whitened `block` at a time, whatever their batch."""
        self.vectors = vectors
        self.whitening = whitening
        self._cosine = metric == "cosine"
        self._block = block

    def __len__(self) -> int:
        return len(self.vectors)

    def whitened(self, patches: Tensor) -> Tensor:
        """Patches (B, n, d) of images, whitened if the bank is."""
        whitening = self.whitening
        if not whitening:
            return patches
        with float32_products():
            (whitened,) = in_blocks(lambda part: [whitening(part[0])], [patches], self._block)
        return whitened

    def nearest(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (n,) of `whitened` patches (n, d) to the nearest vectors, whose rows are (n,).

        The lowest row on ties. Patches that are not finite get infinity and row -1.
        """
        nearest = self._index.nearest(patches)
        return self._distance(nearest.value), nearest.row

    def reweighted(self, scores: Tensor, patches: Tensor, rows: Tensor, count: int) -> Tensor:
        """Equation 7: scores (B,) of `whitened` patches (B, d), whose nearest vectors are `rows`.

        They are weighed by the distances to the `count` vectors nearest to that vector, itself
        included. Scores that are not finite, whose row is -1, are left as they are.
        """
        neighbours = self._index.neighbours(rows.clamp_min(0), count)
        neighbours = neighbours.clamp_min(0)  # -1 where no distance is finite
        near = self.vectors.index_select(0, neighbours.flatten()).view(*neighbours.shape, -1)
        distances = self._distance(squared(near, patches.unsqueeze(1)))
        if scores.device.type == "cpu":  # one by one: kernels could round by the batch's shape
            pairs = zip(scores, distances, strict=True)
            weight = torch.stack([_softmax_weight(s, d) for s, d in pairs])
        else:
            weight = _softmax_weight(scores, distances)
        return ((1 - weight) * scores).where(rows >= 0, scores)

    def ranked(self, patch: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Distances (b,) of a `whitened` patch (d,) to the nearest vectors, in rising order.

        And the rows (b,) of these; b is `count`, or the size of a smaller bank.
        """
        near = squared(self.vectors, patch).sort(stable=True)
        return self._distance(near.values[:count]), near.indices[:count]

    def farthest_apart(self) -> float:
        """The largest distance of any of the first 512 vectors to its nearest other one."""
        if len(self) < 2:
            return 0.5 if self._cosine else float(self.vectors.norm())
        with float32_products():
            distances = torch.cdist(self.vectors[:_SAMPLE], self.vectors)
        distances.fill_diagonal_(torch.inf)
        farthest = distances.amin(dim=1).max()
        return float(self._distance(farthest.square()) if self._cosine else farthest)

    @functools.cached_property
    def _index(self) -> Bank:
        return Bank(self.vectors)

    def _distance(self, squares: Tensor) -> Tensor:
        """Distances of the metric from squared Euclidean ones."""
        return squares / 2 if self._cosine else squares.sqrt()


def _softmax_weight(score: Tensor, distances: Tensor) -> Tensor:
    """exp(score) over the sum of exp(distances), of one image (k,) or of a batch (B, k).

    Shifted so that exp cannot overflow.
    """
    shift = torch.maximum(distances.amax(dim=-1), score)
    terms = (distances - shift.unsqueeze(-1)).exp()
    # The sum of a batch is taken in a fixed order, so that it does not depend on the batch.
    total = terms.sum() if terms.dim() == 1 else functools.reduce(torch.add, terms.unbind(dim=-1))
    return (score - shift).exp() / total
