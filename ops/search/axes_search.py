"""Exact nearest neighbours on a processor: bounds exclude most pairs before distances are computed.

First, a centred vector x is split into its projection Px on the bank's principal axes and the
length |rx| of the remainder. By Cauchy-Schwarz |x - c|^2 >= |x|^2 + |c|^2 - 2 (Px.Pc + |rx||rc|),
which is a squared distance in fewer dimensions. Where the processor multiplies 8-bit integers fast,
there are 256, and that distance is first bounded by products of such integers (`quantised`). Else
there are 96, and products are of float32 (`leading_axes`). Distances of pairs that the bounds do
not exclude are computed in float32. Those that could be the nearest are computed by
`distance.squared`, so that the result does not depend on the filters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.search.distance import Nearest, slack, squared
from ops.search.float32_products import float32_products
from ops.search.leading_axes import LEADING, LeadingAxes
from ops.search.pairs import nearest_of_pairs
from ops.search.quantised import COLUMNS, Codes, Products, Quantiser, multiplies_bytes

_MIN_AXES = 31  # with fewer axes, the pairs that are not excluded cost more than the axes save
_AXES = 255  # one more dimension is for the length of the remainder
#: Products of a block of queries at a time, 16 MB; a block has `_QUERIES` queries at least.
_PRODUCTS, _QUERIES = 2**22, 96
_CROWD = 300  # groups to look at that cost about as much as a search in all dimensions
_BLOCK = 128  # components that are rotated together
SCRATCH = 12 * _PRODUCTS  # bytes of products that a bank's searches, three at most, hold
_MEASURED = 2**16  # components of pairs whose distances are computed at a time


class AxesSearch:
    """A search index over finite vectors (n, d), n at least 1. Wide vectors get principal axes.

    For a query far from all vectors, all distances are similar, so that bytes, or few axes, exclude
    too few pairs. Such queries are searched again: after bytes with float32, which is more precise,
    in the leading axes, and after these in all dimensions.
    """

    @float32_products()
    def __init__(
        self, vectors: Tensor, axes: int | None = None, in_bytes: bool | None = None
    ) -> None:
        """`axes` is the number of principal axes, if there are enough vectors; 0 = none.

        `in_bytes` is whether products are of 8-bit integers; None: if that is fast.
        """
        in_bytes = multiplies_bytes() if in_bytes is None else in_bytes
        if axes is None:
            axes = _AXES if in_bytes else LEADING
        self.vectors = vectors
        n, d = vectors.shape
        self._centre = vectors.mean(dim=0)
        self._rotation: Tensor | None = None
        self._precise: AxesSearch | None = None  # for queries that this search excludes little for
        # Relative rounding error of the squared length of a split vector, in float32.
        self._error = 0.0
        self._rounds = in_bytes
        self._axes = 0
        fitting = min(axes, n // 4, d // 2)
        if 0 < min(axes, _MIN_AXES) <= fitting:
            axes = fitting
            sample = (vectors[:: max(1, n // 8192)] - self._centre).double()
            principal = torch.linalg.eigh(sample.T @ sample)[1][:, -axes:]
            if in_bytes:  # so that no component is much larger than others
                principal = principal @ _random_rotation(axes)
            self._rotation = principal.to(vectors.dtype).contiguous()
            self._error = 8 * slack(d)
            self._axes = axes
            self._precise = AxesSearch(
                vectors, min(axes, LEADING) if in_bytes else 0, in_bytes=False
            )
        elif d >= 2 * _BLOCK and in_bytes:
            self._rotation = _random_rotation(_BLOCK).to(vectors.dtype)
            self._error = 8 * slack(_BLOCK)
        self._narrow, lengths = self._split(vectors)
        self._largest = float(lengths.max())
        self._above = 1 + 2 * slack(d)  # times a computed squared distance: an upper bound
        self._quantiser: Quantiser | LeadingAxes = (
            Quantiser.of(self._narrow) if in_bytes else LeadingAxes(self._narrow)
        )
        codes = self._quantiser.codes(self._narrow)
        self._residual = float(codes.residual.max())
        padding = self._quantiser.padding(-n % COLUMNS)
        self._columns = torch.cat([self._quantiser.columns(codes), padding])
        self._scratch = torch.empty(0)  # reused: fresh memory would take as long as the products
        if not self._axes:
            self._narrow = self._narrow[:0]  # only the codes are needed

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Projected or rotated vectors (n, w), and the squared lengths (n,) of x - centre.

        Rounding errors are relative to these lengths.
        """
        if self._rotation is None:
            return x, x.new_zeros(len(x))
        away = x - self._centre
        lengths = away.square().sum(dim=1)
        if not self._axes:  # rotated in blocks, so that no component is much larger than others
            away = F.pad(away, (0, -x.shape[1] % _BLOCK))
            parts = away.view(len(x), _BLOCK, -1).transpose(1, 2)
            return (parts @ self._rotation).flatten(1), lengths
        inside = away @ self._rotation
        # Never less than the true remainder, despite rounding.
        remainder = lengths * (1 + self._error) - inside.square().sum(dim=1)
        return torch.cat([inside, remainder.clamp_min(0).sqrt().unsqueeze(1)], dim=1), lengths

    @float32_products()
    def nearest(self, x: Tensor) -> Nearest:
        """The nearest vector for each query x (m, d): squared distance (m,) and row (m,).

        The lowest row on ties. Queries that are not finite get infinity and row -1.
        """
        value = x.new_full((len(x),), torch.inf)
        row = torch.full((len(x),), -1, dtype=torch.int64)
        finite = torch.isfinite(x.sum(dim=1))
        if not bool(finite.all()):
            known = torch.nonzero(finite).flatten()
            if len(known):
                value[known], row[known] = self.nearest(x[known])
            return Nearest(value, row)
        narrow, lengths = self._split(x)
        rounding = 2 * self._error * (lengths + self._largest)
        codes = self._quantiser.codes(narrow)
        blocks = -(-len(x) // max(_QUERIES, _PRODUCTS // len(self._columns))) or 1
        size = -(-len(x) // blocks) or 1  # blocks of about the same size
        if len(self._scratch) < min(len(x), size):
            shape = min(len(x), size), len(self._columns)
            self._scratch = self._quantiser.empty_products(*shape)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            block = Codes(*(c[part] for c in codes))
            value[part], row[part] = self._search(x[part], narrow[part], block, rounding[part])
        return Nearest(value, row)

    def _search(self, x: Tensor, narrow: Tensor, codes: Codes, rounding: Tensor) -> Nearest:
        """`nearest` for one block of finite queries, with their split and codes."""
        out = self._scratch[: len(x)]
        products = Products(self._quantiser.products(codes.rows, self._columns, out))
        queries = torch.arange(len(x))
        guess = products.largest().clamp_max_(len(self.vectors) - 1)
        measured = [self._distances(x, self.vectors, queries, guess)]
        bound = measured[0] * self._above
        least = self._quantiser.least_product(bound + rounding, codes, self._residual)
        crowded = queries[:0]
        if self._precise is not None:
            crowded = torch.nonzero(products.groups_at_least(least) > _CROWD).flatten()
            least[crowded] = 2**30
        query, column = products.at_least(least)
        real = (column < len(self.vectors)) & (column != guess.index_select(0, query))
        query, column = query[real], column[real]
        pairs = [(queries, guess)]
        if self._rounds and self._axes:  # the products were of rounded vectors
            lower = self._distances(narrow, self._narrow, query, column)
            # The pair with the lowest bound of each query comes first: it excludes most others.
            lowest = torch.full_like(bound, torch.inf).scatter_reduce_(0, query, lower, "amin")
            first = lower == lowest.index_select(0, query)
            pairs.append((query[first], column[first]))
            measured.append(self._distances(x, self.vectors, *pairs[-1]))
            bound.scatter_reduce_(0, pairs[-1][0], measured[-1] * self._above, "amin")
            remaining = (lower <= (bound + rounding).index_select(0, query)) & ~first
            query, column = query[remaining], column[remaining]
        pairs.append((query, column))
        measured.append(self._distances(x, self.vectors, query, column))
        query = torch.cat([pair[0] for pair in pairs])
        column = torch.cat([pair[1] for pair in pairs])
        distance = torch.cat(measured)
        bound.scatter_reduce_(0, query, distance * self._above, "amin")
        near = distance <= (bound * self._above).index_select(0, query)
        value, row = nearest_of_pairs(x, self.vectors, query[near], column[near], 1)
        nearest = Nearest(value.flatten(), row.flatten())
        if len(crowded) and self._precise is not None:
            again = self._precise.nearest(x.index_select(0, crowded))
            nearest.value[crowded], nearest.row[crowded] = again
        return nearest

    def _distances(self, x: Tensor, bank: Tensor, query: Tensor, column: Tensor) -> Tensor:
        """Squared distances of pairs of a query and a column of the bank, up to `slack`."""
        out = x.new_empty(len(query))
        size = max(1, _MEASURED // x.shape[1])
        for start in range(0, len(query), size):
            part = slice(start, start + size)
            away = x.index_select(0, query[part]).sub_(bank.index_select(0, column[part]))
            torch.sum(away.square_(), dim=1, out=out[part])
        return out

    @float32_products()
    def neighbours(self, rows: Tensor, count: int) -> Tensor:
        """The rows (m, count) of the `count` vectors, at most n, nearest to each of some rows (m,).

        Ordered by distance, then by row.
        """
        places = self._narrow if self._axes else self.vectors - self._centre
        lengths = places.square().sum(dim=1)
        own = lengths[rows]
        # Lower bounds, up to rounding errors, which are relative to the lengths.
        lower = torch.addmm(lengths, places[rows], places.T, alpha=-2).add_(own.unsqueeze(1))
        few = lower.topk(min(4 * count, len(places)), largest=False).indices
        x = self.vectors[rows]
        reach = squared(x.unsqueeze(1), self.vectors[few]).sort(dim=1).values[:, count - 1]
        rounding = (
            8 * slack(places.shape[1]) * (own + lengths.max()) + 4 * self._error * self._largest
        )
        limit = reach * self._above * (1 + 1e-4) + rounding
        query, column = torch.nonzero(lower <= limit.unsqueeze(1), as_tuple=True)
        return nearest_of_pairs(x, self.vectors, query, column, count).row


def _random_rotation(size: int) -> Tensor:
    """A random rotation (size, size), float64, always the same."""
    generator = torch.Generator().manual_seed(0)
    rotation: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    return rotation
