"""The exact greedy coreset over the shards of a group, in batches.

Farthest-first traversal (Gonzalez 1985): start anywhere, add again and again the point farthest
from all centres; its radius is at most twice the best possible. Instead of one round of messages
per centre, each worker proposes its farthest points together with a bound on all it kept back, and
every rank makes the same picks among the proposals for as long as no point kept back can be ahead.
Distances are evaluated lazily: D[x] is the distance to a prefix of the centres, an upper bound, and
only rows that could be farthest are brought up to date. Because `distance.squared` gives the same
bits everywhere and ties go to the lowest id, the picks are those of the sequential greedy, for any
number of shards and any batch size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ops.distance import LARGEST, nearest, slack, squared
from ops.group import Group

log = logging.getLogger(__name__)
_CENTRES = 256  # centres per block of the lazy update

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass
class Coreset:
    """Picked ids in order, each pick's squared distance to the picks before it, and the cover.

    `radius` is the exact covering radius: no point lies farther than it from a pick.
    `rounds` counts exchanges. Fewer ids than asked for mean that all other points are duplicates.
    """

    ids: list[int] = field(default_factory=list)
    squared: list[float] = field(default_factory=list)
    radius: float = 0.0
    rounds: int = 0


Watch = Callable[[int, int], None]


def greedy(
    points: Tensor, ids: Tensor, k: int, group: Group, batch: int = 0, watch: Watch | None = None
) -> Coreset:
    """Pick k of all ranks' points. The same on every rank; collective.

    Args:
        points: this rank's points (n, d), float32, finite, below 1e18 in size; n may be 0.
        ids: their ids (n,), int64, ascending, unique over all ranks.
        k: how many to pick.
        batch: proposals per rank and round; 0 takes 1024 over all ranks, at least 64 each.
        watch: called after each round with the picks so far and k.

    """
    bad = int(points.numel() > 0 and not bool((points.abs() < LARGEST).all()))
    total, bad = group.all_reduce(torch.tensor([len(ids), bad])).tolist()
    if bad:  # known to every rank, so that none is left waiting
        raise ValueError(f"points must be finite and below {LARGEST:.0e}; drop other rows first")
    batch = batch or max(64, 1024 // group.size)
    shard = _Shard(points.contiguous(), ids)
    found = Coreset()
    if not total or k < 1:
        return found
    shard.add(_first(shard, group))
    found.ids.append(shard.start)
    found.squared.append(math.inf)
    while len(found.ids) < k:
        proposals = _exchange(shard, batch, group)
        found.rounds += 1
        picks = proposals.pick(k - len(found.ids), found)
        if not len(picks):
            break  # all that is left duplicates a centre
        shard.add(torch.from_numpy(proposals.points[picks]))
        if watch:
            watch(len(found.ids), k)
    found.radius = math.sqrt(float(_exchange(shard, 1, group).values.max()))
    log.debug("%d picks in %d rounds, radius %.6g", len(found.ids), found.rounds, found.radius)
    return found


class _Shard:
    """One rank's points, their distances D to the first t centres, and all centres so far."""

    def __init__(self, points: Tensor, ids: Tensor) -> None:
        self.points, self.ids = points, ids
        self.norms = (points * points).sum(dim=1)
        self.distance = torch.full((len(points),), torch.inf)
        self.seen = torch.zeros(len(points), dtype=torch.int64)
        self.centres = torch.empty(0, points.shape[1])
        self.centre_norms = torch.empty(0)
        self.start = -1
        self._top = 0

    def add(self, centres: Tensor) -> None:
        """Append centres; their distances are taken when somebody asks."""
        self.centres = torch.cat([self.centres, centres])
        self.centre_norms = torch.cat([self.centre_norms, (centres * centres).sum(dim=1)])

    def _refresh(self, rows: Tensor, floor: float) -> None:
        """Bring rows up to date with all centres, or until they fall to `floor` or below."""
        count = len(self.centres)
        start = int(self.seen[rows].min()) // _CENTRES * _CENTRES if len(rows) else count
        for begin in range(start, count, _CENTRES):
            end = min(begin + _CENTRES, count)
            rows = rows[self.distance[rows] > floor]
            todo = rows[self.seen[rows] < end]
            if len(todo):
                block, norms = self.centres[begin:end], self.centre_norms[begin:end]
                bound = self.distance[todo]
                found = nearest(self.points[todo], block, self.norms[todo], norms, bound)
                self.distance[todo] = found.value
                self.seen[todo] = end

    def propose(self, batch: int) -> tuple[Tensor, tuple[float, int]]:
        """Rows of the farthest points, exact and sorted, and the key that bounds all the others."""
        n = len(self.points)
        if not n:
            return torch.empty(0, dtype=torch.int64), (-1.0, -1)
        top = max(self._top, 2 * batch)
        while True:
            take = min(n, top + 1)
            values, rows = torch.topk(self.distance, take, sorted=True)
            floor = -1.0 if take == n else float(values[-1])
            rows = rows if take == n else rows[:-1]
            self._refresh(rows, floor)
            good = rows[self.distance[rows] > floor]
            if len(good) >= max(1, batch // 2) or take == n:
                break
            top *= 2
        # Next time start with about as many as turned out to be needed.
        self._top = max(2 * batch, top // 2 if len(good) > 2 * batch else top)
        order = np.lexsort((self.ids[good].numpy(), -self.distance[good].numpy()))
        good = good[torch.from_numpy(order)]
        if len(good) > batch:
            after = int(good[batch])
            return good[:batch], (float(self.distance[after]), int(self.ids[after]))
        return good, (floor, -1)


def _first(shard: _Shard, group: Group) -> Tensor:
    """The point with the lowest id of all ranks, as the first centre."""
    own = shard.ids.min() if len(shard.ids) else torch.tensor(2**62)
    shard.start = int(group.all_reduce(own.reshape(1), "min"))
    holder = shard.points[shard.ids == shard.start]
    return torch.cat(group.all_gather(holder))


@dataclass
class _Proposals:
    """What all ranks propose, sorted by id, and the best key that any rank kept back."""

    values: Floats
    ids: Ids
    points: Floats
    kept_back: tuple[float, int]

    def pick(self, k: int, found: Coreset) -> npt.NDArray[np.intp]:
        """Greedy picks that no point kept back can be ahead of; at most k. Updates `values`."""
        norms = (self.points * self.points).sum(axis=1)
        error = slack(self.points.shape[1]) * (norms[:, None] + norms[None, :])
        least = norms[:, None] + norms[None, :] - 2 * (self.points @ self.points.T) - error
        picks: list[int] = []
        value, held = self.kept_back
        while len(picks) < k and len(self.values):
            p = int(np.argmax(self.values))  # the first, so the lowest id, on ties
            best = self.values[p]
            if best == 0 or (best, -int(self.ids[p])) <= (np.float32(value), -held):
                break
            picks.append(p)
            found.ids.append(int(self.ids[p]))
            found.squared.append(float(best))
            near = np.flatnonzero(least[p] < self.values)
            pairs = squared(torch.from_numpy(self.points[near]), torch.from_numpy(self.points[p]))
            self.values[near] = np.minimum(self.values[near], pairs.numpy())
        return np.asarray(picks, dtype=np.intp)


def _exchange(shard: _Shard, batch: int, group: Group) -> _Proposals:
    rows, kept_back = shard.propose(batch)
    bounds = torch.tensor([[kept_back[0], float(kept_back[1])]], dtype=torch.float64)
    values = torch.cat(group.all_gather(shard.distance[rows])).numpy()
    ids = torch.cat(group.all_gather(shard.ids[rows])).numpy()
    points = torch.cat(group.all_gather(shard.points[rows])).numpy()
    others = [(float(b[0, 0]), int(b[0, 1])) for b in group.all_gather(bounds)]
    order = np.argsort(ids)
    highest = max(others, key=lambda key: (key[0], -key[1]))
    return _Proposals(values[order].copy(), ids[order], points[order], highest)
