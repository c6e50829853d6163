"""The search for a GPU, on a processor: the same bits as a plain search, by every bound."""

from __future__ import annotations

import pytest
import torch

from ops.search import device_search, half_codes
from ops.search.device_search import DeviceSearch
from ops.search.distance import slack, squared
from ops.search.half_codes import HalfQuantiser, products


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 3, (n, 24), generator=torch.Generator().manual_seed(seed)).float()


def clusters(n: int, seed: int) -> torch.Tensor:
    """Tight clusters far from the mean, which float16 cannot tell apart."""
    centres = normal(5, 32, seed=9) * 100
    return centres.repeat(-(-n // 5), 1)[:n] + 1e-3 * normal(n, 32, seed=seed)


#: Vectors, then queries.
CASES = {
    "gaussian": (normal(300, 40), normal(90, 40, seed=1)),
    "wide": (normal(100, 1030), normal(20, 1030, seed=1)),
    "falling": (normal(300, 64) / torch.arange(1, 65), normal(60, 64, seed=1) / 20),
    "ties": (grid(500, 0), grid(200, 1)),
    "duplicates": (normal(20, 16).repeat(15, 1), normal(20, 16)),
    "equal": (torch.ones(200, 7), torch.ones(90, 7)),
    "equal, beside them": (torch.ones(200, 7), normal(90, 7)),
    "zero": (torch.zeros(40, 5), torch.zeros(3, 5)),
    "members": (normal(300, 40), normal(300, 40)),
    "clusters": (clusters(400, 1), clusters(60, 2)),
    "offset": (normal(200, 40) + 1000, normal(90, 40, seed=1) + 1000),
    "far": (normal(200, 40), normal(60, 40, seed=1) * 1e3),
    "beyond the range of codes": (normal(200, 40), normal(60, 40, seed=1) * 1e8),
    "an outlier": (torch.cat([normal(200, 40), normal(1, 40) * 1e6]), normal(60, 40, seed=1)),
    "huge": (normal(200, 40) * 1e16, normal(60, 40, seed=1) * 1e16),
    "tiny": (normal(200, 40) * 1e-17, normal(60, 40, seed=1) * 1e-17),
    "vanishing": (normal(200, 40) * 1e-22, normal(60, 40, seed=1) * 1e-22),
    "below the normal range": (normal(200, 40) * 1e-41, normal(60, 40, seed=1) * 1e-41),
    "tiny bank, huge queries": (normal(200, 40) * 1e-20, normal(60, 40, seed=1) * 1e17),
    "one component": (normal(200, 1), normal(90, 1, seed=1)),
    "one vector": (normal(1, 8), normal(9, 8, seed=1)),
    "fewer than are asked for": (normal(6, 8), normal(9, 8, seed=1)),
    "overflowing": (normal(30, 8), normal(9, 8, seed=1) * 1e25),
}


def plain(x, vectors, count):
    """Every pair; rows of equal distances in their order."""
    ranked = squared(x[:, None], vectors[None]).sort(dim=1, stable=True)
    shape = len(x), max(0, count - len(vectors))
    values = torch.cat([ranked.values[:, :count], torch.full(shape, torch.inf)], dim=1)
    rows = torch.cat([ranked.indices[:, :count], torch.full(shape, -1)], dim=1)
    return values, rows.where(torch.isfinite(values), -1)


def check(vectors, x, count=1):
    values, rows = plain(x, vectors, count)
    found = DeviceSearch(vectors).few(x, count)
    assert torch.equal(found.value, values)
    assert torch.equal(found.row, rows)


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("case", CASES)
def test_values_and_rows_are_those_of_a_plain_search(case, count):
    vectors, x = CASES[case]
    check(vectors, x, count)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_they_are_so_without_room_and_in_small_pieces(case, count, monkeypatch):
    monkeypatch.setattr(device_search, "_SPARE", 0)
    monkeypatch.setattr(device_search, "_PRODUCTS", 4000)
    monkeypatch.setattr(device_search, "_CROWDED", 1000)
    check(*CASES[case], count)


@pytest.mark.parametrize("case", CASES)
def test_products_may_err_as_much_as_the_bounds_allow(case, monkeypatch):
    """As tensor cores that truncate would, in the worst way."""
    generator = torch.Generator().manual_seed(3)

    def wrong(rows, columns, out):
        products(rows, columns, out)
        error = 2 * slack(columns.shape[1]) * (rows.float().abs() @ columns.float().abs().T)
        return out.add_(error * torch.randint(-1, 2, out.shape, generator=generator))

    monkeypatch.setattr(device_search, "products", wrong)
    for count in (1, 4):
        check(*CASES[case], count)


def test_random_banks_of_all_sizes():
    generator = torch.Generator().manual_seed(5)
    for trial in range(60):
        n, d, m, count = (
            int(torch.randint(1, top, (), generator=generator)) for top in (90, 40, 30, 12)
        )
        spread = 10.0 ** torch.randint(-3, 4, (d,), generator=generator)
        vectors = torch.randn(n, d, generator=generator) * spread
        x = torch.randn(m, d, generator=generator) * spread * 4.0 ** (trial % 5)
        x[: m // 3] = vectors[torch.randint(0, n, (m // 3,), generator=generator)]
        check(vectors, x, count)


def test_the_batch_of_a_query_does_not_matter():
    vectors, x = CASES["falling"]
    search = DeviceSearch(vectors)
    together = search.nearest(x)
    for size in (1, 7, 59):
        parts = [search.nearest(part) for part in torch.split(x, size)]
        assert torch.equal(torch.cat([part.value for part in parts]), together.value)
        assert torch.equal(torch.cat([part.row for part in parts]), together.row)


def test_queries_that_are_not_finite_get_infinity_and_no_row():
    x = torch.zeros(4, 8)
    x[0, 0], x[1, 0], x[2, 3] = torch.nan, torch.inf, -torch.inf
    found = DeviceSearch(normal(50, 8)).few(x, 2)
    assert torch.isfinite(found.value).tolist() == [[False] * 2] * 3 + [[True] * 2]
    assert (found.row[:3] == -1).all()
    assert (found.row[3] >= 0).all()


def test_few_pairs_are_left_for_vectors_like_those_of_the_bank(monkeypatch):
    measured = []

    def counted(x, vectors, query, column, count):
        measured.append(len(query))
        return pairs(x, vectors, query, column, count)

    pairs = device_search.nearest_of_pairs
    monkeypatch.setattr(device_search, "nearest_of_pairs", counted)
    vectors, x = normal(4000, 64) / torch.arange(1, 65) ** 0.5, normal(500, 64, seed=1)
    DeviceSearch(vectors).nearest(x / torch.arange(1, 65) ** 0.5)
    assert len(measured) == 1  # nothing was searched again
    assert 500 <= measured[0] <= 700


@pytest.mark.parametrize("case", CASES)
def test_the_nearest_always_has_the_least_product(case):
    vectors, x = CASES[case]
    quantiser = HalfQuantiser(vectors)
    rows, columns = quantiser.codes(x), quantiser.codes(vectors)
    out = torch.empty(len(x), len(vectors))
    table = products(rows.rows, quantiser.columns(columns), out)
    least = quantiser.least_product(
        rows, table.amax(dim=1), columns.square.amax(), columns.residual.amax()
    )
    values, nearest = plain(x, vectors, 1)
    known = torch.isfinite(values[:, 0])
    own = table.gather(1, nearest.clamp_min(0)).flatten()
    assert (own >= least)[known].all()
    assert not torch.isnan(least).any()
    assert quantiser.width % half_codes._ALIGNED == 0
