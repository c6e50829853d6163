"""The exact greedy against a sequential loop: equal ids, distances and radius, bit for bit."""

import math

import pytest
import torch

from ops.distributed import Alone
from ops.errors import UserError
from ops.search import quantised
from ops.search.coreset import Coreset, greedy
from ops.search.distance import squared
from tests.ops.threads import together


def sequential(points: torch.Tensor, ids: torch.Tensor, k: int) -> Coreset:
    """Farthest-first, one centre at a time: lowest id first, and on ties."""
    order = ids.argsort()
    points, ids = points[order], ids[order]
    coreset = Coreset([int(ids[0])], [math.inf])
    distance = squared(points, points[0])
    while len(coreset.ids) < k and distance.max() > 0:
        farthest = int((distance == distance.max()).nonzero()[0])
        coreset.ids.append(int(ids[farthest]))
        coreset.squared.append(float(distance[farthest]))
        distance = torch.minimum(distance, squared(points, points[farthest]))
    coreset.radius = math.sqrt(float(distance.max()))
    return coreset


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(n: int, d: int, high: int) -> torch.Tensor:
    return torch.randint(0, high, (n, d), generator=random()).float()


GRID = torch.cartesian_prod(torch.arange(11.0), torch.arange(11.0))
POINTS = {
    "gaussian": torch.randn(150, 16, generator=random()),
    "padded dimension": torch.randn(120, 100, generator=random()),
    "one dimension": torch.randn(120, 1, generator=random()),
    "grid with ties": integers(150, 3, 4),
    "square grid": GRID,
    "every point ten times": torch.randn(15, 8, generator=random()).repeat(10, 1),
    "all equal": torch.full((100, 4), 3.0),
    "offset": torch.randn(120, 16, generator=random()) + 100,
    "tiny": torch.randn(120, 16, generator=random()) * 1e-6,
    "clusters": torch.randn(120, 8, generator=random()) * 1e-3 + integers(120, 8, 3) * 10,
}


def sharded(points, ids, k: int, shards: int, batch: int = 0, **more):
    """The greedy over shards drawn at random; with more than three, the last but one is empty."""
    shard_of = torch.randint(0, shards, (len(ids),), generator=random(shards))
    if shards > 3:
        shard_of[shard_of == shards - 2] = 0

    def program(group):
        mine = shard_of == group.rank
        return greedy(points[mine], ids[mine], k, group, batch, **more)

    results = together(shards, program)
    assert all(result == results[0] for result in results)
    return results[0]


def assert_equal(coreset: Coreset, expected: Coreset) -> None:
    assert coreset.ids == expected.ids
    assert coreset.squared == expected.squared
    assert coreset.radius == expected.radius


def numbered(points: torch.Tensor) -> torch.Tensor:
    """Ids with gaps, ascending."""
    return torch.arange(len(points)) * 3 + 7


@pytest.mark.parametrize("case", POINTS)
def test_it_picks_what_the_sequential_greedy_picks(case):
    points, ids = POINTS[case], numbered(POINTS[case])
    expected = sequential(points, ids, 14)
    for batch in (0, 1, 7, 64):
        assert_equal(greedy(points, ids, 14, Alone(), batch), expected)


@pytest.mark.parametrize("case", POINTS)
def test_it_picks_the_same_over_any_shards(case):
    points, ids = POINTS[case], numbered(POINTS[case])
    assert_equal(sharded(points, ids, 8, shards=5, batch=2), sequential(points, ids, 8))


@pytest.mark.parametrize(("shards", "batch"), [(2, 7), (3, 0)])
def test_it_picks_the_same_over_few_shards(shards, batch):
    points, ids = POINTS["grid with ties"], numbered(POINTS["grid with ties"])
    assert_equal(sharded(points, ids, 8, shards, batch), sequential(points, ids, 8))


@pytest.mark.parametrize("shards", [1, 3])
def test_it_can_pick_every_point(shards):
    points = POINTS["gaussian"][:40]
    coreset = sharded(points, numbered(points), 40, shards)
    assert_equal(coreset, sequential(points, numbered(points), 40))
    assert sorted(coreset.ids) == numbered(points).tolist()
    assert coreset.radius == 0


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_it_stops_when_only_duplicates_remain(shards):
    points = POINTS["every point ten times"]
    coreset = sharded(points, numbered(points), 200, shards)
    assert len(coreset.ids) == 15
    assert coreset.radius == 0
    assert len(sharded(POINTS["all equal"], numbered(POINTS["all equal"]), 9, shards).ids) == 1


def test_more_shards_than_points():
    points = POINTS["gaussian"][:3]
    assert_equal(sharded(points, numbered(points), 2, 5), sequential(points, numbered(points), 2))


