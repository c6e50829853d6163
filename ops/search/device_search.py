"""Exact nearest neighbours on a GPU: few large operations and one wait for the device.

One product of float16 matrices (`half_codes`) excludes nearly all pairs of all queries of a batch.
`distance.squared` of the pairs that are left decides, so neighbours are the same bits as a
processor's, whatever the batch. Queries with more candidates than there is room for, such as those
far from all vectors, are searched again without that limit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ops.search.distance import Nearest
from ops.search.half_codes import HalfCodes, HalfQuantiser, products
from ops.search.pairs import nearest_of_pairs

#: Columns whose largest product is found first; the groups that can hold a neighbour are few.
_GROUP = 16
_SPARE = 15  # groups of candidates of a query, beside one for each neighbour
#: Products at a time, 1 GB: a batch of 64 images with a bank of 5,000 in one piece.
_PRODUCTS = 2**28
#: Bytes of a search: the products, and the maxima of their groups.
SCRATCH = 5 * _PRODUCTS
_CROWDED = 2**22  # products at a time of queries that are searched again


class DeviceSearch:
    """A search index over finite vectors (n, d), n at least 1, on their device.

    Building it waits for nothing on the device.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self._quantiser = HalfQuantiser(vectors)
        codes = self._quantiser.codes(vectors)
        self._square, self._residual = codes.square.amax(), codes.residual.amax()
        columns = self._quantiser.columns(codes)
        # The last vector fills the last group, where it is already: its maximum stays the same.
        padding = columns[-1:].expand(-len(vectors) % _GROUP, -1)
        self._columns = torch.cat([columns, padding])

    def nearest(self, x: Tensor) -> Nearest:
        """The nearest vector of each query (m, d): squared distance (m,) and row (m,)."""
        few = self.few(x, 1)
        return Nearest(few.value[:, 0], few.row[:, 0])

    def few(self, x: Tensor, count: int) -> Nearest:
        """The `count` nearest vectors of each query (m, d), by distance, then by row: (m, count).

        Infinity and row -1 where there are fewer vectors, and for queries that are not finite.
        """
        finite = torch.isfinite(x).all(dim=1)
        x = x.where(finite.unsqueeze(1), self._quantiser.centre)
        codes = self._quantiser.codes(x)
        best, group, members = self._candidates(codes.rows, count)
        kth = best[:, count - 1] if count <= best.shape[1] else best.new_full((), -torch.inf)
        least = self._quantiser.least_product(codes, kth, self._square, self._residual)
        groups = self._groups(count)
        column = group[:, :groups, None] * _GROUP + torch.arange(_GROUP, device=x.device)
        near = (members >= least[:, None, None]) & (column < len(self.vectors))
        crowded = torch.zeros_like(finite)
        if best.shape[1] > groups:
            crowded = (best[:, groups] >= least) & finite
        near &= (finite & ~crowded)[:, None, None]
        pairs, again = torch.stack([near.sum(), crowded.sum()]).tolist()  # the one wait
        place = near.flatten().nonzero_static(size=pairs).flatten()
        query = place // (groups * _GROUP)
        column = column.flatten().index_select(0, place)
        result = nearest_of_pairs(x, self.vectors, query, column, count)
        if again:
            self._search_again(x, codes, least, crowded, again, result)
        return result

    def _groups(self, count: int) -> int:
        """Groups of candidates that each query has room for."""
        return min(count + _SPARE, len(self._columns) // _GROUP)

    def _candidates(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The largest maxima of groups (m, g or g + 1), their groups, and products (m, g, 16)."""
        total, groups = len(self._columns) // _GROUP, self._groups(count)
        size = max(1, _PRODUCTS // len(self._columns))
        scratch = self._scratch(min(size, len(rows)))
        parts = []
        for chunk in torch.split(rows, size):
            out = products(chunk, self._columns, scratch[: len(chunk)])
            grouped = out.view(len(chunk), total, _GROUP)
            best, group = grouped.amax(dim=2).topk(min(groups + 1, total), dim=1)
            index = group[:, :groups, None].expand(-1, -1, _GROUP)
            parts.append((best, group, grouped.gather(1, index)))
        if len(parts) == 1:
            return parts[0]
        best, group, members = (torch.cat(part) for part in zip(*parts, strict=True))
        return best, group, members

    def _scratch(self, rows: int) -> Tensor:
        return torch.empty(rows, len(self._columns), device=self._columns.device)

    def _search_again(
        self, x: Tensor, codes: HalfCodes, least: Tensor, crowded: Tensor, again: int, out: Nearest
    ) -> None:
        """Search the queries marked `crowded` among all vectors, and put them into `out`."""
        chosen = crowded.nonzero_static(size=again).flatten()
        size = max(1, _CROWDED // len(self._columns))
        scratch = self._scratch(min(size, again))
        for part in torch.split(chosen, size):
            rows = codes.rows.index_select(0, part)
            near = products(rows, self._columns, scratch[: len(part)])
            near = near[:, : len(self.vectors)] >= least.index_select(0, part).unsqueeze(1)
            query, column = torch.nonzero(near, as_tuple=True)
            own, count = x.index_select(0, part), out.value.shape[1]
            found = nearest_of_pairs(own, self.vectors, query, column, count)
            out.value[part], out.row[part] = found
