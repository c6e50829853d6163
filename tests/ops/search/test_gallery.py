"""Positions of images, and the nearest of them, against every distance there is."""

import pytest
import torch
import torch.nn.functional as F

from ops.search import gallery
from ops.search.distance import squared
from ops.search.gallery import Positions


@pytest.mark.parametrize("count", [1, 3])
def test_block_sizes_do_not_change_a_bit(count, monkeypatch):
    """Clusters far from the origin, where products in float32 lose all that tells points apart."""
    generator = torch.Generator().manual_seed(1)
    level = 300 + 0.01 * torch.randn(6, 5, 4, 24, generator=generator)
    level[3] = level[2]  # ties
    x = torch.cat([level[1].flatten(0, 1), 300 + 0.01 * torch.randn(9, 24, generator=generator)])
    images = torch.tensor([4, 2, 3, 1])
    positions = Positions([level])
    table = squared(x[:, None], level[images].flatten(0, 2)[None])
    expected = table.sort(dim=1).values[:, :count]
    for queries, block in [(512, 2048), (1, 2048), (7, 1), (5, 33), (512, 79)]:
        monkeypatch.setattr(gallery, "_QUERIES", queries)
        monkeypatch.setattr(gallery, "_POSITIONS", block)
        monkeypatch.setattr(gallery, "_MEASURED", 50)
        assert torch.equal(positions.nearest(x, images, count), expected)


def test_only_few_pairs_get_an_exact_distance(monkeypatch):
    measured = []

    def counted(x, y):
        measured.append(len(x))
        return squared(x, y)

    monkeypatch.setattr(gallery, "squared", counted)
    monkeypatch.setattr(gallery, "_POSITIONS", 50)
    level = torch.rand(6, 7, 7, 32, generator=torch.Generator().manual_seed(0))
    positions = Positions([level])
    positions.nearest(positions.of(5), torch.arange(5))
    assert 49 <= sum(measured) < 4 * 49  # of 245 for each position; at least the minimum of a block


def test_coarser_levels_are_repeated_as_nearest_interpolation_does():
    fine, coarse = torch.rand(2, 7, 5, 3), torch.rand(2, 3, 2, 4)
    both = Positions([coarse, fine])
    repeated = F.interpolate(coarse.permute(0, 3, 1, 2), size=(7, 5), mode="nearest")
    expected = torch.cat([repeated.permute(0, 2, 3, 1), fine], dim=3)
    assert both.grid == (7, 5)
    assert torch.equal(both.of(1), expected[1].reshape(35, 7))


def test_distances_of_missing_or_non_finite_vectors_are_infinite():
    positions = Positions([torch.zeros(3, 1, 2, 4)])
    x = torch.tensor([[torch.nan] * 4, [1.0] * 4, [torch.inf] * 4])
    assert positions.nearest(x, torch.tensor([0, 2]), 5).tolist() == [
        [torch.inf] * 5,
        [4.0] * 4 + [torch.inf],
        [torch.inf] * 5,
    ]


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("gathered", [2**26, 100])
def test_the_search_for_a_gpu_finds_the_same_bits(count, gathered, monkeypatch):
    monkeypatch.setattr(gallery, "_GATHERED", gathered)
    generator = torch.Generator().manual_seed(4)
    fine, coarse = (torch.randn(5, 6, 4, 10, generator=generator) for _ in range(2))
    positions = Positions([fine, coarse[:, ::2, ::2].half()])
    x = torch.cat([positions.of(3), torch.randn(7, 20, generator=generator)])
    x[2, 1] = torch.nan
    images = torch.tensor([4, 0])
    expected = positions.nearest(x, images, count)
    assert torch.equal(positions._nearest_at_once(x, images, count), expected)
