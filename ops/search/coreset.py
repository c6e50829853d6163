"""The exact greedy coreset over the shards of a group, in batches.

Farthest-first traversal (Gonzalez 1985): start anywhere, add again and again the point farthest
from all centres; its radius is at most twice the best possible. Instead of one round of messages
per centre, each worker proposes its farthest points together with a bound on all it kept back, and
every rank makes the same picks among the proposals for as long as no point kept back can be ahead.
Distances are evaluated lazily. Products of bytes give every row an upper bound on its distance to
the centres so far; only rows that could be farthest by these bounds are settled, that is, get
their exact distance. Because `distance.squared` gives the same bits everywhere and ties go to the
lowest id, the picks are those of the sequential greedy, for any number of shards and any batch
size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ops.distributed import Group
from ops.errors import UserError
from ops.search.distance import LARGEST, slack, squared
from ops.search.quantised import COLUMNS, Products, Quantiser

log = logging.getLogger(__name__)
_CENTRES = 512  # columns of a product: with 2048 rows it stays near the processor
_ROWS = 2048
_MOST = 0.7  # share of rows above the floor that makes leaving the others out worth a copy
_CHUNK = 4096
_SETTLED = 512  # rows that are settled at a time

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


def greedy(
    points: Tensor,
    ids: Tensor,
    k: int,
    group: Group,
    batch: int = 0,
    watch: Callable[[Coreset], None] | None = None,
    begun: Coreset | None = None,
    enough: float = 0.0,
) -> Coreset:
    """Pick k of all ranks' points. The same on every rank; collective.

    Args:
        points: this rank's points (n, d), float32, finite and shorter than 1e18; n may be 0.
        ids: their ids (n,), int64, ascending, unique over all ranks.
        k: how many to pick.
        batch: proposals per rank and round; 0 takes 512 over all ranks, at least 64 each.
        watch: called after each round with what has been picked so far.
        begun: what an earlier attempt had picked, the same on every rank: it is gone on with.
            Begun anew if it names points that are not there.
        enough: stop when no point is farther than this squared distance from the picks.

    """
    short = [bool((chunk.square().sum(dim=1) < LARGEST**2).all()) for chunk in _chunks(points)]
    bad = int(not all(short))
    total, bad = group.all_reduce(torch.tensor([len(ids), bad])).tolist()
    if bad:  # known to every rank, so that none is left waiting
        raise UserError(
            f"points must be finite and shorter than {LARGEST:.0e}; drop other rows first"
        )
    batch = batch or max(64, 512 // group.size)
    found = Coreset()
    if not total or k < 1:
        return found
    quantiser = _quantiser(points, group)
    shard = _Shard(points.contiguous(), ids, min(k, total), quantiser)
    first = _points_of(begun.ids, points, ids, group) if begun else None
    if begun and first is not None:
        found = Coreset(begun.ids[:k], begun.squared[:k], rounds=begun.rounds)
        shard.begin(first[:k])
    else:
        start = ids.min() if len(ids) else torch.tensor(2**62)
        found.ids.append(int(group.all_reduce(start.reshape(1), "min")))
        found.squared.append(math.inf)
        shard.begin(torch.cat(group.all_gather(points[ids == found.ids[0]])))
    while len(found.ids) < k:
        proposals = _exchange(shard, batch, group)
        found.rounds += 1
        picks = proposals.pick(k - len(found.ids), found, enough)
        if not len(picks):
            break  # all that is left duplicates a centre, or is near enough to one
        shard.add(torch.from_numpy(proposals.points[picks]))
        if watch:
            watch(found)
    found.radius = math.sqrt(float(_exchange(shard, 1, group).values.max()))
    log.info("%d picks in %d rounds, radius %.6g", len(found.ids), found.rounds, found.radius)
    return found


def _chunks(rows: Tensor, size: int = _CHUNK) -> Iterator[Tensor]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _by(key: Tensor, rows: Tensor) -> Tensor:
    """Rows by their key, and by their place in memory where it is equal."""
    rows = rows.sort().values
    return rows[torch.argsort(key[rows], stable=True)]


def _quantiser(points: Tensor, group: Group) -> Quantiser:
    """One for the points of all ranks."""
    sample = points[:: max(1, len(points) // 8192)]
    sums = torch.cat([sample.double().sum(dim=0), torch.tensor([float(len(sample))]).double()])
    sums = group.all_reduce(sums)
    centre = (sums[:-1] / sums[-1]).float()
    extent = torch.zeros(2, dtype=torch.float64)
    for chunk in _chunks(points):
        away = chunk - centre
        own = torch.stack([away.abs().max(), away.square_().sum(dim=1).max().sqrt()])
        extent = torch.maximum(extent, own.double())
    largest, longest = group.all_reduce(extent, "max").tolist()
    return Quantiser(centre, largest, longest)


class _Shard:
    """One rank's points, what is known of their distances, and all centres so far.

    `upper` is never less than the distance to the first `seen` centres; `exact` is the distance to
    the first `settled` ones. All distances are squared.
    """

    def __init__(self, points: Tensor, ids: Tensor, k: int, quantiser: Quantiser) -> None:
        n, d = points.shape
        self.points, self.ids, self.quantiser = points, ids, quantiser
        self.codes = quantiser.codes(points)
        self.upper = torch.full((n,), torch.inf)
        self.exact = torch.full((n,), torch.inf)
        self.seen = torch.zeros(n, dtype=torch.int32)
        self.settled = torch.zeros(n, dtype=torch.int32)
        self.count = 0
        self.centres = torch.empty(k, d)
        self._columns = quantiser.padding(k + COLUMNS)
        self._rest = torch.empty(k)
        self._top = 0

    def add(self, centres: Tensor) -> None:
        """Append centres; their distances are taken when somebody asks."""
        new = slice(self.count, self.count + len(centres))
        codes = self.quantiser.codes(centres)
        self.centres[new] = centres
        self._columns[new] = self.quantiser.columns(codes)
        self._rest[new] = codes.rest
        self.count += len(centres)

    def begin(self, centres: Tensor) -> None:
        """Take the first centres (m, d), from which every row gets its first bound."""
        self.add(centres)
        self._lower(torch.arange(len(self.points)), -1.0)

    def _lower(self, rows: Tensor, floor: float) -> Tensor:
        """Lower the bounds of rows by centres they have not seen; those still above `floor`."""
        left = [rows[:0]]
        for chunk in _chunks(_by(self.seen, rows), _ROWS):
            part = chunk
            codes, upper = self.codes.take(part), self.upper.index_select(0, part)
            for begin in range(int(self.seen[part[0]]), self.count, _CENTRES):
                end = min(begin + _CENTRES, self.count)
                products = self.quantiser.products(codes.rows, self._columns[begin:end])
                rest = float(self._rest[begin:end].max())
                bound = self.quantiser.at_most(products.amax(dim=1), codes, rest)
                upper = torch.minimum(upper, bound)
                high = torch.nonzero(upper > floor).flatten()
                if end == self.count or len(high) < _MOST * len(part):
                    self.upper.index_copy_(0, part, upper)
                    self.seen.index_fill_(0, part, end)
                    part = part.index_select(0, high)
                    if not len(part):
                        break
                    if end < self.count:
                        codes, upper = codes.take(high), upper.index_select(0, high)
            left.append(part)
        return torch.cat(left)

    def _settle(self, rows: Tensor, floor: float) -> None:
        """Find the exact distances of rows to all centres, unless they turn out below `floor`."""
        for part in _chunks(_by(self.settled, rows), _SETTLED):
            begin = int(self.settled[part[0]])
            if begin == self.count:
                continue
            padded = begin + -(-(self.count - begin) // COLUMNS) * COLUMNS
            codes = self.codes.take(part)
            products = Products(self.quantiser.products(codes.rows, self._columns[begin:padded]))
            nearest = (products.largest() + begin).clamp_max_(self.count - 1)
            exact = self._measured(part, nearest).minimum(self.exact.index_select(0, part))
            high = exact > floor
            rest = float(self._rest[begin : self.count].max())
            needed = self.quantiser.needed(exact, codes, rest)
            needed[~high] = 2**30
            row, centre = products.at_least(needed)
            centre += begin
            real = centre < self.count
            row, centre = row[real], centre[real]
            exact.scatter_reduce_(0, row, self._measured(part[row], centre), "amin")
            self.exact.index_copy_(0, part, exact)
            self.upper.index_copy_(0, part, exact)
            self.settled[part[high]] = self.count

    def _measured(self, rows: Tensor, centres: Tensor) -> Tensor:
        out = torch.empty(len(rows))
        for start in range(0, len(rows), _SETTLED):
            part = slice(start, start + _SETTLED)
            out[part] = squared(
                self.points.index_select(0, rows[part]),
                self.centres.index_select(0, centres[part]),
            )
        return out

    def propose(self, batch: int) -> tuple[Tensor, tuple[float, int]]:
        """Rows of the farthest points, exact and sorted, and the key that bounds all the others."""
        n = len(self.points)
        if not n:
            return torch.empty(0, dtype=torch.int64), (-1.0, -1)
        top = max(self._top, 2 * batch)
        while True:
            take = min(n, top + 1)
            values, rows = torch.topk(self.upper, take, sorted=True)
            floor = -1.0 if take == n else float(values[-1])
            rows = self._lower(rows if take == n else rows[:-1], floor)
            self._settle(rows, floor)
            good = rows[self.upper[rows] > floor]
            if len(good) >= max(1, batch // 2) or take == n:
                break
            top *= 2
        # Next time start with about as many as turned out to be needed.
        self._top = max(2 * batch, top // 2 if len(good) > 2 * batch else top)
        order = np.lexsort((self.ids[good].numpy(), -self.exact[good].numpy()))
        good = good[torch.from_numpy(order)]
        if len(good) > batch:
            after = int(good[batch])
            return good[:batch], (float(self.exact[after]), int(self.ids[after]))
        return good, (floor, -1)


def _points_of(wanted: list[int], points: Tensor, ids: Tensor, group: Group) -> Tensor | None:
    """The points (m, d) with these ids, in their order; None if one is on no rank. Collective."""
    own = torch.isin(ids, torch.tensor(wanted))
    all_ids = torch.cat(group.all_gather(ids[own]))
    all_points = torch.cat(group.all_gather(points[own]))
    if len(all_ids) < len(wanted):
        return None
    order = torch.argsort(all_ids)
    return all_points[order[torch.searchsorted(all_ids[order], torch.tensor(wanted))]]


@dataclass
class _Proposals:
    """What all ranks propose, sorted by id, and the best key that any rank kept back."""

    values: Floats
    ids: Ids
    points: Floats
    kept_back: tuple[float, int]

    def pick(self, k: int, found: Coreset, enough: float) -> npt.NDArray[np.intp]:
        """Greedy picks that no point kept back can be ahead of; at most k. Updates `values`."""
        if not len(self.values):
            return np.empty(0, dtype=np.intp)
        away = self.points - self.points.mean(axis=0)
        norms = (away * away).sum(axis=1)
        error = slack(self.points.shape[1]) * (norms[:, None] + norms[None, :])
        least = (
            norms[:, None]
            + norms[None, :]
            - 2 * ((torch.from_numpy(away) @ torch.from_numpy(away).T).numpy())
            - 2 * error
        )
        picks: list[int] = []
        value, held = self.kept_back
        while len(picks) < k:
            p = int(np.argmax(self.values))  # the first, so the lowest id, on ties
            best = self.values[p]
            if best <= enough or (best, -int(self.ids[p])) <= (np.float32(value), -held):
                break
            picks.append(p)
            found.ids.append(int(self.ids[p]))
            found.squared.append(float(best))
            near = np.flatnonzero(least[p] < self.values)
            self.values[near] = np.minimum(
                self.values[near], squared(self.points[near], self.points[p])
            )
        return np.asarray(picks, dtype=np.intp)


def _exchange(shard: _Shard, batch: int, group: Group) -> _Proposals:
    rows, kept_back = shard.propose(batch)
    bounds = torch.tensor([[kept_back[0], float(kept_back[1])]], dtype=torch.float64)
    values = torch.cat(group.all_gather(shard.exact[rows])).numpy()
    ids = torch.cat(group.all_gather(shard.ids[rows])).numpy()
    points = torch.cat(group.all_gather(shard.points[rows])).numpy()
    others = [(float(b[0, 0]), int(b[0, 1])) for b in group.all_gather(bounds)]
    order = np.argsort(ids)
    highest = max(others, key=lambda key: (key[0], -key[1]))
    return _Proposals(values[order].copy(), ids[order], points[order], highest)