@pytest.mark.parametrize("shards", [1, 3])
def test_of_no_points_it_picks_none(shards):
    coreset = sharded(torch.empty(0, 4), torch.empty(0, dtype=torch.int64), 5, shards)
    assert (coreset.ids, coreset.radius) == ([], 0)
    assert sharded(POINTS["gaussian"], numbered(POINTS["gaussian"]), 0, shards).ids == []


@pytest.mark.parametrize("case", ["gaussian", "clusters", "square grid"])
def test_the_radius_covers_all_points_and_shrinks_with_every_pick(case):
    points, ids = POINTS[case], torch.arange(len(POINTS[case]))
    coreset = greedy(points, ids, 50, Alone())
    cover = torch.cdist(points.double(), points[coreset.ids].double()).amin(dim=1).max()
    assert coreset.radius == pytest.approx(float(cover), rel=1e-5)
    assert coreset.squared == sorted(coreset.squared, reverse=True)
    assert coreset.radius**2 <= coreset.squared[-1] * (1 + 1e-6)


def test_fewer_picks_are_the_beginning_of_more():
    points, ids = POINTS["grid with ties"], numbered(POINTS["grid with ties"])
    more, fewer = (greedy(points, ids, k, Alone()) for k in (60, 20))
    assert more.ids[:20] == fewer.ids
    assert more.radius <= fewer.radius


def test_the_bank_is_at_most_twice_as_coarse_as_the_best():
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    assert greedy(points, torch.arange(6), 2, Alone()).radius <= 2 * 1.0  # best: 1 and 11


def test_rounds_are_far_fewer_than_picks_and_are_reported():
    counts = []
    points = POINTS["gaussian"]
    on_round = lambda coreset: counts.append(len(coreset.ids))  # noqa: E731
    coreset = greedy(points, numbered(points), 100, Alone(), 64, on_round)
    assert coreset.rounds == len(counts) < 30
    assert counts == sorted(counts)
    assert counts[-1] == 100


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e18, -2e18])
def test_values_that_are_not_finite_or_too_large_are_refused(value):
    points = POINTS["gaussian"].clone()
    points[17, 3] = value
    with pytest.raises(UserError, match="finite and shorter"):
        greedy(points, numbered(points), 5, Alone())


def test_the_largest_values_allowed_still_give_finite_distances():
    points = POINTS["gaussian"] * 1e17
    assert_equal(
        greedy(points, numbered(points), 20, Alone()), sequential(points, numbered(points), 20)
    )
    assert math.isfinite(greedy(points, numbered(points), 20, Alone()).radius)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("case", ["gaussian", "grid with ties", "every point ten times"])
def test_an_interrupted_attempt_is_resumed(case, shards):
    """Also by another number of workers: all that counts is what had been picked."""
    points, ids = POINTS[case], numbered(POINTS[case])
    uninterrupted = greedy(points, ids, 40, Alone())
    for picked in (1, 7, len(uninterrupted.ids)):
        earlier = Coreset(uninterrupted.ids[:picked], uninterrupted.squared[:picked], rounds=5)
        coreset = sharded(points, ids, 40, shards, resume_from=earlier)
        assert_equal(coreset, uninterrupted)
        assert coreset.rounds >= 5


@pytest.mark.parametrize("shards", [1, 3])
def test_it_stops_when_all_points_are_near_enough(shards):
    points, ids = POINTS["gaussian"], numbered(POINTS["gaussian"])
    uninterrupted = greedy(points, ids, 60, Alone())
    coreset = sharded(points, ids, 60, shards, stop_below=uninterrupted.squared[20])
    assert coreset.ids == uninterrupted.ids[:20]
    assert coreset.radius == pytest.approx(math.sqrt(uninterrupted.squared[20]))


def test_picks_of_points_that_no_rank_has_are_not_resumed():
    points, ids = POINTS["gaussian"], numbered(POINTS["gaussian"])
    earlier = Coreset([int(ids[0]), -5], [math.inf, 3.0])
    assert_equal(
        greedy(points, ids, 20, Alone(), resume_from=earlier), greedy(points, ids, 20, Alone())
    )


@pytest.mark.parametrize("case", POINTS)
def test_it_picks_the_same_with_int8_and_float32_codes(monkeypatch, case):
    points, ids = POINTS[case], numbered(POINTS[case])
    expected = sequential(points, ids, 60)
    for unit in (torch.int8, torch.float32):
        monkeypatch.setattr(quantised, "_code_dtype", lambda _, unit=unit: unit)
        assert_equal(greedy(points, ids, 60, Alone()), expected)
