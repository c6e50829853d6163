"""The exact greedy coreset of points that are spread over the ranks of a group, picked in batches.

Farthest-first traversal (Gonzalez 1985): start with any point and repeatedly add the point that is
farthest from all centres so far. The covering radius is at most twice the optimum.

One round of messages per centre would be slow. Instead, each rank proposes its farthest points,
with an upper bound on the distance of all its other points. Every rank then makes the same picks
among the proposals, until a point that was not proposed could be farther.

Distances are evaluated lazily (`lazy_distances`). `distance.squared` gives the same bits everywhere
and ties go to the lowest id, so the picks are those of the sequential greedy for any number of
ranks, any batch size and any device.
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

from ops.distributed import Group
from ops.errors import UserError
from ops.search.distance import LARGEST, slack, squared
from ops.search.lazy_distances import LazyDistances, chunks
from ops.search.quantised import Quantiser

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass
class Coreset:
    """The picks of the greedy: fewer than requested if all other points are duplicates."""

    ids: list[int] = field(default_factory=list)
    """Ids of the picks, in order."""
    squared: list[float] = field(default_factory=list)
    """Squared distance of each pick to the picks before it; infinite for the first."""
    radius: float = 0.0
    """The exact covering radius: the largest distance of any point to its nearest pick."""
    rounds: int = 0
    """How many rounds of proposals the ranks exchanged."""


def greedy(
    points: Tensor,
    ids: Tensor,
    k: int,
    group: Group,
    batch: int = 0,
    on_round: Callable[[Coreset], None] | None = None,
    resume_from: Coreset | None = None,
    stop_below: float = 0.0,
) -> Coreset:
    """Pick k of all ranks' points. Collective; every rank gets the same result.

    Args:
        points: this rank's points (n, d), float32, finite and shorter than 1e18; n may be 0.
            Distances are computed on their device, picks among the proposals on the CPU.
        ids: their ids (n,), int64, ascending, unique over all ranks; on any device.
        k: how many to pick.
        batch: proposals per rank and round; 0 means 512 over all ranks, at least 64 each.
        on_round: called after each round with the picks so far.
        resume_from: picks of an earlier attempt to continue with, the same on every rank; ignored
            if no rank has one of these points.
        stop_below: stop when no point is farther than this squared distance from the picks.

    Raises UserError on every rank if a point is not finite or too long.

    """
    valid = [(chunk.square().sum(dim=1) < LARGEST**2).all() for chunk in chunks(points)]
    invalid = int(bool(valid) and not bool(torch.stack(valid).all()))
    total, invalid = group.all_reduce(torch.tensor([len(ids), invalid])).tolist()
    if invalid:  # every rank knows, so none waits for the others
        raise UserError(
            f"points must be finite and shorter than {LARGEST:.0e}; drop other rows first"
        )
    batch = batch or max(64, 512 // group.size)
    ids = ids.to(points.device)
    if not total or k < 1:
        return Coreset()
    quantiser = _quantiser(points, group)
    shard = LazyDistances(points.contiguous(), ids, min(k, total), quantiser)
    coreset, first = _first_picks(points, ids, k, group, resume_from)
    shard.begin(first)
    while len(coreset.ids) < k:
        proposals = _exchange_proposals(shard, batch, group)
        coreset.rounds += 1
        picks = proposals.pick(k - len(coreset.ids), coreset, stop_below)
        if not len(picks):
            break  # every other point is a duplicate of a pick, or within `stop_below` of one
        shard.add(torch.from_numpy(proposals.points[picks]))
        if on_round:
            on_round(coreset)
    coreset.radius = math.sqrt(float(_exchange_proposals(shard, 1, group).values.max()))
    log.info(
        "greedy coreset: %d picks in %d rounds, covering radius %.6g",
        len(coreset.ids),
        coreset.rounds,
        coreset.radius,
    )
    return coreset


def _first_picks(
    points: Tensor, ids: Tensor, k: int, group: Group, resume_from: Coreset | None
) -> tuple[Coreset, Tensor]:
    """Collective: the picks to start with, and their points (m, d).

    These are the picks of an earlier attempt, or else the point with the lowest id.
    """
    if resume_from:
        first = _points_of(resume_from.ids, points, ids, group)
        if first is not None:
            picks = Coreset(resume_from.ids[:k], resume_from.squared[:k], rounds=resume_from.rounds)
            return picks, first[:k]
    lowest = ids.min().cpu() if len(ids) else torch.tensor(2**62)
    number = int(group.all_reduce(lowest.reshape(1), "min"))
    return Coreset([number], [math.inf]), torch.cat(group.all_gather(points[ids == number].cpu()))


def _quantiser(points: Tensor, group: Group) -> Quantiser:
    """Collective: a quantiser for the points of all ranks."""
    sample = points[:: max(1, len(points) // 8192)]
    own_sums = sample.double().sum(dim=0).cpu()
    sums = torch.cat([own_sums, torch.tensor([float(len(sample))]).double()])
    sums = group.all_reduce(sums)
    centre = (sums[:-1] / sums[-1]).float().to(points.device)
    extent = torch.zeros(2, dtype=torch.float64, device=points.device)
    for chunk in chunks(points):
        away = chunk - centre
        own = torch.stack([away.abs().max(), away.square_().sum(dim=1).max().sqrt()])
        extent = torch.maximum(extent, own.double())
    largest, longest = group.all_reduce(extent.cpu(), "max").tolist()
    return Quantiser(centre, largest, longest)


def _points_of(wanted: list[int], points: Tensor, ids: Tensor, group: Group) -> Tensor | None:
    """Collective: the points (m, d) with these ids, in their order; None if no rank has one."""
    own = torch.isin(ids, torch.tensor(wanted, device=ids.device))
    all_ids = torch.cat(group.all_gather(ids[own].cpu()))
    all_points = torch.cat(group.all_gather(points[own].cpu()))
    if len(all_ids) < len(wanted):
        return None
    order = torch.argsort(all_ids)
    return all_points[order[torch.searchsorted(all_ids[order], torch.tensor(wanted))]]


@dataclass
class _Proposals:
    """The points that all ranks propose, sorted by id, and a bound on all points not proposed."""

    values: Floats
    """Squared distances (n,) to the nearest centre."""
    ids: Ids
    points: Floats
    bound: tuple[float, int]
    """In the order of picks, no point that is not proposed comes before this distance and id."""

    def pick(self, k: int, coreset: Coreset, stop_below: float) -> npt.NDArray[np.intp]:
        """Append at most k picks to the coreset, while no other point could come first.

        Returns their rows among the proposals. Updates `values` by the new centres.
        """
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
        bound_value, bound_id = self.bound
        while len(picks) < k:
            p = int(np.argmax(self.values))  # the first, so the lowest id, on ties
            best = self.values[p]
            key, bound_key = (best, -int(self.ids[p])), (np.float32(bound_value), -bound_id)
            if best <= stop_below or key <= bound_key:
                break
            picks.append(p)
            coreset.ids.append(int(self.ids[p]))
            coreset.squared.append(float(best))
            near = np.flatnonzero(least[p] < self.values)
            self.values[near] = np.minimum(
                self.values[near], squared(self.points[near], self.points[p])
            )
        return np.asarray(picks, dtype=np.intp)


def _exchange_proposals(shard: LazyDistances, batch: int, group: Group) -> _Proposals:
    """Collective: the proposals of all ranks, the same on every rank."""
    rows, bound = shard.propose(batch)
    own_bound = torch.tensor([[bound[0], float(bound[1])]], dtype=torch.float64)
    values = torch.cat(group.all_gather(shard.exact[rows].cpu())).numpy()
    ids = torch.cat(group.all_gather(shard.ids[rows].cpu())).numpy()
    points = torch.cat(group.all_gather(shard.points[rows].cpu())).numpy()
    bounds = [(float(b[0, 0]), int(b[0, 1])) for b in group.all_gather(own_bound)]
    order = np.argsort(ids)
    highest = max(bounds, key=lambda key: (key[0], -key[1]))
    return _Proposals(values[order].copy(), ids[order], points[order], highest)
