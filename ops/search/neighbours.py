"""Exact nearest neighbours: cheap lower bounds pick the few pairs worth a full distance.

First, a centred vector is split into its part in the bank's principal axes and the length of the
rest. By Cauchy-Schwarz |x - c|^2 >= |x|^2 + |c|^2 - 2 (Px.Pc + |rx||rc|), which is a distance in
256 instead of all dimensions. Second, that distance is bounded by products of bytes
(`quantised`). What both bounds leave is measured in float32, and what then could be nearest by
`distance.squared`, so that filters never show.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.search.distance import Nearest, slack, squared
from ops.search.quantised import COLUMNS, Codes, Products, Quantiser

_FEWEST = 31  # with fewer, what they leave costs more than they save
_AXES = 255  # and one more dimension for the length of the rest
_PRODUCTS = 2**22  # products of a block of queries, 16 MB; more if that is too few queries
_QUERIES = 96
_CROWD = 300  # pairs that cost about what a search by bytes in all dimensions costs
_BLOCK = 128  # components that are turned together
SCRATCH = 4 * _PRODUCTS  # bytes that each of a bank's two searches holds for them
_MEASURED = 2**16  # components of the pairs that are measured at a time


class Bank:
    """Vectors (n, d) to search, finite, n at least 1. Wide ones get principal axes: one pass.

    Queries far from all vectors leave too many pairs in the principal axes, as all their distances
    are alike. These few are searched once more in all dimensions, by bytes alone.
    """

    def __init__(self, vectors: Tensor, axes: int = _AXES) -> None:
        """`axes` is how many principal axes there are, if they pay; 0 = none."""
        self.vectors = vectors
        n, d = vectors.shape
        self._centre = vectors.mean(dim=0)
        self._turn: Tensor | None = None
        self._plain: Bank | None = None
        # What float32 can lose between a squared length and that of a split, as a share of it.
        self._error = 0.0
        self._axes = 0
        fitting = min(axes, n // 4, d // 2)
        if 0 < min(axes, _FEWEST) <= fitting:
            axes = fitting
            sample = (vectors[:: max(1, n // 8192)] - self._centre).double()
            principal = torch.linalg.eigh(sample.T @ sample)[1][:, -axes:]
            self._turn = (principal @ _turn(axes, principal)).to(vectors.dtype).contiguous()
            self._error = 8 * slack(d)
            self._axes = axes
            self._plain = Bank(vectors, 0)
        elif d >= 2 * _BLOCK:
            self._turn = _turn(_BLOCK, vectors).to(vectors.dtype)
            self._error = 8 * slack(_BLOCK)
        self._narrow, lengths = self._split(vectors)
        self._largest = float(lengths.max())
        self._above = 1 + 2 * slack(d)  # from a measured distance to what it cannot exceed
        self._quantiser = Quantiser.of(self._narrow)
        codes = self._quantiser.codes(self._narrow)
        self._rest = float(codes.rest.max())
        padding = self._quantiser.padding(-n % COLUMNS)
        self._columns = torch.cat([self._quantiser.columns(codes), padding])
        self._scratch = torch.empty(0)  # fresh memory would cost as much as the products in it
        if not self._axes:
            self._narrow = self._narrow[:0]  # only its codes are needed

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Narrow or turned vectors, and squared lengths (n,) that their errors are shares of."""
        if self._turn is None:
            return x, x.new_zeros(len(x))
        away = x - self._centre
        lengths = away.square().sum(dim=1)
        if not self._axes:  # turned in blocks, so that no component is much larger than another
            away = F.pad(away, (0, -x.shape[1] % _BLOCK))
            parts = away.view(len(x), _BLOCK, -1).transpose(1, 2)
            return (parts @ self._turn).flatten(1), lengths
        inside = away @ self._turn
        # Never less than the true rest, whatever was lost on the way.
        rest = lengths * (1 + self._error) - inside.square().sum(dim=1)
        return torch.cat([inside, rest.clamp_min(0).sqrt().unsqueeze(1)], dim=1), lengths

    def nearest(self, x: Tensor) -> Nearest:
        """Squared distance to, and row of, the nearest vector for each of x (m, d).

        The lowest row on ties. Rows of x that are not finite get infinity and row -1.
        """
        value = x.new_full((len(x),), torch.inf)
        row = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
        finite = torch.isfinite(x.sum(dim=1))
        if not bool(finite.all()):
            known = torch.nonzero(finite).flatten()
            if len(known):
                value[known], row[known] = self.nearest(x[known])
            return Nearest(value, row)
        narrow, lengths = self._split(x)
        lost = 2 * self._error * (lengths + self._largest)
        codes = self._quantiser.codes(narrow)
        size = max(_QUERIES, _PRODUCTS // len(self._columns))
        if len(self._scratch) < min(len(x), size):
            shape = min(len(x), size), len(self._columns)
            self._scratch = self._quantiser.empty_products(*shape)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            block = Codes(*(c[part] for c in codes))
            value[part], row[part] = self._search(x[part], narrow[part], block, lost[part])
        return Nearest(value, row)

    def _search(self, x: Tensor, narrow: Tensor, codes: Codes, lost: Tensor) -> Nearest:
        out = self._scratch[: len(x)]
        products = Products(self._quantiser.products(codes.rows, self._columns, out))
        queries = torch.arange(len(x), device=x.device)
        guess = products.largest().clamp_max_(len(self.vectors) - 1)
        measured = [self._measured(x, self.vectors, queries, guess)]
        bound = measured[0] * self._above
        needed = self._quantiser.needed(bound + lost, codes, self._rest)
        crowded = queries[:0]
        if self._plain is not None:
            crowded = torch.nonzero(products.hits(needed) > _CROWD).flatten()
            needed[crowded] = 2**30
        query, column = products.at_least(needed)
        real = (column < len(self.vectors)) & (column != guess.index_select(0, query))
        query, column = query[real], column[real]
        pairs = [(queries, guess)]
        if self._axes:
            least = self._measured(narrow, self._narrow, query, column)
            # The lowest bound of each query is measured first: it rules out most of the others.
            lowest = torch.full_like(bound, torch.inf).scatter_reduce_(0, query, least, "amin")
            first = least == lowest.index_select(0, query)
            pairs.append((query[first], column[first]))
            measured.append(self._measured(x, self.vectors, *pairs[-1]))
            bound.scatter_reduce_(0, pairs[-1][0], measured[-1] * self._above, "amin")
            left = (least <= (bound + lost).index_select(0, query)) & ~first
            query, column = query[left], column[left]
        pairs.append((query, column))
        measured.append(self._measured(x, self.vectors, query, column))
        query = torch.cat([pair[0] for pair in pairs])
        column = torch.cat([pair[1] for pair in pairs])
        distance = torch.cat(measured)
        bound.scatter_reduce_(0, query, distance * self._above, "amin")
        near = distance <= (bound * self._above).index_select(0, query)
        found = self._decided(x, query[near], column[near])
        if len(crowded) and self._plain is not None:
            again = self._plain.nearest(x.index_select(0, crowded))
            found.value[crowded], found.row[crowded] = again
        return found

    def _measured(self, x: Tensor, bank: Tensor, query: Tensor, column: Tensor) -> Tensor:
        """Squared distances of pairs, within `slack` of what they are."""
        out = x.new_empty(len(query))
        size = max(1, _MEASURED // x.shape[1])
        for start in range(0, len(query), size):
            part = slice(start, start + size)
            away = x.index_select(0, query[part]).sub_(bank.index_select(0, column[part]))
            torch.sum(away.square_(), dim=1, out=out[part])
        return out

    def _decided(self, x: Tensor, query: Tensor, column: Tensor) -> Nearest:
        """The nearest among pairs that hold at least one of every query."""
        distance = squared(x.index_select(0, query), self.vectors.index_select(0, column))
        value = x.new_full((len(x),), torch.inf).scatter_reduce_(0, query, distance, "amin")
        tied = distance == value[query]
        row = torch.full((len(x),), len(self.vectors), dtype=torch.int64, device=x.device)
        row.scatter_reduce_(0, query[tied], column[tied], "amin")
        return Nearest(value, row.where(row < len(self.vectors), -1))  # if no distance is a number

    def closest(self, row: int, count: int) -> Tensor:
        """The rows of the `count` vectors nearest to the bank's own vector `row`, itself included.

        In order of distance; the lowest row first on ties.
        """
        count = min(count, len(self.vectors))
        x = self.vectors[row]
        away = self._away(row)
        few = away.topk(min(4 * count, len(away)), largest=False).indices
        reach = squared(self.vectors[few], x).sort().values[count - 1]
        lost = 4 * self._error * self._largest
        near = torch.nonzero(away * (1 - 1e-4) <= reach + lost).flatten()
        distance = squared(self.vectors[near], x)
        order = torch.sort(distance, stable=True).indices[:count]
        return near[order]

    def _away(self, row: int) -> Tensor:
        """At most the squared distance from each vector to `row`, but for what float32 loses."""
        places = self._narrow if self._axes else self.vectors
        return (places - places[row]).square_().sum(dim=1)


def _turn(size: int, like: Tensor) -> Tensor:
    """A rotation (size, size), always the same."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    return torch.Tensor.to(turn, like.device)
