"""A bank finds the same neighbours by either of its searches."""

from __future__ import annotations

import pytest
import torch

from ops.search.axes_search import AxesSearch
from ops.search.device_search import DeviceSearch
from ops.search.distance import squared
from ops.search.neighbours import Bank


def bank_with(search, vectors) -> Bank:
    """A bank on the CPU that searches as it would on some device."""
    bank = Bank(vectors)
    bank._search = search(vectors)
    return bank


@pytest.mark.parametrize("search", [AxesSearch, DeviceSearch])
@pytest.mark.parametrize("scale", [1, 50])
def test_both_searches_find_the_same_bits(search, scale):
    generator = torch.Generator().manual_seed(2)
    fall = torch.arange(1, 129) ** -0.5
    vectors = torch.randn(600, 128, generator=generator) * fall
    x = torch.randn(200, 128, generator=generator) * fall * scale
    x[3, 5] = torch.nan
    table = squared(x[:, None], vectors[None])
    found = bank_with(search, vectors).nearest(x)
    known = torch.arange(200) != 3
    assert torch.equal(found.value[known], table.amin(dim=1)[known])
    assert torch.equal(found.row[known], table.argmin(dim=1)[known])
    assert (found.value[3], found.row[3]) == (torch.inf, -1)


@pytest.mark.parametrize("search", [AxesSearch, DeviceSearch])
@pytest.mark.parametrize("size", [1, 5, 300])
def test_neighbours_of_rows_are_those_of_a_plain_search(search, size):
    vectors = torch.randint(0, 4, (size, 70), generator=torch.Generator().manual_seed(0)).float()
    bank = bank_with(search, vectors)
    ranked = squared(vectors[:, None], vectors[None]).sort(dim=1, stable=True).indices
    for rows in ([0], [size - 1, 0, 0], list(range(size))):
        chosen = torch.tensor(rows)
        assert torch.equal(bank.neighbours(chosen, 9), ranked[chosen, :9])
    assert torch.equal(bank.neighbours(torch.tensor([0]), 4), ranked[:1, :4])


def test_neighbours_that_are_known_are_not_searched_again(monkeypatch):
    bank = Bank(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    first = bank.neighbours(torch.tensor([4, 7]), 3)
    asked = []
    search = bank._search.neighbours
    monkeypatch.setattr(
        bank._search, "neighbours", lambda r, k: asked.extend(r.tolist()) or search(r, k)
    )
    again = bank.neighbours(torch.tensor([7, 9, 4, 9]), 3)
    assert asked == [9]
    assert torch.equal(again[[2, 0]], first)
