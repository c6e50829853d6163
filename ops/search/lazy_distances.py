"""One rank's points and lazily evaluated distances to the centres of a growing coreset.

Products of 8-bit integers (`quantised`) give an upper bound on each row's distance to the centres
so far. The exact distance is computed only for rows that could be the farthest by these bounds:
they are "settled".

Points on a GPU stay there: products and exact distances are computed there, in far larger pieces,
as each piece costs some launches and waits. Exact distances have the same bits on every device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ops.search.distance import squared
from ops.search.quantised import COLUMNS, Products, Quantiser

#: Rows and columns (centres) of one product of codes, which then stays in the processor's cache.
_ROWS, _CENTRES = 2048, 512
#: Rows on a GPU: 268 MB of products.
_ROWS_ON_GPU = 2**17
#: If a smaller share of the rows is still above the floor, the others are dropped, at the price of
#: a copy.
_COPY_BELOW = 0.7
_CHUNK = 4096
_SETTLE_ROWS = 512  # rows that are settled at a time
_SETTLED_ON_GPU = 2**27  # products of rows that are settled at a time on a GPU, 512 MB
#: Bytes that a GPU holds beside the points, their codes and their bounds.
SCRATCH_ON_GPU = 4 * (2 * _ROWS_ON_GPU * _CENTRES + 2 * _SETTLED_ON_GPU)


class LazyDistances:
    """One rank's points, bounds on their distances to the centres, and all centres so far.

    For each row, `upper` is an upper bound on the distance to the nearest of the first `bounded`
    centres, and `exact` is the distance to the nearest of the first `settled` centres. All
    distances are squared.
    """

    def __init__(self, points: Tensor, ids: Tensor, k: int, quantiser: Quantiser) -> None:
        n, d = points.shape
        self.points, self.ids, self.quantiser = points, ids, quantiser
        self.codes = quantiser.codes(points)
        self.upper = points.new_full((n,), torch.inf)
        self.exact = points.new_full((n,), torch.inf)
        self.bounded = torch.zeros(n, dtype=torch.int32, device=points.device)
        self.settled = torch.zeros(n, dtype=torch.int32, device=points.device)
        self.count = 0
        self.centres = points.new_empty(k, d)
        self._columns = quantiser.padding(k + COLUMNS)
        self._residuals = points.new_empty(k)
        self._candidates = 0
        self._on_cpu = points.device.type == "cpu"
        self._rows = _ROWS if self._on_cpu else _ROWS_ON_GPU

    def add(self, centres: Tensor) -> None:
        """Append centres (m, d); distances to them are computed later, when they are needed."""
        centres = centres.to(self.points.device)
        new = slice(self.count, self.count + len(centres))
        codes = self.quantiser.codes(centres)
        self.centres[new] = centres
        self._columns[new] = self.quantiser.columns(codes)
        self._residuals[new] = codes.residual
        self.count += len(centres)

    def begin(self, centres: Tensor) -> None:
        """Add the first centres (m, d), which give every row its first bound."""
        self.add(centres)
        self._lower_bounds(torch.arange(len(self.points), device=self.points.device), -1.0)

    def _lower_bounds(self, rows: Tensor, floor: float) -> Tensor:
        """Lower `upper` of rows by the centres not yet included; rows still above `floor`."""
        above = [rows[:0]]
        for chunk in chunks(_sorted_by(self.bounded, rows), self._rows):
            part = chunk
            codes, upper = self.codes.take(part), self.upper.index_select(0, part)
            for begin in range(int(self.bounded[part[0]]), self.count, _CENTRES):
                end = min(begin + _CENTRES, self.count)
                products = self.quantiser.products(codes.rows, self._columns[begin:end])
                residual = float(self._residuals[begin:end].max())
                bound = self.quantiser.upper_bound(products.amax(dim=1), codes, residual)
                upper = torch.minimum(upper, bound)
                high = torch.nonzero(upper > floor).flatten()
                if end == self.count or len(high) < _COPY_BELOW * len(part):
                    self.upper.index_copy_(0, part, upper)
                    self.bounded.index_fill_(0, part, end)
                    part = part.index_select(0, high)
                    if not len(part):
                        break
                    if end < self.count:
                        codes, upper = codes.take(high), upper.index_select(0, high)
            above.append(part)
        return torch.cat(above)

    @property
    def _settle_rows(self) -> int:
        """Rows whose distances to all centres are computed at a time."""
        many = 0 if self._on_cpu else _SETTLED_ON_GPU // (self.count + COLUMNS)
        return max(_SETTLE_ROWS, many)

    def _settle(self, rows: Tensor, floor: float) -> None:
        """Compute exact distances of rows to all centres; stop early for those below `floor`."""
        for part in chunks(_sorted_by(self.settled, rows), self._settle_rows):
            begin = int(self.settled[part[0]])
            if begin == self.count:
                continue
            padded = begin + -(-(self.count - begin) // COLUMNS) * COLUMNS
            codes = self.codes.take(part)
            products = Products(self.quantiser.products(codes.rows, self._columns[begin:padded]))
            nearest = (products.largest() + begin).clamp_max_(self.count - 1)
            exact = self._distances(part, nearest).minimum(self.exact.index_select(0, part))
            high = exact > floor
            residual = float(self._residuals[begin : self.count].max())
            least = self.quantiser.least_product(exact, codes, residual)
            least[~high] = 2**30
            row, centre = products.at_least(least)
            centre += begin
            real = centre < self.count
            row, centre = row[real], centre[real]
            exact.scatter_reduce_(0, row, self._distances(part[row], centre), "amin")
            self.exact.index_copy_(0, part, exact)
            self.upper.index_copy_(0, part, exact)
            self.settled[part[high]] = self.count

    def _distances(self, rows: Tensor, centres: Tensor) -> Tensor:
        """Exact squared distances of pairs of a row and a centre, both (n,)."""
        out = self.points.new_empty(len(rows))
        size = _SETTLE_ROWS if self._on_cpu else _ROWS_ON_GPU
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            out[part] = squared(
                self.points.index_select(0, rows[part]),
                self.centres.index_select(0, centres[part]),
            )
        return out

    def propose(self, batch: int) -> tuple[Tensor, tuple[float, int]]:
        """Up to `batch` of the farthest rows, farthest first, and a bound on all other rows.

        The bound is a pair of squared distance and id; no other row comes before it in the order of
        picks (larger distance first, then lower id).
        """
        n = len(self.points)
        if not n:
            return torch.empty(0, dtype=torch.int64, device=self.points.device), (-1.0, -1)
        candidates = max(self._candidates, 2 * batch)
        while True:
            take = min(n, candidates + 1)
            values, rows = torch.topk(self.upper, take, sorted=True)
            floor = -1.0 if take == n else float(values[-1])
            rows = self._lower_bounds(rows if take == n else rows[:-1], floor)
            self._settle(rows, floor)
            farthest = rows[self.upper[rows] > floor]
            if len(farthest) >= max(1, batch // 2) or take == n:
                break
            candidates *= 2
        # Start the next round with about as many candidates as this one needed.
        halve = len(farthest) > 2 * batch
        self._candidates = max(2 * batch, candidates // 2 if halve else candidates)
        by_id, by_distance = self.ids[farthest].cpu(), self.exact[farthest].cpu()
        order = torch.from_numpy(np.lexsort((by_id.numpy(), -by_distance.numpy())))
        farthest = farthest[order.to(farthest.device)]
        if len(farthest) > batch:
            after = int(farthest[batch])
            return farthest[:batch], (float(self.exact[after]), int(self.ids[after]))
        return farthest, (floor, -1)


def bytes_per_point(width: int) -> int:
    """Bytes that a point (width,) takes on a GPU: itself, its code in float32, and its bounds."""
    return 4 * width + 4 * (width + 12) + 40


def chunks(rows: Tensor, size: int = _CHUNK) -> Iterator[Tensor]:
    """Slices of a tensor of at most `size` rows."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _sorted_by(key: Tensor, rows: Tensor) -> Tensor:
    """Rows sorted by their key; rows of equal keys by their number, so in the order of memory."""
    rows = rows.sort().values
    return rows[torch.argsort(key[rows], stable=True)]
