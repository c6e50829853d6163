"""Filters must never show: neighbours are those of a plain search, bit for bit."""

from __future__ import annotations

import pytest
import torch

from ops.search import axes_search
from ops.search.axes_search import AxesSearch
from ops.search.distance import squared


def plain(x, vectors):
    """Every pair, one query at a time."""
    distances = torch.stack([squared(query, vectors) for query in x])
    values = distances.amin(dim=1)
    return values, (distances == values.unsqueeze(1)).int().argmax(dim=1)


def decaying(n, d, generator):
    """Vectors whose variance falls along their axes, as features' does."""
    scale = 1 / torch.arange(1, d + 1) ** 0.5
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return (torch.randn(n, d, generator=generator) * scale) @ turn


@pytest.mark.parametrize("axes", [4, 15, 255])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_neighbours_are_exact_with_and_precise(axes, shift):
    generator = torch.Generator().manual_seed(axes)
    vectors = decaying(400, 48, generator) + shift
    x = decaying(150, 48, generator) + shift
    bank = AxesSearch(vectors, axes)
    assert bank._axes == (0 if axes == 255 else axes)
    nearest = bank.nearest(x)
    values, rows = plain(x, vectors)
    assert torch.equal(nearest.value, values)
    assert torch.equal(nearest.row, rows)


def test_ties_go_to_the_lowest_row_and_members_are_at_distance_zero():
    generator = torch.Generator().manual_seed(0)
    vectors = decaying(60, 48, generator).repeat(5, 1)
    nearest = AxesSearch(vectors, 8).nearest(vectors)
    assert nearest.value.eq(0).all()
    assert torch.equal(nearest.row, torch.arange(60).repeat(5))


def test_a_grid_full_of_ties_is_exact():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(0, 3, (500, 24), generator=generator).float()
    x = torch.randint(0, 3, (200, 24), generator=generator).float()
    nearest = AxesSearch(vectors, 6).nearest(x)
    values, rows = plain(x, vectors)
    assert torch.equal(nearest.value, values)
    assert torch.equal(nearest.row, rows)


def test_one_query_alone_gets_the_same_bits():
    generator = torch.Generator().manual_seed(1)
    bank = AxesSearch(decaying(400, 48, generator), 8)
    x = decaying(130, 48, generator)
    together = bank.nearest(x)
    alone = [bank.nearest(query[None]) for query in x]
    assert torch.equal(together.value, torch.cat([single.value for single in alone]))


def test_queries_that_are_not_finite_get_no_finite_distance():
    bank = AxesSearch(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    x = torch.zeros(3, 8)
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    nearest = bank.nearest(x)
    assert torch.isfinite(nearest.value).tolist() == [False, False, True]
    assert nearest.row.tolist()[2] < 50


@pytest.mark.parametrize("axes", [8, 127])
@pytest.mark.parametrize("case", ["decaying", "grid", "equal"])
def test_the_nearest_to_a_row_are_those_of_a_plain_search(axes, case):
    generator = torch.Generator().manual_seed(3)
    vectors = {
        "decaying": decaying(300, 48, generator),
        "grid": torch.randint(0, 3, (300, 48), generator=generator).float(),
        "equal": torch.ones(40, 48),
    }[case]
    bank = AxesSearch(vectors, axes)
    for row in (0, 17, len(vectors) - 1):
        expected = torch.sort(squared(vectors, vectors[row]), stable=True).indices
        assert bank.neighbours(torch.tensor([row]), 9)[0].tolist() == expected[:9].tolist()
    assert bank.neighbours(torch.tensor([2, 0]), len(vectors)).shape == (2, len(vectors))


def test_a_bank_of_one_vector_has_one_nearest():
    bank = AxesSearch(torch.ones(1, 5))
    nearest = bank.nearest(torch.zeros(3, 5))
    assert nearest.value.tolist() == [5, 5, 5]
    assert nearest.row.tolist() == [0, 0, 0]
    assert bank.neighbours(torch.tensor([0]), 1).tolist() == [[0]]


@pytest.mark.parametrize("dim", [48, 300, 512])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_queries_far_from_all_vectors_are_exact_too(dim, in_bytes, monkeypatch):
    """All their distances are alike, so that principal axes rule out next to nothing."""
    generator = torch.Generator().manual_seed(4)
    vectors = decaying(300, dim, generator)
    far = torch.randn(40, dim, generator=generator) * 20
    x = torch.cat([vectors[:40] + 1e-3, far])
    bank = AxesSearch(vectors, 12, in_bytes)
    monkeypatch.setattr(axes_search, "_CROWD", 16)
    searched = []
    plain_search = bank._precise.nearest
    bank._precise.nearest = lambda queries: searched.append(len(queries)) or plain_search(queries)
    nearest = bank.nearest(x)
    values, rows = plain(x, vectors)
    assert torch.equal(nearest.value, values)
    assert torch.equal(nearest.row, rows)
    assert 30 <= sum(searched) <= 60


@pytest.mark.parametrize("fast_bytes", [False, True])
def test_neighbours_are_the_same_on_processors_with_and_without_fast_bytes(monkeypatch, fast_bytes):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: fast_bytes)
    generator = torch.Generator().manual_seed(6)
    vectors, x = decaying(400, 300, generator), decaying(60, 300, generator) * 2
    nearest = AxesSearch(vectors, 40).nearest(x)
    values, rows = plain(x, vectors)
    assert torch.equal(nearest.value, values)
    assert torch.equal(nearest.row, rows)
