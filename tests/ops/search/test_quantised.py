"""Bounds that always hold, products that are exact, whatever the processor multiplies."""

from __future__ import annotations

import pytest
import torch

from ops.search import quantised
from ops.search.distance import squared
from ops.search.quantised import COLUMNS, Products, Quantiser


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "gaussian": (normal(200, 40), normal(90, 40, seed=1)),
    "offset": (normal(200, 40) + 1000, normal(90, 40, seed=1) + 1000),
    "tiny": (normal(200, 40) * 1e-17, normal(90, 40, seed=1) * 1e-17),
    "vanishing": (normal(200, 40) * 1e-22, normal(90, 40, seed=1) * 1e-22),
    "huge": (normal(200, 40) * 1e16, normal(90, 40, seed=1) * 1e16),
    "one component": (normal(200, 1), normal(90, 1, seed=1)),
    "one long axis": (normal(200, 1024) * torch.eye(1024)[3] * 50, normal(90, 1024, seed=1)),
    "far beyond what it was made for": (normal(200, 40), normal(90, 40, seed=1) * 100),
    "equal": (torch.ones(200, 7), torch.ones(90, 7)),
}


@pytest.fixture(params=[torch.int8, torch.float32], autouse=True)
def unit(request, monkeypatch):
    """Bytes, and what stands in where bytes are slow."""
    monkeypatch.setattr(quantised, "_code_dtype", lambda _: request.param)
    return request.param


def pairs(quantiser, x, c):
    """Products and codes of x against c."""
    rows, others = quantiser.codes(x), quantiser.codes(c)
    return rows, others, quantiser.products(rows.rows, quantiser.columns(others))


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_integers(case, unit):
    x, c = CASES[case]
    quantiser = Quantiser.of(x)
    rows, others, products = pairs(quantiser, x, c)
    d = quantiser.dim
    left, right = rows.rows[:, :d].long(), others.rows[:, :d].long()
    half = -((-right.square().sum(1)) // 2)
    assert products.dtype == (torch.int32 if unit == torch.int8 else torch.float32)
    assert torch.equal(products.long(), left @ right.T - half)
    assert torch.equal(rows.square.long(), left.square().sum(1))


@pytest.mark.parametrize("case", CASES)
def test_a_distance_never_exceeds_its_bound(case):
    x, c = CASES[case]
    quantiser = Quantiser.of(x)
    rows, others, products = pairs(quantiser, x, c)
    for j, vector in enumerate(c):
        bound = quantiser.upper_bound(products[:, j], rows, float(others.residual[j]))
        assert (squared(x, vector) <= bound).all()


@pytest.mark.parametrize("case", CASES)
def test_a_vector_at_some_distance_has_the_least_product_at_least(case):
    x, c = CASES[case]
    quantiser = Quantiser.of(x)
    rows, others, products = pairs(quantiser, x, c)
    for j, vector in enumerate(c):
        least = quantiser.least_product(squared(x, vector), rows, float(others.residual[j]))
        assert (products[:, j] >= least).all()


def test_bounds_are_close_to_the_distances():
    x, c = normal(200, 128), normal(90, 128, seed=1)
    quantiser = Quantiser.of(x)
    rows, others, products = pairs(quantiser, x, c)
    bound = quantiser.upper_bound(products[:, 0], rows, float(others.residual[0]))
    ratio = bound / squared(x, c[0])
    assert 1 < ratio.median() < 1.15


def test_an_infinite_distance_allows_every_product():
    x, c = CASES["gaussian"]
    quantiser = Quantiser.of(x)
    rows, _, products = pairs(quantiser, x, c)
    least = quantiser.least_product(torch.full((len(x),), torch.inf), rows, 0.0)
    assert (products >= least.unsqueeze(1)).all()


def test_padding_is_farther_than_any_vector():
    x, c = CASES["gaussian"]
    quantiser = Quantiser.of(x)
    rows, _, products = pairs(quantiser, x, c)
    assert products.min() > quantiser.products(rows.rows, quantiser.padding(8)).max()


def test_the_search_by_groups_finds_every_large_product():
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(-50, 50, (30, 2 * COLUMNS), dtype=torch.int32, generator=generator)
    products = Products(plain)
    rows = torch.arange(30)
    assert torch.equal(plain[rows, products.largest()], plain.amax(dim=1))
    least = torch.randint(30, 50, (30,), dtype=torch.int32, generator=generator)
    row, column = products.at_least(least)
    hits = torch.zeros_like(plain, dtype=torch.bool)
    hits[row, column] = True
    assert torch.equal(hits, plain >= least.unsqueeze(1))
    assert len(row) == int(hits.sum())
