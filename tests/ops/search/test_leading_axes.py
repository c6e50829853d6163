"""Products of float32 never exclude a vector at the distance that is allowed."""

from __future__ import annotations

import pytest

from ops.search.distance import squared
from ops.search.leading_axes import LeadingAxes
from tests.ops.search.test_device_search import CASES


@pytest.mark.parametrize("case", [name for name in CASES if name != "overflowing"])
def test_a_vector_at_some_distance_has_the_least_product_at_least(case):
    vectors, x = CASES[case]
    bounds = LeadingAxes(vectors)
    rows, columns = bounds.codes(x), bounds.columns(bounds.codes(vectors))
    products = bounds.products(rows.rows, columns, bounds.empty_products(len(x), len(vectors)))
    for j, vector in enumerate(vectors[:60]):
        least = bounds.least_product(squared(x, vector), rows, 0.0)
        assert (products[:, j] >= least).all()
    padding = bounds.padding(3)
    lower = bounds.products(rows.rows, padding, bounds.empty_products(len(x), 3))
    assert lower.max() < products.min()
