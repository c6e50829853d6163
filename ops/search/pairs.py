"""The nearest among pairs of a query and a vector that filters left, by `distance.squared` alone.

Nothing here waits for a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ops.search.distance import Nearest, squared

#: Components of pairs whose distances are computed at a time, on a processor and on a device.
_MEASURED, _MEASURED_ON_DEVICE = 2**18, 2**27


def nearest_of_pairs(
    x: Tensor, vectors: Tensor, query: Tensor, column: Tensor, count: int
) -> Nearest:
    """The `count` nearest rows of `vectors` to each query x (m, d), by distance, then by row.

    Pairs are given by the number of the query and the row, in any order, each at most once.
    Returns (m, count), with infinity and row -1 where there are fewer pairs, or a distance is not
    finite.
    """
    room = _MEASURED if x.device.type == "cpu" else _MEASURED_ON_DEVICE
    size = max(1, room // x.shape[1])
    pairs = zip(torch.split(query, size), torch.split(column, size), strict=True)
    parts = [squared(x.index_select(0, q), vectors.index_select(0, c)) for q, c in pairs]
    distance = torch.cat(parts) if len(parts) > 1 else parts[0]
    if count > 1:
        return _ranked(query, distance, column, len(x), count)
    value = x.new_full((len(x),), torch.inf).scatter_reduce_(0, query, distance, "amin")
    tied = distance == value.index_select(0, query)
    last = len(vectors)
    row = torch.full_like(value, last, dtype=torch.int64)
    row.scatter_reduce_(0, query, column.where(tied, last), "amin")
    row = row.where(value < torch.inf, -1)
    return Nearest(value.unsqueeze(1), row.unsqueeze(1))


def _ranked(query: Tensor, distance: Tensor, column: Tensor, queries: int, count: int) -> Nearest:
    order = column.argsort()
    order = order[distance[order].argsort(stable=True)]
    order = order[query[order].argsort(stable=True)]
    query, distance, column = query[order], distance[order], column[order]
    rank = torch.arange(len(query), device=query.device) - torch.searchsorted(query, query)
    kept = (rank < count) & (distance < torch.inf)
    place = (query * count + rank).where(kept, queries * count)  # the last one is discarded
    value = distance.new_full((queries * count + 1,), torch.inf).scatter_(0, place, distance)
    row = torch.full_like(value, -1, dtype=torch.int64).scatter_(0, place, column)
    return Nearest(value[:-1].view(queries, count), row[:-1].view(queries, count))
