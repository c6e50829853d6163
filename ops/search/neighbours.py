"""A bank of vectors and its exact nearest neighbours, by the search that suits its device."""

from __future__ import annotations

import torch
from torch import Tensor

from ops.search.axes_search import AxesSearch
from ops.search.device_search import DeviceSearch
from ops.search.distance import Nearest


class Bank:
    """A search index over finite vectors (n, d), n at least 1, on the device that holds them.

    Values and rows are the same bits on every device, in any batch of queries.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        on_cpu = vectors.device.type == "cpu"
        self._search: AxesSearch | DeviceSearch
        self._search = AxesSearch(vectors) if on_cpu else DeviceSearch(vectors)
        self._table = torch.empty(0, 0, dtype=torch.int64)

    def nearest(self, x: Tensor) -> Nearest:
        """The nearest vector for each query x (m, d): squared distance (m,) and row (m,).

        The lowest row on ties. Queries that are not finite get infinity and row -1.
        """
        return self._search.nearest(x)

    def neighbours(self, rows: Tensor, count: int) -> Tensor:
        """The rows (m, count) of the `count` vectors nearest to each of some rows (m,).

        Ordered by distance, then by row; fewer than `count` if the bank is smaller. They are kept:
        a GPU computes them for all rows at the first call, a processor for each row once.
        """
        n, count = len(self.vectors), min(count, len(self.vectors))
        if isinstance(self._search, DeviceSearch):
            if self._table.shape[1] != count:
                self._table = self._search.few(self.vectors, count).row
            return self._table.index_select(0, rows)
        if self._table.shape[1] != count:
            self._table = torch.full((n, count), -1)
        missing = torch.unique(rows[self._table[rows, 0] < 0])
        if len(missing):
            self._table[missing] = self._search.neighbours(missing, count)
        return self._table[rows]
