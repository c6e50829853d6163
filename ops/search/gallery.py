"""Exact search among the positions of a few images of a gallery, which are others every time.

No index over the gallery would serve that, so all positions of these images are compared, block by
block. Products of matrices only say which pairs are worth it, up to what float32 may have lost in
them; these few are measured by `distance.squared`. So neither blocks nor threads show in a bit.

Products of bytes (`quantised`) would be faster, but rule out too little: a few large components
set their step, and without the principal axes of a bank they left 4,000 of 14,600 pairs of a
position of SqueezeNet's features.7, where products in float32 leave two or three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ops.search.distance import slack, squared

#: Products of a block, 4 MB each way: large enough for a full-speed product of matrices, small
#: enough that what it wrote is still in the cache when its least is looked for.
_QUERIES, _POSITIONS = 512, 2048
_MEASURED = 2**18  # components of the pairs that are measured at a time
#: Bytes that a search takes beside its vectors, for one of so many components.
SCRATCH = 4 * _QUERIES * _POSITIONS + 8 * _MEASURED


class Positions:
    """Positions of images, a vector each: of one level of a pyramid, or of several side by side.

    Levels are (N, h, w, C), float16 or float32. Coarser ones are repeated to the finest grid.
    """

    def __init__(self, levels: Sequence[Tensor]) -> None:
        self.grid: tuple[int, int] = finest([level.shape[1:3] for level in levels])
        self.each = math.prod(self.grid)
        self._levels = [level.flatten(0, 2) for level in levels]  # (N * h * w, C), the same memory
        self._cells = [_cells(level.shape[1:3], self.grid).to(level.device) for level in levels]
        self._sizes = [level.shape[1] * level.shape[2] for level in levels]

    def of(self, image: int) -> Tensor:
        """All vectors (h * w, d) of an image, float32."""
        places = torch.arange(self.each, device=self._levels[0].device)
        return self._vectors(torch.full_like(places, image), places)

    def _vectors(self, images: Tensor, places: Tensor) -> Tensor:
        parts = [
            level.index_select(0, images * size + cells[places]).float()
            for level, cells, size in zip(self._levels, self._cells, self._sizes, strict=True)
        ]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def nearest(self, x: Tensor, images: Tensor, count: int = 1) -> Tensor:
        """Squared distances (m, count), ascending, from x (m, d) to the nearest in some images.

        Infinite where these images have fewer positions, or x is not finite.
        """
        found = x.new_full((len(x), count), torch.inf)
        share = slack(x.shape[1])
        square = x.square().sum(dim=1)
        scratch = x.new_empty(_QUERIES * _POSITIONS)
        total = len(images) * self.each
        for start in range(0, total, _POSITIONS):
            at = torch.arange(start, min(start + _POSITIONS, total), device=x.device)
            block = self._vectors(images[at // self.each], at % self.each)
            lengths = block.square().sum(dim=1)
            lost = share * (square + lengths.max())
            for first in range(0, len(x), _QUERIES):
                part = slice(first, first + _QUERIES)
                queries = x[part]
                out = scratch[: len(queries) * len(block)].view(len(queries), len(block))
                # |c|^2 - 2 x.c, which is |x - c|^2 - |x|^2 but for what is lost
                products = torch.addmm(lengths, queries, block.T, alpha=-2, out=out)
                least = products.amin(dim=1)
                reach = least if count == 1 else _least(products, count)
                reach = torch.minimum(reach + lost[part], found[part, -1] - square[part])
                query, column = _at_most(products, least, reach + lost[part])
                if len(query):
                    distance = _measured(queries, block, query, column)
                    found[part] = _merged(found[part], query, distance)
        return found


def finest(grids: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The grid (h, w) with the most cells; the first of equals."""
    height, width = max(grids, key=math.prod)
    return height, width


def _cells(grid: Sequence[int], fine: Sequence[int]) -> Tensor:
    """Which cell of a grid (h, w) lies under each of a finer one, both counted row by row."""
    rows, columns = (torch.arange(f) * g // f for f, g in zip(fine, grid, strict=True))
    return (rows[:, None] * grid[1] + columns).flatten()


def _least(products: Tensor, count: int) -> Tensor:
    """The least but `count` - 1 of each row (n, m); infinite if there are fewer."""
    if count > products.shape[1]:
        return products.new_full((len(products),), torch.inf)
    return products.kthvalue(count, dim=1).values


def _at_most(products: Tensor, least: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of products (n, m) not above their row's limit; `least` of each row (n,)."""
    rows = torch.nonzero(least <= limit).flatten()  # most found something nearer in earlier blocks
    row, column = torch.nonzero(products[rows] <= limit[rows].unsqueeze(1), as_tuple=True)
    return rows[row], column


def _measured(x: Tensor, vectors: Tensor, query: Tensor, column: Tensor) -> Tensor:
    size = max(1, _MEASURED // x.shape[1])
    pairs = zip(torch.split(query, size), torch.split(column, size), strict=True)
    return torch.cat([squared(x[q], vectors[c]) for q, c in pairs])


def _merged(found: Tensor, query: Tensor, distance: Tensor) -> Tensor:
    """The least (n, count) for each query, of what was found before and of new pairs."""
    n, count = found.shape
    if count == 1:
        return found.flatten().scatter_reduce(0, query, distance, "amin").unsqueeze(1)
    old = torch.arange(n, device=found.device).repeat_interleave(count)
    query, distance = torch.cat([old, query]), torch.cat([found.flatten(), distance])
    order = distance.argsort()
    order = order[query[order].argsort(stable=True)]  # by query, and by distance within
    query, distance = query[order], distance[order]
    rank = torch.arange(len(query), device=found.device) - torch.searchsorted(query, query)
    return distance[rank < count].view(n, count)
