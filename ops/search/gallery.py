"""Exact search among the positions of a few gallery images, which differ from query to query.

An index over the whole gallery would not help, so all positions of these images are compared, block
by block. Products of float32 matrices, with a bound on their rounding errors, exclude most pairs.
Distances of the few remaining pairs are computed by `distance.squared`, so the result does not
depend on blocks or threads, to the last bit. On a GPU, `device_search` does the same for all
positions at once.

Products of 8-bit integers (`quantised`) would be faster, but exclude too little: a few large
components determine the step. Without the principal axes of a bank they leave 4,000 of the 14,600
pairs of one position of SqueezeNet's features.7; products in float32 leave two or three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ops.search.device_search import DeviceSearch
from ops.search.distance import slack, squared
from ops.search.float32_products import float32_products

#: Rows and columns of one product, 4 MB: large enough for products of matrices at full speed, small
#: enough to be still in the cache when the minima are computed.
_QUERIES, _POSITIONS = 512, 2048
_MEASURED = 2**18  # components of pairs whose distances are computed at a time
_GATHERED = 2**26  # components of positions that are searched at a time on a GPU, 256 MB
#: Bytes that a search takes beside its vectors.
SCRATCH = 4 * _QUERIES * _POSITIONS + 8 * _MEASURED


class Positions:
    """The vectors at all positions of N images: of one level of a pyramid, or several concatenated.

    Levels are (N, h, w, C), float16 or float32. Coarser levels are repeated to the finest grid.
    """

    def __init__(self, levels: Sequence[Tensor]) -> None:
        self.grid: tuple[int, int] = finest_grid([level.shape[1:3] for level in levels])
        self.each = math.prod(self.grid)
        self._levels = [level.flatten(0, 2) for level in levels]  # views (N * h * w, C)
        self._cells = [_cells(level.shape[1:3], self.grid, level.device) for level in levels]
        self._sizes = [level.shape[1] * level.shape[2] for level in levels]

    def of(self, image: int) -> Tensor:
        """All vectors (h * w, d) of one image, float32."""
        places = torch.arange(self.each, device=self._levels[0].device)
        return self._vectors(torch.full_like(places, image), places)

    def _vectors(self, images: Tensor, places: Tensor) -> Tensor:
        """The vectors (m, d) at some places (m,) of some images (m,), float32."""
        parts = [
            level.index_select(0, images * size + cells[places]).float()
            for level, cells, size in zip(self._levels, self._cells, self._sizes, strict=True)
        ]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def nearest(self, x: Tensor, images: Tensor, count: int = 1) -> Tensor:
        """Squared distances (m, count), ascending, from x (m, d) to the nearest in some images.

        Infinite if these images have fewer positions, or x is not finite.
        """
        if x.device.type == "cpu":
            return self._nearest_by_blocks(x, images, count)
        return self._nearest_at_once(x, images, count)

    def _nearest_at_once(self, x: Tensor, images: Tensor, count: int) -> Tensor:
        """`nearest` on a GPU: few large operations, and one wait for it."""
        places = torch.arange(self.each, device=x.device).repeat(len(images))
        chosen = images.repeat_interleave(self.each, output_size=len(places))
        size = max(1, _GATHERED // x.shape[1])
        parts = zip(torch.split(chosen, size), torch.split(places, size), strict=True)
        found = [DeviceSearch(self._vectors(*part)).few(x, count).value for part in parts]
        if len(found) == 1:
            return found[0]
        return torch.cat(found, dim=1).sort(dim=1).values[:, :count]

    @float32_products()
    def _nearest_by_blocks(self, x: Tensor, images: Tensor, count: int) -> Tensor:
        """`nearest` on a processor: blocks that stay in its cache."""
        nearest = x.new_full((len(x), count), torch.inf)
        relative_error = slack(x.shape[1])
        square = x.square().sum(dim=1)
        scratch = x.new_empty(_QUERIES * _POSITIONS)
        total = len(images) * self.each
        for start in range(0, total, _POSITIONS):
            at = torch.arange(start, min(start + _POSITIONS, total), device=x.device)
            block = self._vectors(images[at // self.each], at % self.each)
            lengths = block.square().sum(dim=1)
            rounding = relative_error * (square + lengths.max())
            for first in range(0, len(x), _QUERIES):
                part = slice(first, first + _QUERIES)
                queries = x[part]
                out = scratch[: len(queries) * len(block)].view(len(queries), len(block))
                # |c|^2 - 2 x.c, which is |x - c|^2 - |x|^2 up to rounding
                products = torch.addmm(lengths, queries, block.T, alpha=-2, out=out)
                least = products.amin(dim=1)
                reach = least if count == 1 else _kth_least(products, count)
                reach = torch.minimum(reach + rounding[part], nearest[part, -1] - square[part])
                query, column = _pairs_at_most(products, least, reach + rounding[part])
                if len(query):
                    distance = _distances(queries, block, query, column)
                    nearest[part] = _merge(nearest[part], query, distance)
        return nearest


def finest_grid(grids: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The grid (h, w) with the most cells; the first on ties."""
    height, width = max(grids, key=math.prod)
    return height, width


def _cells(grid: Sequence[int], fine: Sequence[int], device: torch.device) -> Tensor:
    """For each cell of a finer grid, the cell of a grid (h, w) that covers it, in raster order."""
    rows, columns = (
        torch.arange(f, device=device) * g // f for f, g in zip(fine, grid, strict=True)
    )
    return (rows[:, None] * grid[1] + columns).flatten()


def _kth_least(products: Tensor, count: int) -> Tensor:
    """The `count`-th smallest value of each row (n, m); infinite if there are fewer."""
    if count > products.shape[1]:
        return products.new_full((len(products),), torch.inf)
    return products.kthvalue(count, dim=1).values


def _pairs_at_most(products: Tensor, least: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of products (n, m) up to their row's limit (n,); `least` (n,) are minima."""
    rows = torch.nonzero(least <= limit).flatten()  # most rows have nearer ones in earlier blocks
    row, column = torch.nonzero(products[rows] <= limit[rows].unsqueeze(1), as_tuple=True)
    return rows[row], column


def _distances(x: Tensor, vectors: Tensor, query: Tensor, column: Tensor) -> Tensor:
    """Exact squared distances of pairs of a query and a vector."""
    size = max(1, _MEASURED // x.shape[1])
    pairs = zip(torch.split(query, size), torch.split(column, size), strict=True)
    return torch.cat([squared(x[q], vectors[c]) for q, c in pairs])


def _merge(nearest: Tensor, query: Tensor, distance: Tensor) -> Tensor:
    """The least distances (n, count) of each query, of earlier ones (n, count) and of new pairs."""
    n, count = nearest.shape
    if count == 1:
        return nearest.flatten().scatter_reduce(0, query, distance, "amin").unsqueeze(1)
    old = torch.arange(n, device=nearest.device).repeat_interleave(count)
    query, distance = torch.cat([old, query]), torch.cat([nearest.flatten(), distance])
    order = distance.argsort()
    order = order[query[order].argsort(stable=True)]  # by query, and by distance within
    query, distance = query[order], distance[order]
    rank = torch.arange(len(query), device=nearest.device) - torch.searchsorted(query, query)
    return distance[rank < count].view(n, count)
