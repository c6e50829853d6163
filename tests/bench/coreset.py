"""The exact greedy coreset against the loops of other libraries, rewritten here in short."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import torch
from torch import Tensor

from ops.distributed import Alone
from ops.search.coreset import Coreset, greedy
from tests.bench import features
from tests.bench.measure import Row, ratio, timed

SIZES = [(100_000, 1_000), (100_000, 10_000), (400_000, 4_000)]
TARGETS = {4_000: (15, 150, 60), 10_000: (12, 25, 50)}


@numba.njit(fastmath=True)
def one_pass(points, k):  # pragma: no cover - compiled
    """The fastest sequential loop: one pass over the points per pick, without allocations."""
    n, d = points.shape
    nearest = np.full(n, np.float32(np.inf))
    farthest = 0
    for _ in range(k):
        centre = points[farthest].copy()
        best, farthest = np.float32(-1), 0
        for i in range(n):
            value = np.float32(0)
            for j in range(d):
                away = points[i, j] - centre[j]
                value += away * away
            value = min(value, nearest[i])
            nearest[i] = value
            if value > best:
                best, farthest = value, i
    return farthest


@numba.njit
def reference(points, k):  # pragma: no cover - compiled
    """The sequential greedy with pairwise sums, which ours must equal to the last bit."""
    n, d = points.shape
    nearest = np.full(n, np.float32(np.inf))
    ids, squared = np.zeros(k, np.int64), np.full(k, np.float32(np.inf))
    terms = np.empty(d, np.float32)
    for pick in range(k):
        centre = points[ids[pick]].copy()
        best, farthest = np.float32(-1), 0
        for i in range(n):
            for j in range(d):
                away = points[i, j] - centre[j]
                terms[j] = away * away
            half = d // 2
            while half > 0:
                for j in range(half):
                    terms[j] += terms[j + half]
                half //= 2
            nearest[i] = min(nearest[i], terms[0])
            if nearest[i] > best:
                best, farthest = nearest[i], i
        if pick + 1 < k:
            ids[pick + 1], squared[pick + 1] = farthest, best
    return ids, squared, best


def anomalib_loop(points: Tensor, k: int) -> None:
    """anomalib's KCenterGreedy: norms of all differences, running minimum, argmax."""
    nearest, index = None, 0
    for _ in range(k):
        distance = torch.linalg.norm(points - points[index : index + 1], ord=2, dim=1)
        nearest = distance if nearest is None else torch.minimum(nearest, distance)
        index = int(nearest.argmax())


def amazon_loop(points: Tensor, k: int) -> None:
    """The authors' ApproximateGreedyCoresetSampler: products of matrices, ten random starts."""
    starts = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:10]

    def distances(others: Tensor) -> Tensor:
        a = torch.einsum("ij,ij->i", points, points).unsqueeze(1)
        b = torch.einsum("ij,ij->i", others, others).unsqueeze(0)
        return (a - 2 * points @ others.T + b).clamp(0).sqrt()

    nearest = distances(points[starts]).mean(dim=-1, keepdim=True)
    for _ in range(k):
        index = int(nearest.argmax())
        column = distances(points[index : index + 1])
        nearest = torch.cat([nearest, column], dim=-1).min(dim=1, keepdim=True).values


def rows() -> Iterator[Row]:
    """Each size against each loop. Loops are timed on their first picks, as all cost the same."""
    small = features.projected(1000).numpy()
    one_pass(small, 2)
    reference(small, 2)
    for n, k in SIZES:
        points, ids = features.projected(max(n for n, _ in SIZES))[:n].contiguous(), torch.arange(n)
        results: list[Coreset] = []
        ours = timed(lambda: results.append(greedy(points, ids, k, Alone())), 3)  # noqa: B023
        name = f"exact greedy, N = {n:,}, d = 128, k = {k:,}"
        yield Row(name, f"{results[-1].rounds} rounds", ours)
        for target, (what, work, share) in zip(
            TARGETS.get(k, ("", "", "")),
            [
                ("one-pass sequential loop (numba)", lambda m: one_pass(points.numpy(), m), 20),  # noqa: B023
                ("plain torch loop of anomalib", lambda m: anomalib_loop(points, m), 100),  # noqa: B023
                ("loop of the authors' sampler", lambda m: amazon_loop(points, m), 100),  # noqa: B023
            ],
            strict=True,
        ):
            m = max(10, k // share)
            slow = timed(lambda: work(m)).times(k / m)  # noqa: B023
            note = f"its first {m} picks, times {k / m:g}"
            least = f"{target} x" if target else ""
            yield Row(f"  against the {what}", ratio(slow, ours), slow, least, note)
        expected, squared, last = reference(points.numpy(), k)
        same = np.array_equal(results[-1].ids, expected)
        same &= np.array_equal(np.float32(results[-1].squared), squared)
        same &= results[-1].radius == float(np.float64(last) ** 0.5)
        yield Row(
            "  picks and squared radii equal to a sequential reference",
            str(bool(same)),
            None,
            "True",
        )
